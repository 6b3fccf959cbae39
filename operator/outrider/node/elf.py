"""Is this program made for this processor? Said before it is put in place, not by the kernel when it is started."""

import struct
from typing import Final

from outrider.api.errors import Stalling

HEAD_BYTES: Final = 20
"""So many bytes of a file tell."""

_EXECUTABLE: Final = (2, 3)
"""ET_EXEC and ET_DYN: what is started. Object files are data, such as programs for the kernel's BPF machine."""

_MACHINES: Final = {
    3: ("386", ("linux/amd64",)),
    62: ("amd64", ("linux/amd64",)),
    40: ("arm", ("linux/arm", "linux/arm64")),
    183: ("arm64", ("linux/arm64",)),
    21: ("ppc64", ("linux/ppc64le",)),
    22: ("s390x", ("linux/s390x",)),
    243: ("riscv64", ("linux/riscv64",)),
}
"""By number in the header (System V ABI, "e_machine"): what it is called, and where it runs."""


def check_architecture(head: bytes, platform: str, what: str) -> None:
    """Refuse a program for another processor. `head` is how the file begins, `what` names it in the message.

    Scripts, and machines that are not known here, pass. Raises Stalling(ArchitectureMismatch).
    """
    if len(head) < HEAD_BYTES or not head.startswith(b"\x7fELF"):
        return
    order = {1: "<", 2: ">"}.get(head[5])
    if order is None:
        return
    kind, machine = struct.unpack_from(f"{order}HH", head, 16)
    name, platforms = _MACHINES.get(machine, ("", ()))
    if kind in _EXECUTABLE and name and platform not in platforms:
        raise Stalling(
            "ArchitectureMismatch",
            f"{what} is stored for {platform}, but is a program for {name}; publish a version with the right file",
        )
