"""The C core compiled once more, with flags of its own, for what breaks it on purpose: mutants, sanitizers, fuzzers.

No Python of fastce is needed. Objects are kept, and compiled again when a source is newer.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "src_c"
TESTS = ROOT / "tests" / "c"
CC = os.environ.get("CC", "cc")
COMMON = ["-std=c11", "-ffp-contract=off", "-g1", "-w", f"-I{ROOT / 'fastce' / 'include'}", f"-I{TESTS}"]
"""No debug information beyond the lines, which is most of what takes time to write."""


def available_isas() -> list[str]:
    """Return the instruction sets of this machine's kind, best first."""
    if os.uname().machine == "aarch64":
        return ["neon", "portable"]
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return [name for name, flag in (("avx512", "avx512vl"), ("avx2", "avx2")) if flag in flags] + ["portable"]


@dataclass(frozen=True)
class Build:
    """One way to compile."""

    name: str
    isas: tuple[str, ...]
    flags: tuple[str, ...]
    link: tuple[str, ...] = ()
    cc: str = CC

    @property
    def folder(self) -> Path:
        return ROOT / "build" / "c" / self.name

    def compile(self, source: Path, target: Path, *, core: Path = CORE, flags: tuple[str, ...] = ()) -> None:
        rows = " ".join(f"X({name})" for name in self.isas)
        command = [self.cc, *COMMON, f"-DFASTCE_ISAS(X)={rows}", f"-I{core}", *self.flags, *flags]
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)

    def core_sources(self) -> list[Path]:
        kernels = [CORE / "isa" / f"{name}_{real}.c" for name in self.isas for real in ("f32", "f64")]
        return [*sorted(CORE.glob("*.c")), *kernels]

    def objects(self, sources: list[Path]) -> list[Path]:
        """Compile what is older than any source of the core or of the tests."""
        newest = max(
            p.stat().st_mtime for p in [*CORE.rglob("*.[ch]"), *TESTS.glob("*"), *ROOT.glob("fastce/include/*")]
        )
        targets = [self.folder / f"{source.stem}.o" for source in sources]
        stale = [(s, t) for s, t in zip(sources, targets, strict=True) if not t.exists() or t.stat().st_mtime <= newest]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda pair: self.compile(*pair), stale))
        return targets

    def program(self, source: Path, objects: list[Path]) -> Path:
        """Link a test program with objects of the core."""
        [main] = self.objects([source])
        program = self.folder / source.stem
        self.link_to(program, [main, *objects])
        return program

    def link_to(self, target: Path, objects: list[Path], *more: str) -> None:
        command = [self.cc, *self.flags, *more, *map(str, objects), *self.link, "-lm", "-o", str(target)]
        subprocess.run(command, check=True)
