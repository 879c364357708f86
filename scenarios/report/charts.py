"""The data of the report's charts, and the JavaScript that draws them: Chart.js with its zoom plugin, inlined in the page.

docs/internals/decisions/0018-charts.md says why these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from siterig.blockfs.core import npm_packages
from siterig.scenarios.contracts.results import DrillResult

LIBRARIES = (
    "chart.js/dist/chart.umd.min.js",
    "hammerjs/hammer.min.js",
    "chartjs-plugin-zoom/dist/chartjs-plugin-zoom.min.js",
)
"""In the order in which a page needs them."""
_OWN = Path(__file__).with_name("report.js")
_SHARED = Path(__file__).with_name("timelines.js")
_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE)


def chart_data(result: DrillResult) -> dict[str, object]:
    """Return what report.js draws, as JSON values; all times in seconds since the start of the drill."""
    reached = [step for step in result.steps if any(event.step == step for event in result.timeline)]
    begins = {step: min(event.at_s for event in result.timeline if event.step == step) for step in reached}
    ends = [*[begins[step] for step in reached[1:]], result.duration_s]
    lost = [event.at_s for event in result.timeline if event.severity == "bad" and event.step == "loss"]
    return {
        "end_s": max(result.duration_s, 1.0),
        "interval_s": result.interval_s,
        "lost_at_s": lost[0] if lost else None,
        "steps": [{"name": step, "begin_s": begins[step], "end_s": end} for step, end in zip(reached, ends, strict=False)],
        "events": [event.model_dump() for event in result.timeline if event.step in reached],
        "rpo": [sample.model_dump() for sample in result.rpo],
    }


def chart_scripts(folders: Sequence[Path] | None = None) -> list[Markup]:
    """Return the scripts to inline; empty where the npm packages are not installed: then the page has no charts.

    Args:
        folders: the folders ``node_modules`` to search; by default those of siterig's own packages.
    """
    return scripts(_OWN, folders)


def scripts(own: Path, folders: Sequence[Path] | None = None) -> list[Markup]:
    """Return the scripts to inline for a page: the chart library, ours for all pages, and the page's own.

    Arguments and result as in :func:`chart_scripts`.
    """
    for folder in npm_packages.node_modules() if folders is None else folders:
        try:
            texts = [(folder / name).read_text() for name in LIBRARIES]
        except OSError:
            continue
        return [_inline(text) for text in [*texts, _SHARED.read_text(), own.read_text()]]
    return []


def _inline(script: str) -> Markup:
    """A script for a page: nothing in it ends its element, and it names no file to load."""
    script = _SOURCE_MAP.sub("", script)
    if re.search(r"</script|<!--", script, re.IGNORECASE):
        raise ValueError("a script of the report holds the end of a script element")
    return Markup(script)  # noqa: S704 (ours, or of a package whose hash is in package-lock.json)
