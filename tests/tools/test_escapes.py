# ruff: noqa: E501
"""Attempts to get out of the sandbox, as root and as a plain user, in each way it can be made. None gets anything.

An attempt is a piece of Python that sets `got` when it has what it should not have. It is blocked when the sandbox
raises an exception, kills it, or gives it nothing. Each runs in an interpreter of its own where it may do damage.
"""

import textwrap

from puna.tools.sandbox.launch import Way
from tests.tools.conftest import run_escapes

HELPERS = """
import ctypes, errno, os, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(x86, arm, *arguments):
    number = x86 if os.uname().machine == "x86_64" else arm
    result = libc.syscall(*(ctypes.c_long(x) if isinstance(x, int) else x for x in (number, *arguments)))
    if result < 0: raise OSError(ctypes.get_errno(), "refused")
    return result
def reads(path):
    with open(path, "rb") as file: return file.read(100)
def writes(path):
    with open(path, "wb") as file: file.write(b"x")
got = None
"""

ATTEMPTS: dict[str, str] = {
    # files of the machine
    "read the password file": "got = reads('/etc/passwd')",
    "read the shadow file": "got = reads('/etc/shadow')",
    "read a file of the user's": "got = reads(MARKER)",
    "list the user's folder": "got = os.listdir(os.path.dirname(MARKER))",
    "stat a file of the user's": "got = os.stat(MARKER)",
    "read root's folder": "got = [x for x in os.listdir('/root') if x not in VISIBLE] if os.path.isdir('/root') else None",
    "look into other homes": "got = [x for x in os.listdir('/home') if '/home/' + x not in SHOWN]",
    "read the environment of the program that started it": "got = os.environ.get('PUNA_TEST_SECRET')",
    "climb above the root": "got = reads('/../../../../../../etc/passwd')",
    "write over Python": "writes(os.__file__); got = 1",
    "write into /usr": "writes('/usr/owned'); got = 1",
    "write into the root": "writes('/owned'); got = 1",
    "write into /dev": "writes('/dev/owned'); got = 1",
    "remove a library": "os.unlink(os.__file__); got = 1",
    "change the mode of a library": "os.chmod(os.__file__, 0o777); got = 1",
    "follow a symbolic link out": "os.symlink('/etc/passwd', 'link'); got = reads('link')",
    "follow a link to the user's file": "os.symlink(MARKER, 'link2'); got = reads('link2')",
    "hard link a file from outside": "os.link(os.__file__, 'hard'); got = 1",
    "open by handle": "call(304, 265, -100, ctypes.create_string_buffer(128), 0); got = 1",
    "chroot and climb": "os.mkdir('c'); os.chroot('c'); got = 1",
    # /proc, /sys, /dev
    "read the environment of process 1": "got = reads('/proc/1/environ')",
    "read other processes": "got = [x for x in os.listdir('/proc') if x.isdigit() and int(x) > 2]",
    "write its own memory by /proc": "open('/proc/self/mem', 'r+b').write(b''); got = 1",
    "reach the host through /proc/1/root": "got = reads('/proc/1/root/etc/passwd')",
    "set the core pattern": "writes('/proc/sys/kernel/core_pattern'); got = 1",
    "press sysrq": "writes('/proc/sysrq-trigger'); got = 1",
    "read the kernel's symbols": "got = reads('/proc/kallsyms')",
    "write to /sys": "writes('/sys/kernel/uevent_helper'); got = 1",
    "read the memory device": "got = reads('/dev/mem')",
    "read the disk": "got = [reads('/dev/' + x) for x in ('vda', 'sda', 'nvme0n1')]",
    "read the kernel log": "got = call(103, 116, 3, ctypes.create_string_buffer(100), 100)",
    "open the terminal": "got = open('/dev/tty', 'w')",
    "type into the terminal": "import fcntl; fcntl.ioctl(1, 0x5412, b'x'); got = 1",
    "paste into the console": "import fcntl; fcntl.ioctl(0, 0x541C, b'\\x03'); got = 1",
    "make a device": "os.mknod('disk', 0o060666, os.makedev(8, 0)); got = 1",
    "make a named pipe": "os.mkfifo('pipe'); got = 1",
    # network
    "connect by TCP": "import socket; socket.create_connection(('127.0.0.1', PORT), 9); got = 1",
    "send a datagram": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53)); got = 1",
    "ask for a name": "import socket; got = socket.gethostbyname('example.com')",
    "open a raw socket": "import socket; got = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "open a netlink socket": "import socket; got = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "open a virtual machine's socket": "import socket; got = socket.socket(40, socket.SOCK_STREAM)",
    "connect to a unix socket of the host": "import socket; s = socket.socket(socket.AF_UNIX); s.connect(SOCKET); got = 1",
    "send to a unix socket through a pair": "import socket; a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendto(b'x', SOCKET); got = 1",
    "send to an abstract socket": "import socket; a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendto(b'x', '\\0' + SOCKET); got = 1",
    # processes and programs
    "fork": "pid = os.fork(); got = pid or os._exit(0)",
    "vfork": "got = call(58, 220, 17, 0, 0, 0, 0)",
    "clone a process": "got = call(56, 220, 17, 0, 0, 0, 0)",
    "clone a process, the new call": "got = call(435, 435, struct.pack('Q', 0) + bytes(80), 88)",
    "run a shell": "import subprocess; got = subprocess.run(['/bin/sh', '-c', 'id'], capture_output=True).stdout",
    "become a program": "os.execv('/bin/sh', ['sh', '-c', 'sleep 100'])",
    "become a program in memory": "got = os.memfd_create('x')",
    "run by spawn": "got = os.posix_spawn('/bin/true', ['true'], {})",
    "run su": "os.execv('/bin/su', ['su']); got = 1",
    "kill process 1": "os.kill(1, 9) if os.getpid() != 1 else os.kill(os.getppid() or 2, 9); time.sleep(0.2); got = None",
    "signal every process": "import signal; signal.signal(15, signal.SIG_IGN); os.kill(-1, 15)",
    "kill the program that started it": "os.kill(HOST, 9); got = 1",
    "trace another process": "got = call(101, 117, 16, HOST, 0, 0) + 1",
    "let itself be traced": "got = call(101, 117, 0, 0, 0, 0) + 1",
    "read another process's memory": "got = call(310, 270, HOST, 0, 0, 0, 0, 0) + 1",
    "open a process by descriptor": "got = call(434, 434, HOST, 0)",
    "take another process's file": "got = call(438, 438, 3, 0, 0)",
    # rights
    "become root": "os.setuid(0) if os.getuid() else os.setresuid(1, 1, 1); got = 1",
    "become another group": "os.setgid(0) if os.getgid() else os.setgroups([1]); got = 1",
    "take capabilities": "call(126, 91, struct.pack('II', 0x20080522, 0), struct.pack('III', 2**32 - 1, 2**32 - 1, 0) * 2); got = 1",
    "make a program that runs as its owner": "writes('s'); os.chmod('s', 0o4755); os.execv('./s', ['s']); got = 1",
    "drop the filter": "libc.prctl(22, 0, 0, 0, 0) == 0 and exec('global got; got = 1')",
    "outlive its parent": "got = 1 if libc.prctl(1, 0, 0, 0, 0) == 0 else None",
    "raise a limit": "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (10**6, 10**6)); got = 1",
    "open more files": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (10**6, 10**6)); got = 1",
    "run before all others": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)); got = 1",
    "be nicer to itself": "os.nice(-10); got = 1",
    # namespaces and mounts
    "a user namespace inside": "call(272, 97, 0x10000000); got = 1",
    "a mount namespace inside": "call(272, 97, 0x00020000); got = 1",
    "a user namespace by clone": "got = call(56, 220, 0x10000000 | 17, 0, 0, 0, 0)",
    "join a namespace": "call(308, 268, 0, 0); got = 1",
    "mount": "call(165, 40, b'tmpfs', b'/sandbox', b'tmpfs', 0, None); got = 1",
    "mount by the new calls": "got = call(430, 430, b'tmpfs', 0)",
    "copy a mount": "got = call(428, 428, -100, b'/', 1)",
    "make the root writable": "call(442, 442, -100, b'/', 0x8000, struct.pack('QQQQ', 0, 1, 0, 0), 32); got = 1",
    "unmount": "call(166, 39, b'/sandbox', 2); got = 1",
    "pivot the root": "call(155, 41, b'.', b'.'); got = 1",
    "rename the machine": "call(170, 161, b'owned', 5); got = 1",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, 0); got = 1",
    # the kernel's larger doors
    "io_uring": "got = call(425, 425, 8, ctypes.create_string_buffer(120))",
    "bpf": "got = call(321, 280, 0, ctypes.create_string_buffer(64), 64)",
    "perf events": "got = call(298, 241, ctypes.create_string_buffer(struct.pack('II', 1, 112) + bytes(104)), 0, -1, -1, 0)",
    "add a key": "got = call(248, 217, b'user', b'name', b'x', 1, -4)",
    "read the keyring": "got = call(250, 219, 0, -4, 0)",
    "request a key": "got = call(249, 218, b'user', b'name', None, -4)",
    "page faults in user space": "got = call(323, 282, 0)",
    "load a module": "got = call(175, 105, b'', 0, b'')",
    "load another kernel": "got = call(246, 104, 0, 0, None, 0)",
    "reboot": "call(169, 142, 0xfee1dead - 2**32, 672274793, 0, None); got = 1",
    "watch files of the system": "got = call(300, 262, 0, 0)",
    "switch the personality": "call(135, 92, 0x0040000); got = 1",
    "swap": "call(167, 224, b'/sandbox', 0); got = 1",
    "shared memory that stays": "got = call(29, 194, 0, 4096, 0o1600)",
    "a message queue that stays": "got = call(68, 186, 0, 0o1600)",
    "a 32-bit system call": "got = call(0x40000000 + 39, 2**20)",
    # too much of everything
    "a memory bomb": "x = []\nwhile True: x.append(bytearray(64 << 20))",
    "a memory bomb by mapping": "import mmap; x = []\nwhile True: x.append(mmap.mmap(-1, 256 << 20))",
    "a thread bomb": "import threading\nfor _ in range(10**4): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\ngot = 1",
    "a disk bomb": "file = open('big', 'wb')\nwhile True: file.write(bytes(1 << 20))",
    "many small files": "for i in range(10**6): open(f'f{i}', 'w').close()\ngot = 1",
    "many folders": "for i in range(10**6): os.mkdir('d'); os.chdir('d')\ngot = 1",
    "many open files": "x = []\nwhile True: x.append(open('/dev/null'))",
    "locked memory": "libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]; b = ctypes.create_string_buffer(1 << 20); got = None if libc.mlock(b, 1 << 20) else 1",
    "endless output": "while True: os.write(1, bytes(1 << 20))",
}  # fmt: skip


