"""Fuzzes our own readers of files, spoiled at random: they must be read, or be refused in words.

These are `.npy` and `.safetensors`, the index of several of the latter, and the state of `fastce score --resume`.

A mutational driver of our own: nothing to install, and the formats are a header and bytes. A finding (an exception that
is no FileError, CommandError or OSError) is written to `findings`, whose files test_fuzz_findings.py reads on every
run.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

from fastce._cli._console import CommandError
from fastce._cli._resume import Saved, State, digest, partial_name
from fastce._cli._work import Result, Sum
from fastce._files import FileError, open_array

FINDINGS = Path(__file__).with_name("findings")
NUMBERS = [b"-1", b"0", b"1", b"18446744073709551616", b"9223372036854775807", b"1e400", b"NaN", b"4294967295", b"1.5"]
WORDS = [
    b"True",
    b"null",
    b"[]",
    b"{}",
    b"()",
    b"(3,)",
    b"'<f8'",
    b"'|O'",
    b'"F64"',
    b'"BF16"',
    b'"',
    b"'",
    b"[" * 2000,
]


def seeds() -> list[tuple[str, bytes]]:
    """Return good files of either kind: suffix and content."""
    found = []
    for array in (np.arange(6.0).reshape(2, 3), np.zeros((0, 4), ">f4"), np.array(7, "u2"), np.ones((2, 2, 2), "f2").T):
        for version in ((1, 0), (2, 0), (3, 0)):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, version)
            found.append((".npy", buffer.getvalue()))
    data = np.arange(6.0, dtype="<f4").tobytes()
    for dtype, shape in (("F32", [2, 3]), ("BF16", [3, 4]), ("U8", [24]), ("I64", [3, 1]), ("BOOL", [2, 0])):
        size = {"F32": 24, "BF16": 24, "U8": 24, "I64": 24, "BOOL": 0}[dtype]
        header = {"__metadata__": {"a": "b"}, "x": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
        text = json.dumps(header).encode()
        found.append((".safetensors", len(text).to_bytes(8, "little") + text + data))
    files = {"x.0": "part-1.safetensors", "x.1": "part-2.safetensors"}
    index = json.dumps({"metadata": {"total_size": 48}, "weight_map": files})
    found.append((".safetensors.index.json", index.encode()))
    found.append((".state", state()))
    return found


def state() -> bytes:
    """Return the state of a run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state")
        result = Result(20, Sum(1.5, 1e-20), Sum(20.0), Sum(float("nan")), 3, 1)
        State(path, "state", {"LOGITS": "0f", "--base": 2.0}).save(Saved(result, 1.5, partial_name(), 208), None)
        return path.read_bytes()


def spoil(data: bytes, rng: random.Random) -> bytes:
    """Return a file that is wrong in one to four ways; half of the time its length field is made to fit again."""
    spoiled = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(spoiled) + 1)
        way = rng.randrange(6)
        if way == 0 and spoiled:
            spoiled[at % len(spoiled)] ^= 1 << rng.randrange(8)
        elif way == 1:
            del spoiled[at : at + rng.randint(1, 40)]
        elif way == 2:
            spoiled[at:at] = rng.choice(NUMBERS + WORDS)
        elif way == 3:
            del spoiled[at:]
        else:
            digits = [i for i, byte in enumerate(spoiled) if 0x30 <= byte <= 0x39]
            if digits:
                i = rng.choice(digits)
                spoiled[i : i + 1] = rng.choice(NUMBERS + WORDS)
    if data[8:9] == b"{" and rng.random() < 0.5 and b"}}" in spoiled:
        end = spoiled.rindex(b"}}") + 2
        spoiled[:8] = max(end - 8, 0).to_bytes(8, "little")
    return bytes(spoiled)


def read_all(path: Path, bfloat16: bool) -> bool:
    """Read a file as `fastce score` would; tell whether it was accepted."""
    if path.suffix == ".state":
        return read_state(path)
    if path.suffix == ".json":
        header = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
        for number in (0, 1):
            text = json.dumps({f"x.{number}": header}).encode()
            path.with_name(f"part-{number + 1}.safetensors").write_bytes(
                len(text).to_bytes(8, "little") + text + bytes(24)
            )
    try:
        source = open_array(str(path), bfloat16, "x.*" if path.suffix == ".json" else None)
    except (FileError, OSError):
        return False
    if len(source.shape) and 0 not in source.shape:
        source.read((slice(0, 2),)).sum(dtype=np.float64)
    else:
        source.read((...,))
    return True


def read_state(path: Path) -> bool:
    """Read a state; once more under a checksum that fits, which a spoiled one has not by itself."""
    data = path.read_bytes()
    for fits in (False, True):
        if fits:
            try:
                found = json.loads(data)
                found.pop("check", None)
                path.write_text(json.dumps({**found, "check": digest(found)}))
            except (ValueError, AttributeError, TypeError, RecursionError):
                return False
        try:
            State(path, "state", {"LOGITS": "0f", "--base": 2.0}).load()
        except CommandError:
            continue
        return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng, good = random.Random(options.seed), seeds()
    executions = accepted = findings = 0
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        while time.monotonic() < end and findings < 10:
            suffix, data = rng.choice(good)
            data = spoil(data, rng)
            path = Path(folder, "file" + suffix)
            path.write_bytes(data)
            executions += 1
            try:
                accepted += read_all(path, rng.random() < 0.2)
            except Exception:
                findings += 1
                FINDINGS.mkdir(exist_ok=True)
                (FINDINGS / f"{executions}{suffix}").write_bytes(data)
                traceback.print_exc()
    print(f"readers of files: {executions} executions, {accepted} accepted, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
