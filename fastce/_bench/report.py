"""The report: results as one HTML file that needs nothing else, no network either.

The script of plotly is inlined once; report.css and report.js are the page's own. Every number in a picture is also in
a table, which is what a screen reader gets.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from fastce._bench.cases import Case
from fastce._bench.compare import CONFIDENCE, Change, sentence
from fastce._bench.figures import Figure, Figures, changes_figure
from fastce._bench.measure import LIMIT
from fastce._bench.results import Results
from fastce._bench.system import short_name


def report(results: Results) -> str:
    """Return the page for one run."""
    table = Figures(results)
    sections = [
        _section("Speed-up over plain NumPy, batch by classes", table.maps(), "maps", MAPS),
        _section("Throughput, and how close to the roof", table.throughput(), "roof", ROOF),
        _section("Scaling with threads and with the batch", table.scaling(), "scaling", SCALING),
        _section("Small calls", table.latency(), "latency", LATENCY),
        _section("Dtypes, and where the gradient goes", table.variants(), "variants", VARIANTS),
        _section("Memory", table.memory(), "memory", MEMORY, _memory_table(results)),
        _section("Accuracy beside speed", table.accuracy(), "accuracy", ACCURACY),
        _html_section("Every figure", _figures_table(results, table), "table", TABLE),
        _html_section("How it was measured", _how(results), "how", ""),
    ]
    return _page("fastce benchmark", table.finding(), table.first(), sections, _about(results))


def comparison(old: Results, new: Results, changes: Sequence[Change], limit: float | None) -> str:
    """Return the page that holds two runs beside each other."""
    shown = sorted(changes, key=lambda change: change.ratio)[-40:] if len(changes) > 40 else list(reversed(changes))
    picture = changes_figure(shown)
    sections = [
        _html_section("Every case", _changes_table(changes), "table", COMPARED),
        _html_section("The earlier run", _how(old), "old", ""),
        _html_section("The later run", _how(new), "new", ""),
    ]
    return _page("fastce benchmark: two runs", sentence(changes, limit), [picture], sections, _about(new))


POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""What the browser may load: nothing that is not in the file."""

MAPS = """How many times faster than plain NumPy, the formula one writes without a library, for integer labels and
logits of the dtype that most cases have (float32 unless another was asked for), with all threads. Brighter is faster;
a field that was not measured is empty."""
ROOF = """Bytes that must be moved (logits and labels read, the gradient written) over the time taken, of the largest
batch measured for each number of classes. The dashed line is what the memory of this machine gave in the same rounds,
to a loop that moves the same arrays and computes nothing; arrays that fit in a cache are held against the cache."""
SCALING = "With threads: against one thread of the same system. With the batch: what one logit costs, of 1,000 classes."
LATENCY = "What a call costs when there is next to nothing to compute, as a user calls it, checks included."
VARIANTS = """Logits a second by dtype, and what it costs to have the gradient in an array that the call must make: the
system hands out fresh memory page by page."""
MEMORY = """The most memory a call took beyond its arrays, for 1,024 × 32,000 float32 logits (125 MiB), each system in a
process of its own, after its first call."""
ACCURACY = """Every answer was compared with the formula in float64 before it was timed. Lower is more exact, further
right is faster. A mean over many rows hides the error of a single row: how exact rows are, docs/accuracy.md says."""
TABLE = """Press a heading to sort. Times are medians of interleaved rounds; the spread is half the distance of the
quartiles. The first call contains what a system compiles. Errors are those of the checked answer: of the loss relative
to it, of the gradient relative to its largest number."""
COMPARED = f"""New time over old time; the interval holds the true ratio in {CONFIDENCE:.0%} of cases, if the machine
was the same (Hodges-Lehmann, Mann-Whitney). An interval with 1 in it is called noise. Press a heading to sort."""


# --- the page ---------------------------------------------------------------------------------------------------------


