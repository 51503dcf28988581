"""README and CONTRIBUTING are true: examples run, commands print what is shown, names and numbers are the code's.

What a machine decides (instruction set, threads, seconds, versions) is masked on both sides before they are compared.
"""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

from fastce._cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
VARIABLES = ("FASTCE_BACKEND", "FASTCE_NUM_THREADS", "FASTCE_ISA", "OMP_NUM_THREADS")

MASKS = (
    (r"\b(avx512|avx2|neon|portable|parallel|serial)\b", "VARIANT"),
    (r"\b\d+ threads?\b", "THREADS"),
    (r"at most \d+ \(.*?\)", "at most LIMIT"),
    (r"\b[\d.e-]+ s\b", "SECONDS"),
    (r"^(seconds|logits/s|GB/s)( +)\S.*$", r"\1\2TIMING"),
    (r"\d\.\de-\d\d \(relative\)", "DIFFERENCE (relative)"),
)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def masked(text: str) -> str:
    for pattern, name in MASKS:
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return text


class Checker(doctest.OutputChecker):
    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(masked(want), masked(got), optionflags)


def commands() -> list[tuple[str, str]]:
    """Each `$ fastce ...` of README with what it prints."""
    found = []
    for block in blocks(README, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, output = re.split(r"(?<!\\)\n", part, maxsplit=1)
            if command.startswith("fastce "):
                found.append((command.replace("\\\n", ""), output))
    return found


def test_python_examples() -> None:
    """As a reader runs them, one after the other in one session."""
    names: dict[str, object] = {}
    runner = doctest.DocTestRunner(checker=Checker())
    examples = blocks(README, "python")
    assert len(examples) > 4
    for number, text in enumerate(examples):
        test = doctest.DocTestParser().get_doctest(text, names, f"README, block {number}", None, None)
        assert test.examples
        said: list[str] = []
        runner.run(test, out=said.append, clear_globs=False)
        assert not said, "".join(said)
        names = test.globs


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that looks like the checkout and may be written to, and none of our environment variables."""
    (tmp_path / "fastce").symlink_to(ROOT / "fastce")
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize(("command", "output"), [c for c in commands() if c[0] != "fastce info"])
def test_commands(command: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(shlex.split(command)[1:])
    out, err = capsys.readouterr()
    assert masked(out or err) == masked(output)
    assert status == (2 if output.startswith("fastce: error: ") else 0)


@pytest.mark.usefixtures("checkout")
def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    """The same lines, whatever they say; one for each instruction set that this machine's kind has."""
    [shown] = [output for command, output in commands() if command == "fastce info"]
    assert main(["info"]) == 0
    names = [
        re.findall(r"^( *[\w ]+):(?! runs| not on)", text, re.MULTILINE) for text in (shown, capsys.readouterr().out)
    ]
    assert names[0] == names[1]


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """What it says of the real data; a small batch in place of the large one, whose figures are this machine's."""
    [shown] = [block for block in blocks(README, "console") if block.startswith("$ make demo\n")]
    assert main(["demo", "--rows", "8", "--classes", "100"]) == 0
    said = capsys.readouterr().out
    shown = shown[shown.index("Handwritten") :]
    digits, table = zip(
        *(re.split("^(?=Speed: )", masked(text), flags=re.MULTILINE) for text in (shown, said)), strict=True
    )
    assert digits[0] == digits[1]
    words = [[word for word in text.split() if not re.search(r"\d", word)] for text in table]
    assert words[0] == words[1]


def test_two_commands() -> None:
    """Exactly two set everything up; every target of make that is named anywhere exists."""
    shown = [line for block in blocks(README, "console") for line in block.splitlines() if line.startswith("$ make")]
    assert shown == ["$ make demo", "$ make test"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:`|^\$ |^    )make(?: -\w+)? ([a-z-]+)", README + CONTRIBUTING, re.MULTILINE)
    assert named
    assert set(named) <= targets


def test_environment_variables_are_all_there() -> None:
    table = README.partition("### Environment variables")[2]
    sources = "".join(path.read_text() for path in [*(ROOT / "fastce").glob("*.py"), ROOT / "setup.py"])
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == set(re.findall(r"environ(?:\.get)?[\[(]\"((?:FASTCE|OMP)_\w+)\"", sources))


def test_paths_that_are_named_exist() -> None:
    """In backquotes or as links; a name in angle brackets stands for several."""
    quoted = re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", README + CONTRIBUTING)
    paths = {name for name in quoted if "/" in name or re.search(r"\.(py|pyx|pxd|md|toml|[ch])$", name)}
    paths |= set(re.findall(r"\]\(([\w./-]+)\)", README + CONTRIBUTING))
    assert len(paths) > 20
    folders = [
        ROOT,
        *(ROOT / name for name in ("fastce", "fastce/include", "fastce/_backends", "src_c", "src_c/kernels", "tests")),
    ]
    assert {name for name in paths if not any((folder / name).exists() for folder in folders)} == set()


def test_names_that_are_quoted_occur() -> None:
    """A word in backquotes is a word of the code, of its tests or of what builds it; * and <> stand for anything."""
    texts = [path.read_text() for path in (ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "setup.py")]
    for folder in ("fastce", "src_c", "tests", "bench"):
        files = [path for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".pyx", ".pxd", ".c", ".h"}]
        texts += [path.stem + "\n" + path.read_text() for path in files]
    words = set(re.findall(r"\w+", "\n".join(texts)))
    quoted = {word for span in re.findall(r"`([\w.]+)`", CONTRIBUTING) for word in span.split(".") if word}
    assert len(quoted) > 50
    assert quoted <= words
