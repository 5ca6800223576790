"""What a process does to itself before it runs somebody's code: namespaces, mounts, limits, Landlock.

The sandbox is built by bubblewrap, or without it by `enter_namespaces`, which makes the same one: an empty root that
holds read-only what Python needs, one small tmpfs to write on, no network, no other process. Either way `lock` follows.
This file runs inside the sandbox: it imports nothing but the standard library.
"""

import ctypes
import json
import os
import resource
import struct
from contextlib import suppress
from typing import Any

SCRATCH = "/sandbox"
"""The only folder to write in."""
DEVICES = ("null", "zero", "random", "urandom")
FILES = 128
"""Open files of a process."""
INODES = 4096
"""Files on the scratch tmpfs."""

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_MOUNT_SETATTR, _SYS_LANDLOCK = 442, 444
_SET_DEATH_SIGNAL, _SIGKILL = 1, 9
_AT_RECURSIVE, _NO_DEREFERENCE = 0x8000, 0x100

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, *arguments: Any) -> int:
    return _check(_libc.syscall(*(ctypes.c_long(x) if isinstance(x, int) else x for x in arguments)), what)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [word and word.encode() for word in (source, target, kind, options)]
    result = _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])
    _check(result, f"mounting {target}")


def die_with_parent() -> None:
    """Be killed when the process that started this one dies; a change of user undoes it."""
    _check(_libc.prctl(_SET_DEATH_SIGNAL, _SIGKILL, 0, 0, 0), "prctl")


# The way without bubblewrap


def enter_namespaces(binds: list[str], links: dict[str, str], info: int) -> None:
    """Go on as process 1 of new namespaces, with a root that holds nothing but `binds` (read-only) and `links`.

    The process that calls this stays outside, waits for the one inside and ends with it; it writes the number of that
    one to the descriptor `info` in bubblewrap's form.
    """
    landlock_version()  # without bubblewrap, two independent locks on files: the mounts and Landlock
    die_with_parent()
    user, group = os.getuid(), os.getgid()
    spaces = _NEWNS | _NEWCGROUP | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    _check(_libc.unshare(spaces if user == 0 else spaces | _NEWUSER), "new namespaces")
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    child = os.fork()
    if child:
        os.write(info, json.dumps({"child-pid": child}).encode())
        for descriptor in (0, 1, 2, info):
            os.close(descriptor)  # the one inside holds the only ends
        os.waitpid(child, 0)
        os._exit(0)
    os.close(info)
    die_with_parent()
    os.setsid()
    _check(_libc.sethostname(b"sandbox", 7), "sethostname")
    _build_root(binds, links)


def _build_root(binds: list[str], links: dict[str, str]) -> None:
    """Pivot twice: first to reach the old root under /old while the new one is built, then to drop both."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")
    os.mkdir("/tmp/old")
    os.mkdir("/tmp/new")
    _pivot("/tmp", "/tmp/old")
    _mount("tmpfs", "/new", "tmpfs", _MS_NOSUID, "mode=0755")
    for path in binds:
        _bind(path, _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    for name in DEVICES:
        _bind(f"/dev/{name}", _MS_RDONLY | _MS_NOSUID)
    for path, target in links.items():
        os.makedirs(os.path.dirname("/new" + path), exist_ok=True)
        os.symlink(target, "/new" + path)
    os.makedirs("/new" + SCRATCH, exist_ok=True)
    _set_flags("/new", _MS_RDONLY | _MS_NOSUID, recursive=False)
    os.chdir("/new")
    _pivot(".", ".")
    _check(_libc.umount2(b".", _MNT_DETACH), "leaving the old root")
    os.chdir("/")


def _pivot(new: str, old: str) -> None:
    _syscall("pivot_root", _SYS_PIVOT_ROOT[os.uname().machine], new.encode(), old.encode())


def _bind(path: str, flags: int) -> None:
    """Show a file or folder of the old root at the same path of the new one, with what is mounted below it."""
    source, target = "/old" + path, "/new" + path
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, target, None, _MS_BIND | _MS_REC)
    _set_flags(target, flags, recursive=True)


def _set_flags(path: str, flags: int, recursive: bool) -> None:
    attributes = struct.pack("QQQQ", flags, 0, 0, 0)  # MOUNT_ATTR_RDONLY, NOSUID, NODEV are MS_RDONLY, ...
    at = _AT_RECURSIVE if recursive else 0
    _syscall(f"flags of {path}", _SYS_MOUNT_SETATTR, -100, path.encode(), at, attributes, len(attributes))


# What both ways end in


def lock(user: int, memory: int, disk: int, threads: int) -> None:
    """Mount the scratch folder and give up everything else, in this order, for good (seccomp follows).

    Args:
        user: who to become; as who we are, we stay.
        memory: bytes of address space.
        disk: bytes of the scratch folder.
        threads: threads of this process, the first one included.
    """
    options = f"size={disk},nr_inodes={INODES},mode=0700,uid={user},gid={user if os.getuid() == 0 else os.getgid()}"
    _mount("tmpfs", SCRATCH, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    if os.getuid() != user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _drop_capabilities()
    die_with_parent()
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: disk,
        resource.RLIMIT_NPROC: threads,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_STACK: 8 << 20,
    }
    for name in ("CORE", "MEMLOCK", "MSGQUEUE", "NICE", "RTPRIO"):
        limits[getattr(resource, f"RLIMIT_{name}")] = 0
    for name, limit in limits.items():
        hard = resource.getrlimit(name)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(name, (limit, limit))
    os.umask(0o077)
    _landlock()


def _drop_capabilities() -> None:
    for capability in range(64):
        _libc.prctl(24, capability, 0, 0, 0)  # the bounding set; EINVAL behind the last one
    header, nothing = struct.pack("II", 0x20080522, 0), bytes(24)
    _check(_libc.capset(header, nothing), "capset")
    with suppress(OSError), open("/proc/self/status") as file:  # there is no /proc inside, as a rule
        assert "CapEff:\t0000000000000000" in file.read()
    _check(_libc.prctl(38, 1, 0, 0, 0), "no new privileges")


def landlock_version() -> int:
    """The kernel's version of Landlock; OSError without it."""
    return _syscall("Landlock", _SYS_LANDLOCK, None, 0, 1)


def _landlock() -> None:
    """Reading everywhere, writing in the scratch folder, running programs nowhere; no TCP, no signals to others."""
    try:
        version = landlock_version()
    except OSError:
        return  # an older kernel; below bubblewrap only, whose mounts say the same
    read, write = (1 << 2) | (1 << 3), (1 << 1) | (1 << 14 if version >= 3 else 0)
    # files, folders and links made and removed; no devices, sockets or pipes with names
    change = sum(1 << bit for bit in (4, 5, 7, 8, 12)) | (1 << 13 if version >= 2 else 0)
    handled = (1 << 13) - 1 | sum(1 << bit for bit, since in ((13, 2), (14, 3), (15, 5)) if version >= since)
    tcp, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    attributes = struct.pack("QQQ", handled, tcp, scopes)[: 8 * (1 + (version >= 4) + (version >= 6))]
    rules = _syscall("Landlock", _SYS_LANDLOCK, attributes, len(attributes), 0)
    for path, allowed in (("/", read), ("/dev", read | write), (SCRATCH, read | write | change)):
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _syscall(f"Landlock on {path}", _SYS_LANDLOCK + 1, rules, 1, struct.pack("=Qi", allowed, folder), 0)
        os.close(folder)
    _syscall("Landlock", _SYS_LANDLOCK + 2, rules, 0)
    os.close(rules)