def _page(title: str, finding: str, first: list[Figure], sections: list[tuple[str, str, str]], about: str) -> str:
    from plotly.offline import get_plotlyjs

    own = resources.files("fastce._bench")
    contents = "".join(
        f'<li><a href="#{anchor}">{html.escape(name)}</a></li>' for anchor, name, _ in sections if anchor
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{own.joinpath("report.css").read_text()}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
<p class="finding">{html.escape(finding)}</p>
<p class="dim">{about}</p>
</header>
<main>
<div class="figures">{"".join(_figure(figure, f"first-{i}") for i, figure in enumerate(first))}</div>
<nav aria-label="Sections"><ul>{contents}</ul></nav>
{"".join(content for _, _, content in sections)}
</main>
<script>{get_plotlyjs()}</script>
<script>{own.joinpath("report.js").read_text()}</script>
</body>
</html>
"""


def _section(title: str, figures: list[Figure], anchor: str, text: str, more: str = "") -> tuple[str, str, str]:
    """Return a section with figures, and what is below them; one without any is left out."""
    if not figures:
        return "", "", ""
    drawn = "".join(_figure(figure, f"{anchor}-{i}") for i, figure in enumerate(figures))
    return _html_section(title, f'<div class="figures">{drawn}</div>{more}', anchor, text)


def _html_section(title: str, content: str, anchor: str, text: str) -> tuple[str, str, str]:
    words = f"<p>{html.escape(text)}</p>" if text else ""
    return anchor, title, f'<section id="{anchor}"><h2>{html.escape(title)}</h2>{words}{content}</section>\n'


def _figure(figure: Figure, identity: str) -> str:
    caption = f"<figcaption>{html.escape(figure.caption)}</figcaption>" if figure.caption else ""
    content = json.dumps(json.loads(figure.drawing.to_json())).replace("<", "\\u003c")
    height = figure.drawing.layout.height
    return (
        f"<figure><h3>{html.escape(figure.title)}</h3>"
        f'<div id="{identity}" role="img" style="height:{height}px"'
        f' aria-label="{html.escape(f"{figure.title}. {figure.words}")}"></div>{caption}'
        f'<script type="application/json" data-figure="{identity}">{content}</script></figure>'
    )


def _sortable(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], n_text: int) -> str:
    """Return a table; a cell is text, or a number with the text it is shown as, or None. The first columns are text."""
    head = "".join(
        f'<th scope="col"{" class=text" if i < n_text else ""}><button type="button">{html.escape(name)}</button></th>'
        for i, name in enumerate(columns)
    )
    body = []
    for row in rows:
        cells = []
        for i, cell in enumerate(row):
            value, shown = cell if isinstance(cell, tuple) else (cell, "" if cell is None else str(cell))
            data = "" if value is None else html.escape(repr(value) if isinstance(value, float) else str(value))
            kind = 'th scope="row"' if i == 0 else 'td class="text"' if i < n_text else "td"
            cells.append(f'<{kind} data-value="{data}">{html.escape(shown)}</{kind.partition(" ")[0]}>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


COLUMNS = ("case", "system", "threads", "logits", "median, µs", "spread", "runs", "× plain NumPy", "G logits/s", "GB/s",
           "of limit", "error of loss", "error of gradient", "first call, s")  # fmt: skip


def _figures_table(results: Results, table: Figures) -> str:
    rows: list[list[Any]] = []
    for m in results.measurements:
        if not m.seconds:
            continue
        limit = m.system == LIMIT
        up, share = (None, None) if limit else (table.speed_up(m), table.share(m))
        rows.append([
            _case_name(m.case), short_name(m.system), m.case.threads, (m.case.n_logits, f"{m.case.n_logits:,}"),
            (m.median * 1e6, f"{m.median * 1e6:,.1f}"), (m.spread, f"{m.spread:.1%}"), len(m.seconds),
            _shown(up, "{:.2f}"), _shown(None if limit else m.case.n_logits / m.median / 1e9, "{:.2f}"),
            (m.bytes_per_second / 1e9, f"{m.bytes_per_second / 1e9:.1f}"), _shown(share, "{:.0%}"),
            _shown(m.loss_error, "{:.1e}"), _shown(m.grad_error, "{:.1e}"), _shown(m.first_call or None, "{:.3g}"),
        ])  # fmt: skip
    return _sortable("Every figure", COLUMNS, rows, 2)


def _memory_table(results: Results) -> str:
    rows = [[short_name(m.system), m.what, (m.mib, f"{m.mib:.1f}")] for m in results.memory]
    return _sortable("Peak memory of a call", ("system", "what", "MiB beyond the arrays"), rows, 2)


def _changes_table(changes: Sequence[Change]) -> str:
    columns = ("case", "system", "verdict", "new / old", "from", "to", "old, µs", "new, µs", "runs old", "runs new")
    rows = [
        [
            *(_case_name(c.new.case), short_name(c.new.system), c.verdict),
            *(
                _shown(c.ratio, "{:.3f}"),
                _shown(c.low, "{:.3f}"),
                _shown(c.high if c.high < math.inf else None, "{:.3f}"),
            ),
            *(_shown(m.median * 1e6, "{:,.1f}") for m in (c.old, c.new)),
            *(len(m.seconds) for m in (c.old, c.new)),
        ]
        for c in changes
    ]
    return _sortable("Every case", columns, rows, 3)


def _how(results: Results) -> str:
    facts = {
        **results.machine,
        "date": results.date,
        "command": results.command,
        "complete": "yes" if results.complete else "no: the run was interrupted, what had been measured is here",
    }
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    failures = dict.fromkeys(
        f"{m.system}, {m.case.name}: {m.why_not}"
        for m in results.measurements
        if m.why_not.startswith(("wrong", "failed"))
    )
    listed = "".join(f"<li>{html.escape(line)}</li>" for line in failures)
    return f"<dl>{items}</dl>" + (f"<p>Not timed:</p><ul>{listed}</ul>" if listed else "")


def _about(results: Results) -> str:
    facts = results.machine
    parts = [facts.get("processor", ""), f"{facts['threads used']} threads" if "threads used" in facts else "",
             f"fastce {facts['fastce']}" if "fastce" in facts else "", results.date[:10]]  # fmt: skip
    made = f"made by <code>{html.escape(results.command)}</code>"
    return " · ".join([*(html.escape(part) for part in parts if part), made])


def _case_name(case: Case) -> str:
    return case.name.replace("x", " × ", 1) if case.function == "cross_entropy" and len(case.shape) == 2 else case.name


def _shown(value: float | None, form: str) -> tuple[float | None, str]:
    return value, "" if value is None else form.format(value)
