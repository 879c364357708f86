"""The search: any history of verdicts ends at an edge from passing to failing, in as few trials as halving needs."""

from __future__ import annotations

import math

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from siterig.bisect.search import ChangeGroup, CheckVerdict, Edge, search, trials_left
from siterig.blockfs.core.errors import RigError

GOOD = 1000


class Verdicts:
    """A check whose verdict at the n-th change after the good point is known; changes are seven positions apart."""

    def __init__(self, verdicts: list[CheckVerdict], *, limit: int = 1 << 30) -> None:
        self.verdicts = verdicts
        self.limit = limit
        self.tried: list[int] = []
        self.told: list[int] = []

    @property
    def bad(self) -> int:
        return GOOD + 7 * len(self.verdicts) + 3

    def at(self, position: int) -> CheckVerdict:
        number, rest = divmod(position - GOOD, 7)
        assert rest == 0
        return "passed" if number == 0 else self.verdicts[number - 1]

    async def steps(self, after: int, upto: int) -> list[ChangeGroup]:
        positions = [GOOD + 7 * n for n in range(1, len(self.verdicts) + 1) if after < GOOD + 7 * n <= upto]
        group = math.ceil(len(positions) / self.limit)
        groups = [positions[at : at + group] for at in range(0, len(positions), max(group, 1))]
        return [ChangeGroup(group[-1], 0, len(group)) for group in groups]

    async def judge(self, step: ChangeGroup, left: int) -> CheckVerdict:
        assert step.position not in self.tried
        self.tried.append(step.position)
        self.told.append(left)
        return self.at(step.position)

    def search(self) -> Edge:
        return trio.run(lambda: search(self, self.judge, good=GOOD, bad=self.bad))


def monotone(passed: int, failed: int) -> list[CheckVerdict]:
    first: list[CheckVerdict] = ["passed"]
    last: list[CheckVerdict] = ["failed"]
    return first * passed + last * failed


def check_edge(check: Verdicts, edge: Edge) -> None:
    assert edge.first_bad.count == 1
    assert check.at(edge.last_good) == "passed"
    assert check.at(edge.first_bad.position) == "failed"
    between = range(edge.last_good + 7, edge.first_bad.position, 7)
    assert [step.position for step in edge.undecided] == list(between)
    assert {check.at(position) for position in between} <= {"skipped"}


@given(changes=st.integers(1, 3000), first=st.integers(0, 2999), limit=st.sampled_from([2, 3, 50, 1 << 30]))
def test_the_first_bad_change_is_found_in_log2_trials(changes: int, first: int, limit: int) -> None:
    first %= changes
    check = Verdicts(monotone(first, changes - first), limit=limit)
    edge = check.search()
    assert edge == Edge(GOOD + 7 * first, ChangeGroup(GOOD + 7 * (first + 1), 0), ())
    # Only the end of a group can be tried: three groups are divided at a third.
    worst = trials_left(changes) if limit > 1000 else math.ceil(math.log(changes) / math.log(1.5))
    assert len(check.tried) <= worst


@pytest.mark.slow
@given(st.lists(st.sampled_from(["passed", "failed"]), max_size=200), st.sampled_from([2, 7, 1 << 30]))
def test_a_check_that_passes_and_fails_by_turns_ends_at_an_edge(verdicts: list[CheckVerdict], limit: int) -> None:
    check = Verdicts([*verdicts, "failed"], limit=limit)
    edge = check.search()
    assert edge.undecided == ()
    check_edge(check, edge)


@given(st.lists(st.sampled_from(["passed", "failed", "skipped", "skipped"]), max_size=120), st.sampled_from([2, 3, 1 << 30]))
def test_skipped_positions_are_reported_and_nothing_else(verdicts: list[CheckVerdict], limit: int) -> None:
    check = Verdicts([*verdicts, "failed"], limit=limit)
    check_edge(check, check.search())


@given(changes=st.integers(2, 400), first=st.integers(0, 399), hole=st.tuples(st.integers(0, 399), st.integers(1, 60)))
def test_an_untestable_range_near_the_first_bad_change_costs_few_trials(
    changes: int, first: int, hole: tuple[int, int]
) -> None:
    first %= changes
    verdicts = monotone(first, changes - first)
    for number in range(hole[0], min(sum(hole), changes - 1)):
        verdicts[number] = "skipped"
    check = Verdicts(verdicts)
    edge = check.search()
    check_edge(check, edge)
    if not edge.undecided:
        assert len(check.tried) <= trials_left(changes) * 2 + hole[1]


def test_the_number_of_remaining_trials_is_reported_each_time() -> None:
    check = Verdicts(monotone(700, 324))
    check.search()
    assert check.told == list(range(9, -1, -1))
    assert [trials_left(count) for count in (0, 1, 2, 3, 4, 5, 1_000_000)] == [0, 0, 1, 2, 2, 3, 20]


def test_of_one_change_nothing_needs_to_be_tried() -> None:
    check = Verdicts(["failed"])
    assert check.search() == Edge(GOOD, ChangeGroup(GOOD + 7, 0), ())
    assert check.tried == []


def test_between_two_points_without_a_change_there_is_nothing_to_find() -> None:
    with pytest.raises(RigError, match="no disk changed between positions 1000 and 1003: both are the same state"):
        Verdicts([]).search()
