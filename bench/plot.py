"""The report's figures at a glance: horizontal bars in one SVG, readable on light and dark pages, made of text alone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from bench.results import Results, Spread, percentile

_WIDTH = 900
_LABELS = 360
_BARS = 400
_ROW = 26
_TITLE = 44
_BOTTOM = 12

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 }
.figure { font-size: 12px; fill: #57606a }
.ours { fill: #0969da }
.other { fill: #afb8c1 }
.spread { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .figure { fill: #9198a1 } .ours { fill: #4493f8 } .other { fill: #59636e }
  .spread { stroke: #e6edf3 }
}
"""


class Bar(msgspec.Struct, frozen=True):
    """One bar: its length is the median, its whisker goes from the lowest to the highest."""

    label: str
    spread: Spread
    ours: bool


class Panel(msgspec.Struct, frozen=True):
    """Bars on one scale."""

    title: str
    unit: str
    bars: Sequence[Bar]


def render(results: Results) -> str:
    """The whole picture."""
    panels = [panel for panel in _panels(results) if panel.bars]
    height = sum(_TITLE + _ROW * len(panel.bars) + _BOTTOM for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">',
        "<title>Benchmarks of pglockstep</title>",
        f"<style>{_STYLE}</style>",
    ]
    top = 0
    for panel in panels:
        parts.append(_drawn(panel, top))
        top += _TITLE + _ROW * len(panel.bars) + _BOTTOM
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panels(results: Results) -> list[Panel]:
    panels = []
    if drain := results.drain:
        bars = [
            Bar(title, took, name == "pglockstep")
            for name, title in drain.contest.titles.items()
            if (took := drain.contest.seconds(name))
        ]
        panels.append(Panel(f"Draining {drain.changes:,} changes (less is better)", "s", _sorted(bars)))
    if copy := results.copy:
        bars = []
        for name, title in copy.contest.titles.items():
            samples = copy.contest.of(name)
            if copied := Spread.of(sample.copied_after for sample in samples):
                bars.append(Bar(f"{name}: the copy alone", copied, name == "pglockstep"))
            if took := copy.contest.seconds(name):
                bars.append(Bar(title, took, name == "pglockstep"))
        panels.append(Panel("The first copy (less is better)", "s", _sorted(bars)))
    if compare := results.compare:
        bars = [
            Bar(title, took, name == "pglockstep")
            for name, title in compare.contest.titles.items()
            if (took := compare.contest.seconds(name))
        ]
        panels.append(Panel(f"Verifying {compare.rows:,} rows (less is better)", "s", _sorted(bars)))
    if latency := results.latency:
        rates = sorted({block.per_second for block in latency.blocks}, reverse=True)
        bars = [
            # a whisker from the median to the 99th percentile
            Bar(
                f"{title}, {rate} a second",
                Spread(middle := percentile(figures, 0.5), middle, percentile(figures, 0.99), len(figures)),
                name == "pglockstep",
            )
            for rate in rates
            for name, title in latency.titles.items()
            if (figures := latency.pooled(name, rate, from_sending=False))
        ]
        panels.append(
            Panel("A lone insert, from the commit until visible: median to p99 (less is better)", "ms", bars)
        )
    if scaling := results.scaling:
        names = {
            name: title for drain in scaling.drains.values() for name, title in drain.contest.titles.items()
        }
        bars = [
            Bar(
                f"{title}, {drain.changes:,} changes",
                _per_second(drain.changes / 1000, s),
                name == "pglockstep",
            )
            for name, title in names.items()
            for drain in scaling.drains.values()
            if (s := drain.contest.seconds(name))
        ]
        panels.append(
            Panel("Thousands of changes a second (more is better, the same length is linear)", "k/s", bars)
        )
    return panels


def _per_second(work: float, took: Spread) -> Spread:
    return Spread(work / took.median, work / took.high, work / took.low, took.count)


def _sorted(bars: Sequence[Bar]) -> list[Bar]:
    return sorted(bars, key=lambda bar: bar.spread.median)


def _drawn(panel: Panel, top: int) -> str:
    longest = max(bar.spread.high for bar in panel.bars) or 1.0
    lines = [f'<text class="title" x="8" y="{top + 26}">{escape(panel.title)}</text>']
    for number, bar in enumerate(panel.bars):
        y = top + _TITLE + number * _ROW
        median, low, high = (
            round(figure / longest * _BARS, 1)
            for figure in (bar.spread.median, bar.spread.low, bar.spread.high)
        )
        kind = "ours" if bar.ours else "other"
        lines += [
            f'<text x="{_LABELS - 8}" y="{y + 14}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="{kind}" x="{_LABELS}" y="{y + 2}" width="{median}" height="16" rx="2"/>',
            f'<line class="spread" x1="{_LABELS + low}" x2="{_LABELS + high}" y1="{y + 10}" y2="{y + 10}"/>',
            f'<text class="figure" x="{_LABELS + high + 8}" y="{y + 14}">{bar.spread.median:.2f} {panel.unit}</text>',
        ]
    return "\n".join(lines)
