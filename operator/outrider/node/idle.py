"""A program that waits until it is told to end: 184 bytes, static, for every container of every image.

The container that keeps an image on a node needs something to run, and an image may have no shell and no `sleep` in it.
So this program comes with the pod: put into an emptyDir by the init container, and started from there.

It blocks SIGTERM and SIGINT and then waits for one of them, instead of just waiting: as process 1 of a container it
would never get a signal that it neither blocks nor handles (pid_namespaces(7)), and its pod could not be deleted in
time. What the machine code below says, in C:

    uint64_t set = 1 << (SIGTERM - 1) | 1 << (SIGINT - 1);
    rt_sigprocmask(SIG_BLOCK, &set, NULL, 8);
    while (rt_sigtimedwait(&set, NULL, NULL, 8) < 0)    // EINTR: stopped and continued, for instance
        ;
    exit_group(0);
"""

import struct
from typing import Final

_SET: Final = struct.pack("<Q", 1 << (15 - 1) | 1 << (2 - 1))

_AMD64: Final = bytes.fromhex(
    "6a0e 58"  #            00: push 14; pop rax        rt_sigprocmask
    "31ff"  #               03: xor edi, edi            SIG_BLOCK
    "488d352c000000"  #     05: lea rsi, [set]
    "31d2"  #               0c: xor edx, edx
    "6a08 415a"  #          0e: push 8; pop r10         bytes in a set
    "0f05"  #               12: syscall
    "b880000000"  #         14: mov eax, 128            rt_sigtimedwait
    "488d3d18000000"  #     19: lea rdi, [set]
    "31f6"  #               20: xor esi, esi
    "31d2"  #               22: xor edx, edx
    "0f05"  #               24: syscall
    "85c0"  #               26: test eax, eax
    "78ea"  #               28: js 14
    "b8e7000000"  #         2a: mov eax, 231            exit_group
    "31ff"  #               2f: xor edi, edi
    "0f05"  #               31: syscall
    "0f1f440000"  #         33: nop                     so that the set is aligned
)

_ARM64: Final = bytes.fromhex(
    "e81080d2"  #           00: mov x8, 135             rt_sigprocmask
    "000080d2"  #           04: mov x0, 0               SIG_BLOCK
    "c1010010"  #           08: adr x1, set
    "020080d2"  #           0c: mov x2, 0
    "030180d2"  #           10: mov x3, 8               bytes in a set
    "010000d4"  #           14: svc 0
    "281180d2"  #           18: mov x8, 137             rt_sigtimedwait
    "20010010"  #           1c: adr x0, set
    "010080d2"  #           20: mov x1, 0
    "020080d2"  #           24: mov x2, 0
    "030180d2"  #           28: mov x3, 8
    "010000d4"  #           2c: svc 0
    "40ffff37"  #           30: tbnz w0, 31, 18
    "c80b80d2"  #           34: mov x8, 94              exit_group
    "000080d2"  #           38: mov x0, 0
    "010000d4"  #           3c: svc 0
)

_MACHINES: Final = {"linux/amd64": (62, _AMD64), "linux/arm64": (183, _ARM64)}
"""By platform: its number in an ELF header, and the code."""

_BASE: Final = 0x400000
_ELF_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")


def build_idle(platform: str) -> bytes | None:
    """Return the program for a platform (`os/arch`), None if there is none for it.

    An ELF file (System V ABI, chapter 4) of one segment, which is the whole file, readable and executable.
    """
    if platform not in _MACHINES:
        return None
    machine, code = _MACHINES[platform]
    start = _ELF_HEADER.size + _PROGRAM_HEADER.size
    size = start + len(code) + len(_SET)
    header = _ELF_HEADER.pack(
        b"\x7fELF" + bytes((2, 1, 1)),  # 64 bits, little-endian, version 1
        2,  # ET_EXEC: at a fixed address
        machine,
        1,
        _BASE + start,
        _ELF_HEADER.size,
        0,
        0,
        _ELF_HEADER.size,
        _PROGRAM_HEADER.size,
        1,
        0,
        0,
        0,
    )
    segment = _PROGRAM_HEADER.pack(1, 5, 0, _BASE, _BASE, size, size, 0x10000)
    return header + segment + code + _SET
