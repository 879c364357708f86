"""The progress report of the drill."""

from __future__ import annotations

from siterig.scenarios.contracts.results import Check, TimelineEvent
from siterig.scenarios.drill.narrator import Narrator
from tests.support.screens import TextScreen


def test_steps_events_and_checks_are_lines_and_work_is_a_bar() -> None:
    screen = TextScreen()
    narrator = Narrator(screen)
    narrator.step(3, 10, "A title")
    narrator.event(TimelineEvent(at_s=1.25, step="s", text="disk [os] /a/path"))
    narrator.check(2.0, Check(step="s", name="ledger", ok=False, evidence="3 [missing]"))
    with narrator.progress("copy") as update:
        update(1, 0)
    assert screen.lines == [
        "",
        "3/10 A title",
        "    1.2 s  · disk [os] /a/path",
        "    2.0 s  ✗ ledger - 3 [missing]",
    ]
    assert screen.bars == [("copy", 1, 0)]
