"""The Cython interface: the page's module, built outside the checkout as the page says, without a library to link."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastce
from fastce import _core

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "cython.md").read_text(encoding="utf-8")

pytestmark = [
    pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="there is no C compiler"),
    pytest.mark.skipif(importlib.util.find_spec("Cython") is None, reason="Cython is not installed"),
]


def block(language: str) -> str:
    [text] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the page's module, and what its commands printed."""
    folder = tmp_path_factory.mktemp("perplexity")
    (folder / "perplexity.pyx").write_text(block("cython"))
    (folder / "setup.py").write_text(block("python"))
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    commands = "\n".join(re.findall(r"^\$ (.*)$", block("console"), re.MULTILINE))
    commands = commands.replace("python ", f"{sys.executable} ")
    env = os.environ | {"PYTHONPATH": str(ROOT), "CFLAGS": "-O0"}
    done = subprocess.run(
        ["sh", "-e", "-c", commands], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder


def test_the_page_as_printed(built: Path) -> None:
    shown = "".join(line + "\n" for line in block("console").splitlines() if not line.startswith("$ "))
    printed = (built / "printed").read_text().splitlines(keepends=True)
    assert printed[-1] == shown  # before it, Cython says what it does
    assert shown == f"{np.exp(fastce.cross_entropy(np.eye(3), range(3))):.6f}\n"


def test_no_library_is_linked(built: Path) -> None:
    [module] = built.glob("perplexity*.so")
    assert b"libfastce" not in module.read_bytes()


def test_errors_come_back(built: Path) -> None:
    """Statuses and messages are those of the header."""
    program = """
import numpy as np, perplexity
try:
    perplexity.perplexity(np.eye(3, dtype="f"), np.array([0, 3, 1]))
except IndexError as error:
    print(error)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(built)])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=built, env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("label 3 of row 1\n", "")


def test_another_abi_is_refused(built: Path) -> None:
    """A fastce whose capsule has another version in its name: the import fails and names both."""
    program = """
import ctypes, fastce._core as core
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
NAME = b"fastce_functions_99 *"
core.__pyx_capi__["functions"] = new(1, NAME, None)
try:
    import perplexity
except TypeError as error:
    print(error)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(built)])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=built, env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert "fastce_functions_1 *" in done.stdout, done.stderr
    assert "fastce_functions_99 *" in done.stdout


def test_the_capsule_has_the_version_in_its_name() -> None:
    assert f"fastce_functions_{_core.abi_version()} *" in str(_core.__pyx_capi__["functions"])
