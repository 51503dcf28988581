"""The C interface as other programs meet it: compiled, linked and run outside the checkout, in every way offered."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastce
from fastce._cli import config

ROOT = Path(__file__).resolve().parent.parent
HEADER = Path(fastce.get_include(), "fastce.h")
PAGE = (ROOT / "docs" / "c.md").read_text(encoding="utf-8")
CC = os.environ.get("CC", "cc")
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wcast-qual", "-Werror"]

pytestmark = [
    pytest.mark.skipif(shutil.which(CC) is None, reason="there is no C compiler"),
    pytest.mark.skipif(os.name == "nt", reason="the flags are those of Unix"),
]

CXX_PROGRAM = """
#include <fastce.h>
#include <cmath>
#include <cstdint>
#include <vector>

int main() {
    std::vector<double> logits = {1.0, 0.0, 0.0, 1.0}, p(4);
    std::vector<std::int64_t> labels = {0, 0};
    fastce_options options = fastce_options();
    options.reduction = FASTCE_SUM;
    fastce_result result;
    fastce_matrix x = fastce_matrix_of(logits.data(), FASTCE_F64, 2, 2);
    fastce_column y = fastce_column_of(labels.data(), FASTCE_I64);
    if (fastce_cross_entropy(x, y, &options, 2, &result) != FASTCE_OK) return 1;
    if (std::fabs(result.loss - (std::log1p(std::exp(-1.0)) + std::log1p(std::exp(1.0)))) > 1e-15) return 2;
    if (fastce_softmax(x, fastce_matrix_of(p.data(), FASTCE_F64, 2, 2), 1) != FASTCE_OK) return 3;
    if (std::fabs(p[0] - 1 / (1 + std::exp(-1.0))) > 1e-15) return 4;
    labels[1] = 2;
    if (fastce_cross_entropy(x, y, &options, 2, &result) != FASTCE_BAD_ROW || result.bad_row != 1) return 5;
    fastce_problem problem = fastce_new_problem();
    fastce_totals totals;
    return fastce_run(&problem, nullptr, 1, &totals) == FASTCE_BAD_ARGUMENT ? 0 : 6;
}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def run(*command: str, folder: Path, **more: str) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), **more}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def flags(*options: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert config.main([f"--{option}" for option in options]) == 0
    return capsys.readouterr().out.split()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The page's program, alone in a folder outside the checkout."""
    [text] = blocks("c")
    (tmp_path / "confident.c").write_text(text)
    return tmp_path


def printed() -> str:
    """What the page says its program prints."""
    block = blocks("console")[0]
    return block.split("$ ./confident\n")[1]


@pytest.mark.parametrize("std", ["c99", "c11"])
def test_fastce_config(program: Path, capsys: pytest.CaptureFixture[str], std: str) -> None:
    """The flags suffice to link and to run, with warnings as errors, and as strictly as C99 goes."""
    run(
        CC, f"-std={std}", *WARNINGS, "confident.c", "-o", "it", *flags("cflags", "libs", capsys=capsys), folder=program
    )
    assert run("./it", folder=program) == printed()


def test_the_page_as_printed(program: Path) -> None:
    """Its commands, in a shell that finds fastce-config, print what it shows."""
    command = program / "bin" / "fastce-config"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m fastce._cli.config "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks("console"):
        if "pkg-config" in block and shutil.which("pkg-config") is None:
            continue
        commands = re.findall(r"^\$ (.*)$", block, re.MULTILINE)
        shown = "".join(line + "\n" for line in block.splitlines() if not line.startswith("$ "))
        assert run("sh", "-e", "-c", "\n".join(commands), folder=program, PATH=path) == shown
    assert run("./confident", folder=program) == printed()


def test_get_include_and_get_library(program: Path) -> None:
    library = Path(fastce.get_library())
    run(CC, "confident.c", "-o", "it", f"-I{fastce.get_include()}", str(library), folder=program)
    assert run("./it", folder=program, LD_LIBRARY_PATH=str(library.parent)) == printed()


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="there is no pkg-config")
def test_pkg_config(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [folder] = flags("pkgconfigdir", capsys=capsys)
    found = run("pkg-config", "--cflags", "--libs", "fastce", folder=program, PKG_CONFIG_PATH=folder).split()
    run(CC, "confident.c", "-o", "it", *found, folder=program)
    assert run("./it", folder=program) == printed()
    version = run("pkg-config", "--modversion", "fastce", folder=program, PKG_CONFIG_PATH=folder)
    assert version.strip() == fastce.__version__


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no CMake")
def test_cmake(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [use] = blocks("cmake")
    (program / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(confident C)\nadd_executable(confident confident.c)\n"
        + use.replace("fastce REQUIRED", f"fastce {fastce.__version__} REQUIRED")
    )
    [folder] = flags("cmakedir", capsys=capsys)
    run("cmake", "-S", ".", "-B", "build", f"-Dfastce_DIR={folder}", folder=program)
    run("cmake", "--build", "build", folder=program)
    assert run("build/confident", folder=program) == printed()


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_cplusplus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "it.cpp").write_text(CXX_PROGRAM)
    found = flags("cflags", "libs", capsys=capsys)
    run("c++", "-std=c++11", *WARNINGS, "it.cpp", "-o", "it", *found, folder=tmp_path)
    run("./it", folder=tmp_path)


def test_the_library_needs_no_python() -> None:
    """Neither to link nor to load."""
    data = Path(fastce.get_library()).read_bytes()
    assert b"libpython" not in data
    assert not re.search(rb"\0_?Py[A-Z_]\w+\0", data)
    library = ctypes.CDLL(fastce.get_library())
    assert library.fastce_abi_version() == int(re.findall(r"#define FASTCE_ABI_VERSION (\d+)", HEADER.read_text())[0])


def functions() -> list[str]:
    return re.findall(r"^FASTCE_API [^;(]*?(\w+)\(", HEADER.read_text(), re.MULTILINE)


def test_every_function_is_exported_and_nothing_else() -> None:
    library = ctypes.CDLL(fastce.get_library())
    assert len(functions()) > 15
    for name in [*functions(), "fastce_get_functions"]:
        assert hasattr(library, name)
    assert not hasattr(library, "find_isa")
    assert not hasattr(library, "check_problem")


def test_every_function_is_in_the_table_and_in_the_pxd() -> None:
    """In one order, under one name, whose version is the header's."""
    table = Path(fastce.get_include(), "fastce_functions.h").read_text()
    [version] = re.findall(r"#define FASTCE_ABI_VERSION (\d+)", HEADER.read_text())
    assert f"}} fastce_functions_{version};" in table
    assert [f"fastce_{name}" for name in re.findall(r"\(\*(\w+)\)\(", table)] == functions()
    pxd = (ROOT / "fastce" / "c_api.pxd").read_text()
    assert re.findall(r"^cdef inline .*?(fastce_\w+)\(", pxd, re.MULTILINE) == functions()


def test_versions_agree() -> None:
    share = Path(fastce.__file__).parent / "share"
    assert f"Version: {fastce.__version__}\n" in (share / "pkgconfig" / "fastce.pc").read_text()
    text = (share / "cmake" / "fastce" / "fastce-config-version.cmake").read_text()
    assert f'set(PACKAGE_VERSION "{fastce.__version__}")' in text


def test_config_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main([]) == 2
    assert "--cflags" in capsys.readouterr().err
    assert flags("version", "library", capsys=capsys) == [fastce.get_library(), fastce.__version__]
    assert 'fastce-config = "fastce._cli.config:main"' in (ROOT / "pyproject.toml").read_text()
    assert importlib.util.find_spec("fastce._cli.config") is not None
