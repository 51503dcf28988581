"""The report in a real browser, headless: it opens, draws and sorts, asks for nothing from outside, fits its window.

The browser is Debian's chromium, or what CHROME names, driven by playwright; where there is none the tests are skipped.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastce._bench import compare, measure, results
from fastce._bench.baseline import BASELINE
from fastce._bench.cases import GRID, OUTPUTS, Case

pytest.importorskip("plotly")
report = pytest.importorskip("fastce._bench.report")
BROWSER = os.environ.get("CHROME") or shutil.which("chromium") or shutil.which("google-chrome")

WIDTHS = {"phone": 390, "desktop": 1280}


def made_up(scale: float = 1.0, runs: int = 7) -> results.Results:
    """A run as `fastce bench` would have it: times that a formula gives, no measuring."""
    rng = np.random.default_rng(3)
    speed = {"fastce cython": 9.0, "fastce numba": 7.0, "fastce numpy": 0.3, BASELINE.name: 0.5, measure.LIMIT: 10.0}
    cases = [Case("batch by classes", shape, output, threads=2) for output in OUTPUTS for shape in GRID]
    cases += [Case("dtype", (1_024, 1_000), "grad", dtype, threads=2) for dtype in ("float16", "float64")]
    cases += [Case("fresh", (16_384, 1_000), "grad fresh", threads=2), Case("threads", (16_384, 1_000), threads=1)]
    found = results.Results(
        {"processor": "A <Processor> & more", "threads used": "2", "fastce": "0", "numpy": "2", "Python": "3"},
        "fastce bench",
        "2026-01-01T00:00:00+00:00",
        memory=[results.PeakMemory(name, what, 1.5) for name in speed for what in OUTPUTS],
    )
    for case in cases:
        for system, rate in speed.items():
            seconds = (1e-6 + case.n_logits / rate / 1e9 / case.threads) * scale * (1 + 0.01 * rng.random(runs))
            errors = (None, None) if system == measure.LIMIT else (1e-8, 1e-7)
            found.measurements.append(measure.Measurement(case, system, seconds.tolist(), 0.1, *errors))
    found.measurements.append(measure.Measurement(cases[0], "torch", why_not="failed: <b>no</b>"))
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both kinds of page, as files."""
    folder = tmp_path_factory.mktemp("pages")
    old, new = made_up(), made_up(1.2)
    changes = compare.compare(old, new)
    texts = {"run": report.report(old), "comparison": report.comparison(old, new, changes, 0.1)}
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no browser: install chromium, or name one in CHROME")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


class Opened:
    """A page in a window, with what it said and asked for."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(".main-svg")


@pytest.fixture
def open_page(browser: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Opened]]:
    opened: list[Opened] = []

    def start(name: str = "run", width: int = 1280, scheme: str = "light") -> Opened:
        opened.append(Opened(browser, pages[name], width, scheme))
        return opened[-1]

    yield start
    for one in opened:
        one.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_opens(open_page: Callable[..., Opened], name: str, width: int, scheme: str) -> None:
    """No error, no request but for the file, nothing wider than the window, every picture drawn and of a size."""
    opened = open_page(name, width, scheme)
    page = opened.page
    assert opened.said == []
    assert len(opened.requests) == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    figures = page.query_selector_all("figure")
    assert len(figures) == (1 if name == "comparison" else 19)
    for figure in figures:
        drawing = figure.query_selector("[role=img]")
        assert len(drawing.get_attribute("aria-label")) > 40
        box = figure.query_selector(".main-svg").bounding_box()
        assert box["width"] > 250
        assert box["height"] > 150
    style = "getComputedStyle(document.body)"
    text, ground = page.evaluate(f"[{style}.color, {style}.backgroundColor]")
    assert (_lightness(text) > _lightness(ground)) == (scheme == "dark")
    assert page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill") == text


def _lightness(colour: str) -> float:
    return sum(float(part) for part in colour.strip("rgb()").split(","))


def column(page: Any, index: int) -> list[str]:
    values: list[str] = page.evaluate(
        "i => [...document.querySelectorAll('#table tbody tr')].map(row => row.cells[i].dataset.value)", index
    )
    return values


def test_sorting(open_page: Callable[..., Opened]) -> None:
    """By a press of a heading, with a mouse and with keys: numbers as numbers, text as text; what is missing last."""
    page = open_page().page
    heads = page.query_selector_all("#table thead th")
    names = [head.inner_text().rstrip(" ↕↑↓") for head in heads]
    for name, by_key in (("median, µs", False), ("of limit", True)):
        i = names.index(name)
        button = heads[i].query_selector("button")
        for order in ("ascending", "descending"):
            if by_key:
                button.focus()
                page.keyboard.press("Enter")
            else:
                button.click()
            assert heads[i].get_attribute("aria-sort") == order
            values = column(page, i)
            known = [float(value) for value in values if value]
            assert known == sorted(known, reverse=order == "descending")
            assert all(value == "" for value in values[len(known) :])
    heads[names.index("system")].query_selector("button").click()
    systems = column(page, names.index("system"))
    assert [name for name, after in itertools.pairwise(systems) if name.lower() > after.lower()] == []
    assert page.locator("th[aria-sort]").count() == 1


def test_words(open_page: Callable[..., Opened]) -> None:
    """What was found in a sentence; what is not ours is text, never markup; every measurement is in the table."""
    page = open_page().page
    assert "faster than plain NumPy" in page.locator(".finding").inner_text()
    assert "A <Processor> & more" in page.locator("#how").inner_text()
    assert page.locator("#how li").inner_text().endswith("failed: <b>no</b>")
    assert page.locator("#table tbody tr").count() == sum(bool(m.seconds) for m in made_up().measurements)
    assert page.locator("#memory tbody tr").count() == len(made_up().memory)


def test_a_page_without_a_browser(pages: dict[str, Path]) -> None:
    """No address in it leads out, plotly is in it once, and it is of a size to be sent around."""
    for path in pages.values():
        text = path.read_text(encoding="utf-8")
        assert text.count("plotly.js v") == 1
        markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
        assert not re.search(r"(src|href|url)\W+(https?:)?//", markup)
        assert "default-src 'none'" in markup
        assert len(text) < 7_000_000


def test_few_results() -> None:
    """A report of next to nothing, and of one system without the baseline."""
    empty = results.Results({}, "fastce bench", "2026")
    assert "0 figures" in report.report(empty)
    empty.measurements = [measure.Measurement(Case("asked for", (4, 3)), "fastce numba", [1e-6] * 5)]
    assert "plain NumPy was not among them" in report.report(empty)
