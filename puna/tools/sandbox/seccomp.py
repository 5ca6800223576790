"""The system calls that code in the sandbox may make, as a seccomp filter (kernel: seccomp_filter.rst).

Whatever is not in the table is refused: sockets, new processes and programs, mounts, namespaces, ptrace, bpf, io_uring,
keys, shared memory that outlives its owner, devices, changes of user. This file runs inside the sandbox: it imports
nothing but the standard library.
"""

import ctypes
import errno
import os
import struct

# name, number on x86-64, number on AArch64 (linux/asm/unistd.h); "-" where an architecture has no such call
_ALLOWED = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
preadv2 327 286, pwritev2 328 287, open 2 -, openat 257 56, close 3 57, close_range 436 436, lseek 8 62, stat 4 -,
fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, statfs 137 43, fstatfs 138 44, access 21 -,
faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents 78 -, getdents64 217 61,
getcwd 79 17, chdir 80 49, fchdir 81 50, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35,
rename 82 -, renameat 264 38, renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36,
chmod 90 -, fchmod 91 52, fchmodat 268 53, utime 132 -, utimes 235 -, utimensat 280 88, futimesat 261 -,
truncate 76 45, ftruncate 77 46, fallocate 285 47, fsync 74 82, fdatasync 75 83, umask 95 166, flock 73 32,
fadvise64 221 223, copy_file_range 326 285, sendfile 40 71, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10,
listxattr 194 11, llistxattr 195 12, flistxattr 196 13,
dup 32 23, dup2 33 -, dup3 292 24, fcntl 72 25, pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73, select 23 -,
pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22,
epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19, timerfd_create 283 85, timerfd_settime 286 86,
timerfd_gettime 287 87, signalfd 282 -, signalfd4 289 74,
recvfrom 45 207, sendto 44 206, recvmsg 47 212, sendmsg 46 211, shutdown 48 210, getsockopt 55 209,
setsockopt 54 208, getsockname 51 204, getpeername 52 205,
brk 12 214, mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233, mincore 27 232,
msync 26 227, membarrier 324 283, futex 202 98, set_robust_list 273 99, get_robust_list 274 100,
set_tid_address 218 96, rseq 334 293, arch_prctl 158 -, exit 60 93, exit_group 231 94, restart_syscall 219 128,
sched_yield 24 124, sched_getaffinity 204 123, sched_setaffinity 203 122, sched_getparam 143 121,
sched_getscheduler 145 120, sched_get_priority_max 146 125, sched_get_priority_min 147 126,
gettid 186 178, getpid 39 172, getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177,
getresuid 118 148, getresgid 120 150, getgroups 115 158, getpgid 121 155, getpgrp 111 -, getsid 124 156,
capget 125 90, uname 63 160, sysinfo 99 179, times 100 153, getrusage 98 165, getrlimit 97 163, setrlimit 160 164,
prlimit64 302 261, getpriority 140 141, getcpu 309 168, getrandom 318 278,
clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101, gettimeofday 96 169,
time 201 -, alarm 37 -, getitimer 36 102, setitimer 38 103, timer_create 222 107, timer_settime 223 110,
timer_gettime 224 108, timer_getoverrun 225 109, timer_delete 226 111, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigsuspend 130 133, rt_sigtimedwait 128 137, sigaltstack 131 132,
pause 34 -, kill 62 129, tgkill 234 131,
"""

_CHECKED = {"clone": (56, 220), "prctl": (157, 167), "ioctl": (16, 29), "socketpair": (53, 199)}
"""Allowed for some arguments only; see `_rules`."""
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column in the tables and AUDIT_ARCH of each architecture that has them."""

# struct sock_filter: u16 code, u8 jump if true, u8 jump if false, u32 operand; struct seccomp_data: nr, arch, ip, args
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT = 0, 4, (16, 24)  # offsets; of an argument the lower half, on little-endian machines
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSE = _ERRNO | errno.EPERM
_X32 = 0x40000000
_NEWEST = 424
"""From here on calls have the same number everywhere; refused ones look as on an older kernel, so that libc falls back
on what it used before them (clone3 on clone, openat2 on openat)."""

_CLONE_THREAD, _CLONE_NAMESPACES = 0x00010000, 0x7E020080
_PRCTL = (3, 15, 16, 23, 39, 0x53564D41)  # GET_DUMPABLE, SET_NAME, GET_NAME, CAPBSET_READ, GET_NO_NEW_PRIVS, SET_VMA
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_AF_UNIX = 1

_Step = tuple[int, int, int, int]


def program(machine: str) -> bytes:
    """The filter's instructions for an architecture; OSError where we have no table of its calls."""
    if machine not in _MACHINES:
        raise OSError(f"no table of system calls for {machine}; there are {', '.join(_MACHINES)}")
    column, arch = _MACHINES[machine]
    steps: list[_Step] = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), _give(_KILL), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, _X32), _give(_REFUSE)]
    for call in " ".join(_ALLOWED.split()).rstrip(",").split(", "):
        number = call.split()[1 + column]
        if number != "-":
            steps += [(_EQUAL, 0, 1, int(number)), _give(_ALLOW)]
    for name, rule in _rules().items():
        steps += [(_EQUAL, 0, len(rule), _CHECKED[name][column]), *rule]
    steps += [(_AT_LEAST, 0, 1, _NEWEST), _give(_ERRNO | errno.ENOSYS), _give(_REFUSE)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _give(verdict: int) -> _Step:
    return (_RETURN, 0, 0, verdict)


def _rules() -> dict[str, list[_Step]]:
    """Threads but no processes; a few options; pairs of connected sockets but none that reaches out."""
    clone = [
        (_LOAD, 0, 0, _ARGUMENT[0]),
        (_ANY_BIT, 0, 1, _CLONE_NAMESPACES),
        _give(_REFUSE),
        (_ANY_BIT, 0, 1, _CLONE_THREAD),
        _give(_ALLOW),
        _give(_REFUSE),
    ]
    return {
        "clone": clone,
        "prctl": _one_of(_PRCTL, _ARGUMENT[0]),
        "ioctl": _one_of(_IOCTL, _ARGUMENT[1]),
        "socketpair": _one_of((_AF_UNIX,), _ARGUMENT[0]),
    }


def _one_of(values: tuple[int, ...], argument: int) -> list[_Step]:
    steps: list[_Step] = [(_LOAD, 0, 0, argument)]
    for value in values:
        steps += [(_EQUAL, 0, 1, value), _give(_ALLOW)]
    return [*steps, _give(_REFUSE)]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def load() -> None:
    """Put this process, and its threads, under the filter for good; OSError where the kernel refuses."""
    steps = program(os.uname().machine)
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, mode_filter = 38, 22, 2
    loaded = _Program(len(steps) // 8, steps)
    for arguments in ((no_new_privileges, 1, 0, 0, 0), (set_seccomp, mode_filter, ctypes.byref(loaded), 0, 0)):
        if libc.prctl(*arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"seccomp: {os.strerror(number)}")
