"""Breaks the kernels on purpose, one way after the other, and runs the C tests: each must notice.

`make mutants` takes all of them and exits with 1 when one survives; `--draw COMMIT` takes three, by the commit's hash.
Only what is mutated is compiled for each: one instruction set, the arithmetic of float32.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from c_builds import CORE, TESTS, Build, available_isas

PROGRAMS = ["test_rules", "test_values"]
DRAWN = 3
TIMEOUT = 300


class Mutant(NamedTuple):
    """In one file of src_c, a text that occurs once and what takes its place."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "two halves of a vector change places",
        "isa/avx2_f32.c",
        "return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);\n}\n/* See",
        "return _mm256_insertf128_ps(_mm256_castps128_ps256(high), low, 1);\n}\n/* See",
    ),
    Mutant("the maximum misses the tail", "kernels/rows.h", "if (i < b.n) m[1] = v_max(", "if (i > b.n) m[1] = v_max("),
    Mutant(
        "the sum misses a tail of one vector",
        "kernels/rows.h",
        "case 1:\n        add_tail(1, b, i, shifts, limit, sum, to, storage);",
        "case 1:",
    ),
    Mutant(
        "the exponential of NaN is a number",
        "kernels/functions.h",
        "v_max(v_set1(EXP_LOWEST), v_min(limit[j], x[j]))",
        "v_max(v_min(limit[j], x[j]), v_set1(EXP_LOWEST))",
    ),
    Mutant(
        "kept exponentials are rescaled the wrong way",
        "kernels/rows.h",
        "exp_one(w->shifts[first / BLOCK_CLASSES] - max)",
        "exp_one(max - w->shifts[first / BLOCK_CLASSES])",
    ),
    Mutant(
        "a block ends one class early",
        "kernels/rows.h",
        "n_classes - first : BLOCK_CLASSES;\n    const char *p",
        "n_classes - first : BLOCK_CLASSES - 1;\n    const char *p",
    ),
    Mutant(
        "the label stays in the sum", "kernels/rows.h", "[SHORT_CLASSES] = -INFINITY", "[SHORT_CLASSES] = EXP_HIGHEST"
    ),
    Mutant(
        "a label equal to the number of classes passes",
        "kernels/targets.h",
        "const uint64_t last = classes - 1;",
        "const uint64_t last = classes;",
    ),
    Mutant(
        "lanes beyond the last row count",
        "kernels/finish.h",
        "if (n < LANES) value = v_load_first(&s->value[i], n, zero);",
        "",
    ),
    Mutant(
        "ignored rows weigh like others",
        "kernels/targets.h",
        "weight[i] *= label[i] < 0 ? 0.0 : 1.0;",
        "",
    ),
    Mutant(
        "the gradient at the label has the wrong sign",
        "kernels/finish.h",
        "g.factor * (-rest * g.lowered)",
        "g.factor * (rest * g.lowered)",
    ),
    Mutant(
        "the derivative of a softcap keeps the temperature out",
        "kernels/staged.h",
        "v_set1(normal(4 / temperature))",
        "v_set1(4)",
    ),
    Mutant(
        "of a class that is listed twice the last mass counts",
        "kernels/sparse.h",
        "mass[first] += mass[j];",
        "mass[first] = mass[j];",
    ),
    Mutant(
        "a focal loss forgets that its factor has a slope",
        "kernels/finish.h",
        "slope[j] = v_mul(focus[j], v_fma(gamma.g, v_select(some, v_div(log_total[j], rest[j]), one), one));",
        "slope[j] = focus[j];",
    ),
]


# One with vectors that is quick to compile, where there is one.
ISA = next(name for name in ("avx2", "neon", "portable") if name in available_isas())
BUILD = Build("mutants", (ISA,), ("-O1",))
KERNELS = f"{ISA}_f32"


def passes(objects: list[Path], folder: Path) -> bool:
    """Tell whether all tests pass with these objects. A crash and a hang are failures."""
    for name in PROGRAMS:
        [test] = BUILD.objects([TESTS / f"{name}.c"])
        BUILD.link_to(folder / name, [test, *objects])
        try:
            done = subprocess.run([str(folder / name)], capture_output=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return False
        if done.returncode:
            return False
    return True


def survives(mutant: Mutant, base: list[Path], folder: Path) -> bool:
    core = folder / "src_c"
    shutil.copytree(CORE, core)
    path = core / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        sys.exit(f"{mutant.name}: {mutant.file} has {text.count(mutant.old)} times\n{mutant.old}")
    path.write_text(text.replace(mutant.old, mutant.new))
    target = folder / "mutant.o"
    BUILD.compile(core / "isa" / f"{KERNELS}.c", target, core=core)
    return passes([*(path for path in base if path.stem != KERNELS), target], folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", metavar="COMMIT", help="take a few, by this hash")
    drawn_by = parser.parse_args().draw
    each = BUILD.folder / "each"
    shutil.rmtree(each, ignore_errors=True)
    each.mkdir(parents=True)
    chosen = [m for m in MUTANTS if not m.file.startswith("isa/") or Path(m.file).stem == KERNELS]
    if drawn_by is not None:
        seed = int.from_bytes(hashlib.sha256(drawn_by.encode()).digest(), "big")
        chosen = random.Random(seed).sample(chosen, DRAWN)
    started = time.monotonic()
    base = BUILD.objects(BUILD.core_sources())
    if not passes(base, BUILD.folder):
        sys.exit("the C tests fail without a mutant")

    def try_one(i: int) -> bool:
        folder = each / str(i)
        folder.mkdir()
        return survives(chosen[i], base, folder)

    survivors = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, survived in zip(chosen, pool.map(try_one, range(len(chosen))), strict=True):
            survivors += survived
            print(f"{'SURVIVED' if survived else 'noticed '}  {mutant.name} ({mutant.file})", flush=True)
    shutil.rmtree(each)
    print(f"{len(chosen)} mutants on {ISA}, {survivors} survived, {time.monotonic() - started:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
