"""The command ``fastce-config``: what a C or C++ program is compiled and linked with."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

import fastce
from fastce._flags import PACKAGE, get_include, get_library


def answers() -> dict[str, tuple[str, str]]:
    """Return what each option prints, and its help."""
    include, folder = shlex.quote(get_include()), shlex.quote(str(PACKAGE))
    return {
        "cflags": (f"-I{include}", "what the compiler needs"),
        "libs": (f"-L{folder} -lfastce -Wl,-rpath,{folder}", "what the linker needs, for the program to run as well"),
        "includedir": (get_include(), "the directory of fastce.h"),
        "library": (get_library(), "the shared library"),
        "cmakedir": (str(PACKAGE / "share" / "cmake" / "fastce"), "what CMake takes as fastce_DIR"),
        "pkgconfigdir": (str(PACKAGE / "share" / "pkgconfig"), "what pkg-config takes in PKG_CONFIG_PATH"),
        "version": (fastce.__version__, "the version of the package"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is asked for, in the order of the list, on one line."""
    known = answers()
    parser = argparse.ArgumentParser(
        prog="fastce-config",
        description="Print what a C or C++ program is compiled and linked with.",
        epilog="example: cc program.c $(fastce-config --cflags --libs)",
    )
    for name, (_, help_text) in known.items():
        parser.add_argument(f"--{name}", action="store_true", help=help_text)
    asked = vars(parser.parse_args(argv))
    if not any(asked.values()):
        parser.print_help(sys.stderr)
        return 2
    print(" ".join(known[name][0] for name, wanted in asked.items() if wanted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
