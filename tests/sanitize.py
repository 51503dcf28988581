"""Runs the C tests, and of the contract suite what concerns the C core, under sanitizers.

`make sanitize` compiles every instruction set and runs everything; `--quick`, which is part of `make test`, takes plain
C alone, all of whose accesses the sanitizers see, and the tests that need no accuracy. AddressSanitizer and
UndefinedBehaviorSanitizer go together, without the latter's checks of every pointer, which take the compiler longer
than all the rest and find what the former finds. ThreadSanitizer has plain threads in place of OpenMP's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from c_builds import ROOT, TESTS, Build, available_isas

UNDEFINED = "bounds,signed-integer-overflow,shift,integer-divide-by-zero,float-cast-overflow,alignment,vla-bound"
ADDRESS = (f"-fsanitize=address,{UNDEFINED}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-fopenmp")
MORE = [
    *("test_torture.py", "test_row_statistics.py", "test_distillation.py", "test_focal.py", "test_family_values.py"),
    *("test_transforms.py", "test_sparse_targets.py"),
]
"""With the contract suite they reach every kernel; in each file, the tests of the C core."""


def run(command: list[str], **env: str) -> None:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-8000:]}")
    print("  ".join([Path(command[0]).name, *done.stdout.splitlines()[-1:]]), flush=True)


def library_of(cc: str, name: str) -> str:
    return subprocess.run([cc, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    started = time.monotonic()
    isas = ("portable",) if quick else tuple(available_isas())
    suffix = "quick" if quick else "all"

    address = Build(f"asan-{suffix}", isas, ("-O1", "-fPIC", *ADDRESS))
    core = address.objects(address.core_sources())
    everything = [path.stem for path in sorted(TESTS.glob("test_*.c"))]
    for name in [name for name in everything if not quick or name != "test_values"]:
        run([str(address.program(TESTS / f"{name}.c", core))])

    thread = Build(f"tsan-{suffix}", isas, ("-O1", "-fsanitize=thread"), link=("-lpthread",))
    seam = [TESTS / "plain_threads.c" if path.stem == "threads" else path for path in thread.core_sources()]
    core_of_threads = thread.objects(seam)
    for name in ["test_threads"] if quick else everything:
        run([str(thread.program(TESTS / f"{name}.c", core_of_threads))], TSAN_OPTIONS="halt_on_error=1")

    if not quick:  # the library takes the place of the one in the package, by its name
        library = address.folder / "libfastce.so"
        address.link_to(library, core, "-shared", "-Wl,-soname,libfastce.so")
        preload = f"{library_of(address.cc, 'libasan.so')} {library}"
        tests = ROOT / "tests"
        files = [str(path) for path in (*sorted(tests.glob("test_contract_*.py")), *(tests / name for name in MORE))]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "cython", *files]
        run(command, LD_PRELOAD=preload, ASAN_OPTIONS="detect_leaks=0", PYTHONMALLOC="malloc")
    print(f"sanitizers on {', '.join(isas)}: nothing found, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
