"""`make fuzz`: the C functions under libFuzzer, where clang is there, then the readers of files; a minute each."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from c_builds import ROOT, Build  # noqa: E402

INSTRUMENTED = "-fsanitize=fuzzer-no-link,address,signed-integer-overflow,bounds,shift"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    seconds = parser.parse_args().seconds
    status = 0
    clang = next((name for name in ("clang", "clang-14", "clang-16", "clang-18") if shutil.which(name)), None)
    if clang is None:
        print("the C functions were not fuzzed: that needs clang and its runtime (Debian: clang, libclang-rt-dev)")
    else:
        build = Build("fuzz", ("portable",), ("-O1", INSTRUMENTED), cc=clang)
        [target, *core] = build.objects([HERE / "fuzz_calls.c", *build.core_sources()])
        program = build.folder / "fuzz_calls"
        build.link_to(program, [target, *core], "-fsanitize=fuzzer")
        corpus, findings = build.folder / "corpus", HERE / "findings"
        corpus.mkdir(exist_ok=True)
        findings.mkdir(exist_ok=True)
        before = set(findings.iterdir())
        options = [f"-max_total_time={seconds}", "-max_len=600", "-timeout=20", "-print_final_stats=1"]
        command = [str(program), *options, f"-artifact_prefix={findings}/", str(corpus), str(findings)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        status = done.returncode
        shown = [line for line in done.stderr.splitlines() if "stat::number_of_executed_units" in line]
        print("\n".join(shown) if status == 0 else done.stderr[-6000:])
        print(f"C functions: {seconds} s, {len(set(findings.iterdir()) - before)} findings")
    return status | subprocess.run([sys.executable, str(HERE / "fuzz_files.py"), "--seconds", str(seconds)]).returncode


if __name__ == "__main__":
    sys.exit(main())
