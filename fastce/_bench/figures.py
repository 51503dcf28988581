"""The pictures of a report, drawn by plotly; each also in words.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; each system has its own symbol and dash
beside its colour. A picture for which nothing was measured is left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastce._bench.baseline import BASELINE
from fastce._bench.compare import Change
from fastce._bench.measure import LIMIT, Measurement
from fastce._bench.results import Results
from fastce._bench.system import short_name

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#8C8C8C", "#CC79A7", "#D55E00", "#56B4E9", "#B8A800")
SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star", "cross", "hexagon")
DASHES = ("solid", "dash", "dashdot", "dot", "longdash", "longdashdot", "solid", "dash")

MAP_COLOURS = "Cividis"
"""Ordered by lightness alone, so that it reads the same to everyone and in print."""

SMALLEST_ERROR = 1e-17
"""What no error at all is drawn as, on an axis of logarithms."""

OUTPUT_NAMES = {"forward": "forward", "grad": "forward + gradient", "grad fresh": "forward + gradient, fresh array"}


class Figure(NamedTuple):
    """A picture, what it is called, what it shows in words, and what to know when reading it."""

    title: str
    words: str
    caption: str
    drawing: Any


class Figures:
    """Results, looked up by what a picture needs."""

    def __init__(self, results: Results) -> None:
        self.results = results
        timed = [m for m in results.measurements if m.seconds]
        self.timed = [m for m in timed if m.system != LIMIT]
        self.limits = {m.case: m for m in timed if m.system == LIMIT}
        self.baseline = {m.case: m for m in timed if m.system == BASELINE.name}
        names = dict.fromkeys(m.system for m in self.timed)
        self.systems = list(names)
        self.most_threads = max((m.case.threads for m in self.timed), default=1)

    def style(self, system: str) -> dict[str, Any]:
        i = self.systems.index(system) % len(COLOURS)
        return {
            "name": short_name(system),
            "marker": {"color": COLOURS[i], "symbol": SYMBOLS[i], "size": 9},
            "line": {"color": COLOURS[i], "dash": DASHES[i], "width": 2.5},
        }

    def speed_up(self, m: Measurement) -> float | None:
        base = self.baseline.get(m.case)
        return base.median / m.median if base else None

    def share(self, m: Measurement) -> float | None:
        limit = self.limits.get(m.case)
        return m.bytes_per_second / limit.bytes_per_second if limit else None

    def plain(self, output: str, dtype: str = "float32", threads: int | None = None) -> list[Measurement]:
        """Return plain cases, by default with all threads, each shape and system once."""
        threads = threads or self.most_threads
        chosen = {
            (m.case.shape, m.system): m
            for m in self.timed
            if m.case.plain
            and (m.case.output, m.case.dtype, m.case.threads) == (output, dtype, threads)
            and len(m.case.shape) == 2
        }
        return list(chosen.values())

    def main_dtype(self) -> str:
        dtypes = [m.case.dtype for m in self.timed]
        return max(dict.fromkeys(dtypes), key=dtypes.count, default="float32")

    def main_output(self) -> str:
        return "grad" if self.plain("grad", self.main_dtype()) else "forward"

    def largest(self, output: str) -> dict[int, list[Measurement]]:
        """Return, for each number of classes, the measurements of the largest batch."""
        found: dict[int, list[Measurement]] = {}
        for m in sorted(self.plain(output, self.main_dtype()), key=lambda m: -m.case.n_logits):
            group = found.setdefault(m.case.n_classes, [])
            if not group or group[0].case.shape == m.case.shape:
                group.append(m)
        return dict(sorted(found.items()))

    def finding(self) -> str:
        """Say what was found in a sentence."""
        known = [m for m in self.timed if m.case.dtype == self.main_dtype()]
        ours = [m for m in known if m.system == "fastce cython"]
        ours = ours or [m for m in known if m.system.startswith("fastce")]
        ours = [m for m in ours if m.case.threads == self.most_threads and m.case.output in ("forward", "grad")]
        pairs = [(up, m) for m in ours if (up := self.speed_up(m)) is not None]
        if not pairs:
            return f"{len(self.timed)} figures of {len(self.systems)} systems; plain NumPy was not among them."
        ups = sorted(up for up, _ in pairs)
        text = (
            f"On this machine fastce is {_times(statistics.median(ups))} faster than plain NumPy"
            f" (median of {len(ups)} cases; from {_times(ups[0])} to {_times(ups[-1])})"
        )
        large = [share for _, m in pairs if m.case.bytes_held >= 64 << 20 and (share := self.share(m))]
        if large:
            text += f", and moves large arrays at {_range([round(100 * s) for s in large])} % of what memory allows"
        return text + "."

    def first(self) -> list[Figure]:
        """Draw the speed-up of every system on the largest batches."""
        output = self.main_output()
        groups = self.largest(output)
        drawing = _drawing(xaxis={"title": "times faster", "rangemode": "tozero"}, yaxis={"autorange": "reversed"})
        names = [f"{_number(group[0].case.n_rows)} × {_number(c)}" for c, group in groups.items()]
        words, drawn = [], 0
        for system in self.systems:
            ups = [self._up_of(group, system) for group in groups.values()]
            if system == BASELINE.name or not any(ups):
                continue
            drawn += 1
            style = self.style(system)
            drawing.add_bar(
                y=names, x=ups, orientation="h", name=style["name"], marker_color=style["marker"]["color"],
                text=[_times(up) if up else "" for up in ups], textposition="outside", cliponaxis=False,
            )  # fmt: skip
            words.append(f"{style['name']} {', '.join(_times(up) for up in ups if up)}")
        drawing.update_layout(barmode="group", height=120 + len(groups) * (18 + 18 * drawn), margin_r=45)
        drawing.add_vline(x=1, line_dash="dot", line_color="#8C8C8C")
        title = f"Speed-up over plain NumPy, {OUTPUT_NAMES[output]}, {self.main_dtype()}"
        return [Figure(title, f"{'; '.join(words)}.", "Batch × classes. The dotted line is plain NumPy.", drawing)]

    def _up_of(self, group: list[Measurement], system: str) -> float | None:
        return next((self.speed_up(m) for m in group if m.system == system), None)

    def maps(self) -> list[Figure]:
        """Draw a map for each backend and output, all on one scale; a batch with a single class size is no row."""
        maps = {}
        for system in [name for name in self.systems if name.startswith("fastce")]:
            for output in ("forward", "grad"):
                measured = [m for m in self.plain(output, self.main_dtype()) if m.system == system]
                batches = [m.case.n_rows for m in measured]
                maps[f"{short_name(system)}, {OUTPUT_NAMES[output]}"] = {
                    (m.case.n_rows, m.case.n_classes): up
                    for m in measured
                    if batches.count(m.case.n_rows) > 1 and (up := self.speed_up(m)) is not None
                }
        most = max((up for cells in maps.values() for up in cells.values()), default=1.0)
        return [_map(title, cells, most) for title, cells in maps.items() if cells]

    def throughput(self) -> list[Figure]:
        figures = []
        for output in ("forward", "grad"):
            groups = self.largest(output)
            if len(groups) < 2:
                continue
            drawing = _drawing(
                xaxis={
                    "title": "classes",
                    "type": "log",
                    "tickvals": list(groups),
                    "ticktext": [_number(c) for c in groups],
                },
                yaxis={"title": "GB/s", "type": "log"},
            )
            words = []
            for system in self.systems:
                points = [(c, m) for c, group in groups.items() for m in group if m.system == system]
                self._line(drawing, system, [c for c, _ in points], [m.bytes_per_second / 1e9 for _, m in points])
                shares = [share for _, m in points if (share := self.share(m))]
                if shares and system.startswith("fastce"):
                    words.append(f"{short_name(system)} at {_range([round(100 * s) for s in shares])} % of the limit")
            roof = [(c, self.limits[group[0].case]) for c, group in groups.items() if group[0].case in self.limits]
            drawing.add_scatter(
                x=[c for c, _ in roof], y=[m.bytes_per_second / 1e9 for _, m in roof], mode="lines",
                name="memory limit", line={"color": "#CC3311", "dash": "dash", "width": 2},
            )  # fmt: skip
            title = f"GB/s by number of classes, {OUTPUT_NAMES[output]}"
            figures.append(Figure(title, f"{'; '.join(words)}.", "Both axes are logarithmic.", drawing))
        return figures

    def scaling(self) -> list[Figure]:
        figures = []
        by_threads: dict[tuple[Any, ...], dict[int, Measurement]] = {}
        for m in self.timed:
            if m.case.plain and m.system != BASELINE.name:
                by_threads.setdefault((m.system, m.case.shape, m.case.output, m.case.dtype), {})[m.case.threads] = m
        for output in ("forward", "grad"):
            chosen = {k: v for k, v in by_threads.items() if k[2] == output and len(v) > 1 and 1 in v}
            if not chosen:
                continue
            drawing = _drawing(
                xaxis={"title": "threads", "dtick": 1}, yaxis={"title": "times one thread", "rangemode": "tozero"}
            )
            words = []
            shapes = sorted({shape for _, shape, *_ in chosen}, key=math.prod)
            for (system, shape, *_), group in chosen.items():
                counts = sorted(group)
                ups = [group[1].median / group[count].median for count in counts]
                label = f"{short_name(system)}, {_shape(shape)}"
                self._line(drawing, system, counts, ups, label, DASHES[shapes.index(shape) % len(DASHES)])
                words.append(f"{label} {ups[-1]:.2f} times with {counts[-1]} threads")
            most = max(max(group) for group in chosen.values())
            drawing.add_scatter(
                x=[1, most], y=[1, most], mode="lines", name="ideal", line={"color": "#8C8C8C", "dash": "dot"}
            )
            figures.append(Figure(f"Threads, {OUTPUT_NAMES[output]}", f"{'; '.join(words)}.", "", drawing))
        for output in ("forward", "grad"):
            rows = [m for m in self.plain(output, self.main_dtype()) if m.case.n_classes == 1_000]
            if len({m.case.n_rows for m in rows}) < 2:
                continue
            drawing = _drawing(xaxis={"title": "rows", "type": "log"}, yaxis={"title": "ns a logit", "type": "log"})
            for system in self.systems:
                points = sorted((m.case.n_rows, m.median / m.case.n_logits * 1e9) for m in rows if m.system == system)
                self._line(drawing, system, [x for x, _ in points], [y for _, y in points])
            figures.append(Figure(f"Batch size, {OUTPUT_NAMES[output]}", "Cost of a logit by batch size.", "", drawing))
        return figures

    def latency(self) -> list[Figure]:
        """Draw the time of calls of at most a thousand logits."""
        figures = []
        for output in ("forward", "grad"):
            small = [m for m in self.plain(output, self.main_dtype()) if m.case.n_logits <= 1_000]
            shapes = sorted({m.case.shape for m in small}, key=math.prod)
            drawing = _drawing(yaxis={"title": "µs a call", "type": "log"}, xaxis={"type": "category"})
            words = []
            for system in self.systems:
                by_shape = {m.case.shape: m.median * 1e6 for m in small if m.system == system}
                found = [shape for shape in shapes if shape in by_shape]
                if found:
                    times = [by_shape[shape] for shape in found]
                    self._line(drawing, system, [_shape(shape) for shape in found], times)
                    words.append(f"{short_name(system)} {_range(times)} µs")
            if words:
                figures.append(Figure(f"Small calls, {OUTPUT_NAMES[output]}", f"{'; '.join(words)}.", "", drawing))
        return figures

    def variants(self) -> list[Figure]:
        """Draw logits a second by dtype, of the shape that has most of them; and by where the gradient goes."""
        figures = []
        full = [m.case for m in self.timed if m.case.plain and m.case.threads == self.most_threads]
        for output in ("forward", "grad"):
            by_shape: dict[tuple[int, ...], set[str]] = {}
            for case in full:
                if case.output == output:
                    by_shape.setdefault(case.shape, set()).add(case.dtype)
            shape = max(by_shape, key=lambda shape: (len(by_shape[shape]), -math.prod(shape)), default=())
            if len(by_shape.get(shape, ())) > 1:
                places = {dtype: (shape, output, dtype) for dtype in sorted(by_shape[shape])}
                figures.append(self._bars(f"Dtypes, {_shape(shape)}, {OUTPUT_NAMES[output]}", places))
        kinds = {(case.shape, case.output, case.dtype) for case in full}
        places = {}
        for shape, output, dtype in sorted(kinds):
            if output == "grad fresh" and (shape, "grad", dtype) in kinds:
                places[f"{_shape(shape)}, into out="] = (shape, "grad", dtype)
                places[f"{_shape(shape)}, fresh array"] = (shape, output, dtype)
        if places:
            figures.append(self._bars("Gradient into out= and into a fresh array", places))
        return figures

    def _bars(self, title: str, places: dict[str, tuple[tuple[int, ...], str, str]]) -> Figure:
        """Draw logits a second of every system, at each place: a shape, an output and a dtype."""
        drawing = _drawing(yaxis={"title": "G logits/s", "rangemode": "tozero"}, barmode="group")
        words = []
        for system in self.systems:
            found: dict[tuple[tuple[int, ...], str, str], float] = {
                (m.case.shape, m.case.output, m.case.dtype): m.case.n_logits / m.median / 1e9
                for m in self.timed
                if m.system == system and m.case.plain and m.case.threads == self.most_threads
            }
            heights = [found.get(place) for place in places.values()]
            if any(heights):
                style = self.style(system)
                drawing.add_bar(x=list(places), y=heights, name=style["name"], marker_color=style["marker"]["color"])
                shown = [f"{name} {height:.2f}" for name, height in zip(places, heights, strict=True) if height]
                words.append(f"{style['name']}: {', '.join(shown)}")
        return Figure(title, f"G logits a second. {'; '.join(words)}.", "", drawing)

    def memory(self) -> list[Figure]:
        if not self.results.memory:
            return []
        drawing = _drawing(yaxis={"title": "MiB beyond the arrays", "rangemode": "tozero"}, barmode="group")
        systems = list(dict.fromkeys(m.system for m in self.results.memory))
        for i, what in enumerate(dict.fromkeys(m.what for m in self.results.memory)):
            by_system = {m.system: m.mib for m in self.results.memory if m.what == what}
            drawing.add_bar(
                x=[short_name(s) for s in systems], y=[by_system.get(s) for s in systems],
                name=OUTPUT_NAMES.get(what, what),
                marker_color=COLOURS[i], text=[f"{by_system[s]:.1f}" if s in by_system else "" for s in systems],
                textposition="outside", cliponaxis=False,
            )  # fmt: skip
        words = "; ".join(f"{short_name(m.system)}, {m.what} {m.mib:.1f} MiB" for m in self.results.memory)
        return [Figure("Peak memory of a call", f"{words}.", "", drawing)]

    def accuracy(self) -> list[Figure]:
        """Draw the errors of the checked answers against speed, of a million logits or more."""
        figures = []
        for what, output in (("loss", "forward"), ("gradient", "grad")):
            errors = {
                (m.system, m.case.shape): m.loss_error if what == "loss" else m.grad_error
                for m in self.plain(output, self.main_dtype())
            }
            drawing = _drawing(
                xaxis={"title": "G logits/s", "type": "log"},
                yaxis={"title": f"error of the {what}", "type": "log", "exponentformat": "power"},
            )
            words = []
            for system in self.systems:
                points = [
                    (m, max(error, SMALLEST_ERROR))
                    for m in self.plain(output, self.main_dtype())
                    if m.system == system and m.case.n_logits >= 1e6
                    if (error := errors[m.system, m.case.shape]) is not None
                ]
                if not points:
                    continue
                style = self.style(system)
                drawing.add_scatter(
                    x=[m.case.n_logits / m.median / 1e9 for m, _ in points], y=[error for _, error in points],
                    mode="markers", name=style["name"], marker={**style["marker"], "size": 11},
                    text=[_shape(m.case.shape) for m, _ in points],
                    hovertemplate="%{text}<br>%{x:.2f} G logits/s<br>%{y:.1e}",
                )  # fmt: skip
                words.append(f"{style['name']} up to {max(error for _, error in points):.1e}")
            if words:
                figures.append(Figure(f"Error of the {what}, against speed", f"{'; '.join(words)}.", "", drawing))
        return figures

    def _line(self, drawing: Any, system: str, x: list[Any], y: list[Any], label: str = "", dash: str = "") -> None:
        if x:
            style = self.style(system)
            style["name"] = label or style["name"]
            style["line"]["dash"] = dash or style["line"]["dash"]
            drawing.add_scatter(x=x, y=y, mode="lines+markers", **style)


def _drawing(**layout: Any) -> Any:
    from plotly import graph_objects

    drawing = graph_objects.Figure()
    drawing.update_layout(
        template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", height=360,
        font={"family": "system-ui, sans-serif", "size": 13}, margin={"l": 10, "r": 10, "t": 20, "b": 10},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, hoverlabel={"namelength": -1},
        xaxis={"automargin": True}, yaxis={"automargin": True},
    )  # fmt: skip
    drawing.update_layout(**layout)
    for axis in (drawing.layout.xaxis, drawing.layout.yaxis):
        if axis.type == "log" and axis.tickvals is None:
            axis.dtick = "D2"
            axis.exponentformat = axis.exponentformat or "none"
    return drawing


def _map(title: str, cells: dict[tuple[int, int], float], most: float) -> Figure:
    from plotly import graph_objects

    rows, classes = sorted({r for r, _ in cells}), sorted({c for _, c in cells})
    drawing = _drawing(xaxis={"title": "classes", "type": "category"}, yaxis={"title": "rows", "type": "category"})
    drawing.add_trace(
        graph_objects.Heatmap(
            x=[_number(c) for c in classes], y=[_number(r) for r in rows],
            z=[[math.log10(cells[r, c]) if (r, c) in cells else None for c in classes] for r in rows],
            text=[[_times(cells[r, c]) if (r, c) in cells else "" for c in classes] for r in rows],
            texttemplate="%{text}", textfont={"size": 14}, hovertemplate="%{y} × %{x}: %{text}<extra></extra>",
            colorscale=MAP_COLOURS, zmin=0, zmax=math.log10(max(most, 2.0)), showscale=False, xgap=2, ygap=2,
        )
    )  # fmt: skip
    ups = sorted(cells.values())
    return Figure(
        title, f"From {_times(ups[0])} to {_times(ups[-1])}, median {_times(statistics.median(ups))}.", "", drawing
    )


def changes_figure(changes: Sequence[Change]) -> Figure:
    drawing = _drawing(xaxis={"title": "new time over old time"})
    kinds = {
        "slower": ("#D55E00", "triangle-right"),
        "faster": ("#0072B2", "triangle-left"),
        "noise": ("#8C8C8C", "circle"),
    }
    for verdict, (colour, symbol) in kinds.items():
        of_kind = [c for c in changes if c.verdict == verdict]
        drawing.add_scatter(
            x=[c.ratio for c in of_kind], y=[c.name for c in of_kind], mode="markers", name=verdict,
            marker={"color": colour, "symbol": symbol, "size": 10},
            error_x={"type": "data", "symmetric": False, "array": [c.high - c.ratio for c in of_kind],
                     "arrayminus": [c.ratio - c.low for c in of_kind], "color": colour},
        )  # fmt: skip
    drawing.update_layout(height=140 + 24 * len(changes))
    drawing.update_yaxes(categoryorder="array", categoryarray=[c.name for c in changes])
    drawing.add_vline(x=1, line_dash="dot", line_color="#8C8C8C")
    words = "; ".join(f"{c.name}: {c.ratio:.2f}, {c.verdict}" for c in changes)
    return Figure("Change of each case", f"{words}.", "Bars are intervals; left of 1 is faster.", drawing)


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(_number, shape))


def _number(n: int) -> str:
    return f"{n:,}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 9.95 else f"{ratio:.1f}×"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
