"""A line of a log about an injection stays short, however many ranges it has."""

from __future__ import annotations

from siterig.scenarios.faults.records import LOGGED_MAX, logged_ranges


def test_a_few_ranges_are_all_logged() -> None:
    assert logged_ranges([(0, 512), (4096, 8)]) == {"ranges": [[0, 512], [4096, 8]]}
    assert "more_ranges" not in logged_ranges([(0, 1)] * LOGGED_MAX)


def test_many_ranges_are_counted() -> None:
    shown = logged_ranges([(at, 1) for at in range(300)])
    assert shown == {"ranges": [[at, 1] for at in range(LOGGED_MAX)], "more_ranges": 300 - LOGGED_MAX}
