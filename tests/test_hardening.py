"""The shared objects are built so that a mistake in C is hard to turn into anything: see SECURITY.md.

Read from the files themselves, by as much of the ELF format as it takes.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

import fastce
from fastce import _core

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ELF is the format of Linux")

PT_LOAD, PT_DYNAMIC, PT_GNU_STACK, PT_GNU_RELRO = 1, 2, 0x6474E551, 0x6474E552
EXECUTABLE, WRITABLE = 1, 2
DT_FLAGS, DT_FLAGS_1, DT_TEXTREL = 30, 0x6FFFFFFB, 22
DF_BIND_NOW, DF_1_NOW = 8, 1

FILES = [Path(fastce.get_library()), Path(_core.__file__)]


class Elf:
    """The program headers and the dynamic section of a 64-bit file."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        assert self.data[:5] == b"\x7fELF\x02"
        self.order = "<" if self.data[5] == 1 else ">"
        start, size, count = self.read("Q", 32)[0], *self.read("HH", 54)
        self.segments = [self.read("IIQQQQ", start + i * size) for i in range(count)]

    def read(self, form: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from(self.order + form, self.data, at)

    def flags_of(self, kind: int) -> list[int]:
        return [segment[1] for segment in self.segments if segment[0] == kind]

    def dynamic(self) -> dict[int, int]:
        [(_, _, offset, _, _, size)] = [segment for segment in self.segments if segment[0] == PT_DYNAMIC]
        return dict(self.read("qQ", at) for at in range(offset, offset + size, 16))  # type: ignore[misc]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_segments(path: Path) -> None:
    """No executable stack, nothing both writable and executable, and what the loader relocates is read-only then."""
    elf = Elf(path)
    [stack] = elf.flags_of(PT_GNU_STACK)
    assert not stack & EXECUTABLE
    assert elf.flags_of(PT_GNU_RELRO)
    assert not any(flags & EXECUTABLE and flags & WRITABLE for flags in elf.flags_of(PT_LOAD))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_symbols_are_bound_at_once(path: Path) -> None:
    """So that the table of addresses can be read-only before anything runs; and no code is relocated."""
    dynamic = Elf(path).dynamic()
    assert dynamic.get(DT_FLAGS, 0) & DF_BIND_NOW
    assert dynamic.get(DT_FLAGS_1, 0) & DF_1_NOW
    assert DT_TEXTREL not in dynamic


def test_stacks_are_protected() -> None:
    """The library calls what the guard of a smashed stack calls; fortified calls it has none to show."""
    assert b"\0__stack_chk_fail\0" in Path(fastce.get_library()).read_bytes()
    setup = Path(__file__).resolve().parent.parent / "setup.py"
    assert '"-D_FORTIFY_SOURCE=2"' in setup.read_text()
