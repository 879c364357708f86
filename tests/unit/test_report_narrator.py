"""What the drill says while it runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from scenarios.narrator import Narrator
from scenarios.results import Check, TimelineEvent


def test_lines_are_plain_without_a_terminal_and_markup_in_them_is_text() -> None:
    out = io.StringIO()
    narrator = Narrator(Console(file=out, width=60))
    narrator.step(3, 10, "A [bold]title[/]")
    narrator.event(TimelineEvent(at_s=1.25, step="s", text="disk [os] /a/very/long/path" + "/x" * 40))
    narrator.check(2.0, Check(step="s", name="ledger", ok=False, evidence="3 [missing]"))
    with narrator.progress("copy") as update:
        update(1, 2)
    assert out.getvalue() == (
        f"\n3/10 A [bold]title[/]\n    1.2 s  · disk [os] /a/very/long/path{'/x' * 40}\n    2.0 s  ✗ ledger - 3 [missing]\n"
    )


@pytest.mark.parametrize("total", [0, 2 * 1024 * 1024])
def test_a_terminal_gets_a_bar_also_when_the_total_is_not_known_yet(total: int) -> None:
    out = io.StringIO()
    narrator = Narrator(Console(file=out, width=100, force_terminal=True))
    with narrator.progress("initial replication") as update:
        update(1024 * 1024, total)
    assert "initial replication" in out.getvalue()
