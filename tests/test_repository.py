"""The rules of this repository that a linter does not know: what kernels may not contain, what a list must have."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "src_c"
TEXT = {".c", ".h", ".py", ".pyi", ".pyx", ".pxd", ".md", ".toml", ".cfg", ".yaml", ".yml", ".in", ".json", ""}


def tracked() -> list[Path]:
    """The files under version control, or all that are not built where there is no repository (an sdist)."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    folders = ("fastce", "src_c", "tests", "bench", "accuracy", "docs", "tools")
    return [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        if path.suffix in TEXT:
            yield path, path.read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["kernels", "isa"])
def test_kernels_contain_only_kernels(folder: str) -> None:
    """No threads, no allocation, no printing, no Python: those live behind the seams of src_c."""
    files = sorted((CORE / folder).glob("*.[ch]"))
    assert files
    forbidden = re.compile(
        r"\b(omp\w*|_?[mc]alloc|realloc|free|f?printf|puts|Python\.h|Py\w+|pthread\w*|assert|abort|exit)\b"
    )
    found = {
        f"{path.name}: {match.group()}"
        for path in files
        for match in forbidden.finditer(re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.DOTALL))
    }
    assert found == set()


def listed_isas() -> set[str]:
    rows = re.findall(r"#define FASTCE_ISAS\(X\)(.*)", (CORE / "isa.h").read_text())
    return {name for row in rows for name in re.findall(r"X\((\w+)\)", row)}


def test_every_isa_of_the_list_has_its_files() -> None:
    """And every file of an ISA is in the list."""
    isas = listed_isas()
    assert isas == {"avx512", "avx2", "neon", "portable"}
    assert {path.name for path in (CORE / "isa").glob("*.c")} == {
        f"{isa}_{k}.c" for isa in isas for k in ("f32", "f64")
    }


def test_isa_files_are_small() -> None:
    """An ISA is a lane type and one-line operations; the kernels are included."""
    for path in (CORE / "isa").glob("*.c"):
        lines = path.read_text().splitlines()
        assert len(lines) < 250, path.name
        assert any(line.startswith('#include "') and "kernels" in line for line in lines), path.name


def test_nothing_is_left_to_do() -> None:
    mark = re.compile(r"\b(TOD[O]|FIXM[E]|XX[X])\b")  # brackets, so as not to find this line
    assert [str(path.relative_to(ROOT)) for path, text in texts() if mark.search(text)] == []


def test_python_files_open_with_what_they_own() -> None:
    for path, text in texts():
        if path.suffix == ".py" and text.strip():
            assert text.startswith(('"""', "#!")), path.relative_to(ROOT)


def test_c_files_open_with_what_they_own() -> None:
    for path, text in texts():
        if path.suffix in {".c", ".h"} and CORE in path.parents:
            assert text.startswith("/*"), path.relative_to(ROOT)


def test_no_validation_by_assert() -> None:
    """`python -O` removes it."""
    for path, text in texts():
        if path.suffix in {".py", ".pyx"} and ROOT / "fastce" in path.parents:
            assert not re.search(r"^\s*assert\b", text, re.MULTILINE), path.relative_to(ROOT)


def test_files_end_with_a_newline_and_no_tabs_or_trailing_blanks() -> None:
    for path, text in texts():
        if path.suffix in {".py", ".pyx", ".pxd", ".pyi", ".c", ".h", ".toml", ".md"} and text:
            assert text.endswith("\n"), path.relative_to(ROOT)
            assert not re.search(r"[ \t]+$", text, re.MULTILINE), path.relative_to(ROOT)
            assert "\t" not in text, path.relative_to(ROOT)


def test_compiler_flags_keep_the_arithmetic_as_written() -> None:
    setup = (ROOT / "setup.py").read_text()
    assert "-ffp-contract=off" in setup
    assert not re.search(r"[\"'](-Ofast|-ffast-math|-funsafe|-march=)", setup)
