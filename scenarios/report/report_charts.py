"""The two drawings of the report, as SVG to put into the page; its text takes the page's font and colour."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from siterig.scenarios.contracts.results import DrillResult

# A colour that no chart uses otherwise: replaced by currentColor, so that the page decides, light or dark.
_TEXT = "#010203"
_COLOURS = {"info": "#4f8fe0", "good": "#2aa36b", "bad": "#e0526a"}
_BARS = ("#4f8fe0", "#7a6fe0", "#3aa6a6", "#b07fd0", "#e0526a", "#d99a3c", "#2aa36b")
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: nothing is embedded, nothing is fetched
    "svg.hashsalt": "siterig",  # the same result gives the same bytes
    "font.family": "sans-serif",
    "text.color": _TEXT,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def timeline_chart(result: DrillResult) -> str:
    """A bar for each step, a dot for each event."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 0.6 + 0.38 * max(1, len(result.steps))), layout="constrained")
        axes = figure.subplots()
        reached = [step for step in result.steps if any(event.step == step for event in result.timeline)]
        begins = {step: min(event.at_s for event in result.timeline if event.step == step) for step in reached}
        ends = [*[begins[step] for step in reached[1:]], result.duration_s]
        for row, (step, end) in enumerate(zip(reached, ends, strict=False)):
            colour = _BARS[row % len(_BARS)]
            axes.barh(row, end - begins[step], left=begins[step], height=0.62, color=colour, alpha=0.35)
            axes.text(end, row, f"  {end - begins[step]:.1f} s", va="center", fontsize=9)
            for event in result.timeline:
                if event.step == step:
                    axes.plot(event.at_s, row, "o", markersize=4, color=_COLOURS[event.severity])
        axes.set_yticks(range(len(reached)), reached)
        axes.invert_yaxis()
        axes.margins(x=0.06)
        return _svg(figure, axes, result, "The steps of the drill over time")


def rpo_chart(result: DrillResult) -> str:
    """The vault's RPO, with the loss of the site."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 2.8), layout="constrained")
        axes = figure.subplots()
        # None breaks the line where no replication runs.
        values = [float("nan") if sample.rpo_s is None else sample.rpo_s for sample in result.rpo]
        axes.plot([sample.at_s for sample in result.rpo], values, color=_COLOURS["info"], linewidth=1.8)
        lost = next((event.at_s for event in result.timeline if event.severity == "bad" and event.step == "loss"), None)
        if lost is not None:
            axes.axvline(lost, color=_COLOURS["bad"], linestyle="--", linewidth=1.2)
            above = axes.get_xaxis_transform()
            axes.text(lost, 1.0, " site lost", color=_COLOURS["bad"], transform=above, va="top", fontsize=9)
        axes.axhline(result.interval_s, color=_COLOURS["good"], linestyle=":", linewidth=1.2)
        axes.text(0, result.interval_s, " replication interval", color=_COLOURS["good"], va="bottom", fontsize=9)
        highest = max([result.interval_s, *(sample.rpo_s or 0 for sample in result.rpo)])
        axes.set_ylim(0, highest * 1.25)  # room for the words above the lines
        axes.set_ylabel("RPO (s)")
        return _svg(figure, axes, result, "Recovery point objective over time")


def _svg(figure: Figure, axes: Axes, result: DrillResult, title: str) -> str:
    axes.set_xlim(left=0, right=max(result.duration_s, 1) * 1.06)
    axes.set_xlabel("seconds since the drill began")
    axes.grid(axis="x", alpha=0.15)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_TEXT, "currentColor")
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    # Ids are numbered from one in each drawing; two in a page must not meet.
    prefix = re.sub(r"\W+", "-", title.lower())
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