def test_no_attempt_gets_out(way: Way, user: str):
    """All attempts in one process of that user, so that the test takes seconds."""
    attempts = {name: HELPERS + textwrap.dedent(code) for name, code in ATTEMPTS.items()}
    outcome = run_escapes(user, way, attempts | {"control": "got = 7"})
    assert outcome["got"].pop("control") == "7"
    assert outcome["alive"], "a harmless call no longer works between the attempts"
    got = {name: text for name, text in outcome["got"].items() if text != "None"}
    assert not got
    assert len(outcome["got"]) == len(ATTEMPTS) >= 40
    assert outcome["marker"] == "kept"
    assert outcome["left"] == {"files": [], "processes": []}


def test_the_attempts_can_succeed_outside():
    """What an attempt asks for is there without a sandbox, for those that do no harm."""
    harmless = (
        "read the environment of the program that started it", "read the password file", "read a file of the user's", "list the user's folder", "stat a file of the user's",
                "climb above the root", "follow a symbolic link out", "follow a link to the user's file", "make a named pipe",
        "send to a unix socket through a pair", "connect to a unix socket of the host", "connect by TCP", "fork",
        "clone a process", "become a program in memory", "run by spawn", "open a process by descriptor",
        "run a shell", "outlive its parent", "let itself be traced",
    )  # fmt: skip
    with_tools = {name: HELPERS + ATTEMPTS[name] for name in harmless}
    outcome = run_escapes("this", "none", with_tools)
    assert not [name for name, text in outcome["got"].items() if text == "None"]
