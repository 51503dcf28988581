"""Checks the sdist and the wheel in a folder: what each must hold, and that the wheel's copy computes.

Run by `make dist`. The wheel is unpacked beside the checkout and imported from there, never from the checkout.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

IN_BOTH = [
    "fastce/__init__.py",
    *("fastce/c_api.pxd", "fastce/_c_types.pxd", "fastce/_core.pxd"),
    "fastce/_core.pyi",
    "fastce/py.typed",
    *("fastce/include/fastce.h", "fastce/include/fastce_functions.h"),
    *("fastce/share/pkgconfig/fastce.pc", "fastce/share/cmake/fastce/fastce-config.cmake"),
    "fastce/data/digits_logits.npy",
    "fastce/data/digits_labels.npy",
    "fastce/data/README.md",
    "fastce/_bench/cases.py",
]
IN_SDIST = [
    *IN_BOTH,
    *(
        "LICENSE",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "Makefile",
        "pyproject.toml",
        "setup.py",
        ".ci/run",
    ),
    *("fastce/_core.pyx", "src_c/api.c", "tests/oracle.py", "bench/__main__.py", "tools/check_dist.py"),
    *("accuracy/table.json", "accuracy/sweep.c", "docs/accuracy.md", "docs/numba.md"),
]
LIBRARY = "fastce/libfastce.so" if sys.platform != "darwin" else "fastce/libfastce.dylib"
PROGRAM = "import fastce; print(fastce.__file__, fastce.cross_entropy([[1.0, 2.0]], [1], backend='cython'))"


def main(folder: Path) -> None:
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with tempfile.TemporaryDirectory() as site:
        with zipfile.ZipFile(wheel) as archive:
            in_wheel = set(archive.namelist())
            archive.extractall(site)
        missing = [f"sdist: {name}" for name in IN_SDIST if name not in in_sdist]
        missing += [f"wheel: {name}" for name in [*IN_BOTH, LIBRARY] if name not in in_wheel]
        surplus = [f"sdist: {name}" for name in in_sdist if name.endswith((".so", ".o", "_core.c"))]
        surplus += [f"wheel: {name}" for name in in_wheel if name.endswith((".c", ".pyx", ".o"))]
        if missing or surplus:
            sys.exit(
                "\n".join(
                    [
                        *(f"missing from the {name}" for name in missing),
                        *(f"not wanted in the {name}" for name in surplus),
                    ]
                )
            )
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {site!r}); {PROGRAM}"]
        answer = subprocess.run(command, cwd=site, capture_output=True, text=True)
    if answer.returncode or site not in answer.stdout:
        sys.exit(f"the wheel's copy does not run:\n{answer.stdout}{answer.stderr}")
    print(f"{sdist.name}: {len(in_sdist)} files; {wheel.name}: {len(in_wheel)} files; all that is needed is there")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
