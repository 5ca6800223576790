"""The filter's tables against the kernel's headers, and its verdicts by interpreting its instructions."""

import errno
import re
import struct
from pathlib import Path

import pytest

from puna.tools.sandbox import seccomp

HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL, REFUSE, ABSENT = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS


def verdict(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """What the filter says to a call, by the rules of classic BPF."""
    data = struct.pack("=IIQ6Q", number, arch or ARCH[machine], 0, *(arguments + (0,) * 6)[:6])
    steps = list(struct.iter_unpack("HBBI", seccomp.program(machine)))
    at = register = 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == 0x20:
            (register,) = struct.unpack_from("=I", data, operand)
        elif code == 0x06:
            return operand
        else:
            truth = {0x15: register == operand, 0x35: register >= operand, 0x45: bool(register & operand)}[code]
            at += if_true if truth else if_false


def names(machine: str) -> dict[str, int]:
    path = Path(HEADERS[machine])
    if not path.exists():
        pytest.skip(f"needs the kernel's headers, {path}")
    return {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_numbers_are_the_kernels(machine: str):
    known = names(machine)
    known.setdefault("newfstatat", known.get("fstatat", -1))
    known.setdefault("renameat", 38)  # AArch64 keeps it, its generic header does not say so
    entries = [entry.split() for entry in " ".join(seccomp._ALLOWED.split()).rstrip(",").split(", ")]
    column = 1 if machine == "x86_64" else 2
    wrong = {
        name[0]: name[column] for name in entries if name[column] != "-" and known.get(name[0]) != int(name[column])
    }
    assert wrong == {}
    assert {name: known[name] for name in seccomp._CHECKED} == {
        name: numbers[column - 1] for name, numbers in seccomp._CHECKED.items()
    }
    allowed = {number for number in known.values() if verdict(machine, number) == ALLOW}
    assert allowed >= {int(entry[column]) for entry in entries if entry[column] != "-"}
    forbidden = (
        "execve execveat socket connect bind ptrace mount umount2 unshare setns bpf io_uring_setup keyctl add_key"
    )
    forbidden += " memfd_create shmget perf_event_open userfaultfd init_module kexec_load reboot mknodat setuid setgid"
    forbidden += (
        " pidfd_open process_vm_readv chroot pivot_root clone3 capset seccomp personality quotactl swapon mlock"
    )
    assert {name for name in forbidden.split() if known[name] in allowed} == set()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_verdicts(machine: str):
    column = ("x86_64", "aarch64").index(machine)
    clone, prctl, ioctl, socketpair = (seccomp._CHECKED[n][column] for n in ("clone", "prctl", "ioctl", "socketpair"))
    thread = 0x003D0F00  # what pthread_create asks for
    assert verdict(machine, clone, thread) == ALLOW
    for flags in (17, 0, thread | 0x10000000, thread | 0x20000, thread & ~0x10000, 0x80 | thread):
        assert verdict(machine, clone, flags) == REFUSE
    assert verdict(machine, prctl, 15) == ALLOW
    assert verdict(machine, prctl, 38) == verdict(machine, prctl, 1) == REFUSE
    assert verdict(machine, ioctl, 1, 0x5401) == ALLOW
    assert verdict(machine, ioctl, 0x5401, 0x5412) == REFUSE
    assert verdict(machine, socketpair, 1) == ALLOW
    assert verdict(machine, socketpair, 2) == REFUSE
    assert verdict(machine, 435) == verdict(machine, 9999) == ABSENT
    assert verdict(machine, 0, arch=0x40000003) == KILL
    assert verdict("x86_64", 0x40000000) == REFUSE


def test_a_machine_without_a_table():
    with pytest.raises(OSError, match="no table of system calls for riscv64; there are x86_64, aarch64"):
        seccomp.program("riscv64")
