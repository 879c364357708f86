"""Tests of the sample of steps at which tests kill."""

from __future__ import annotations

import pytest

from tests.support.faults import some_steps as module
from tests.support.faults.some_steps import some_steps

KINDS = ["open", *["write"] * 40, "rename", *["sync"] * 40, "unlink"]


def test_first_and_last_step_and_each_kind_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL", False)
    for seed in range(50):
        monkeypatch.setattr(module, "SEED", seed)
        steps = some_steps(KINDS)
        assert (steps[0], steps[-1]) == (0, len(KINDS) - 1)
        assert {KINDS[number] for number in steps} == set(KINDS)
        assert steps == sorted(set(steps))
        assert len(KINDS) / 3 <= len(steps) <= len(KINDS) / 2


def test_another_seed_takes_other_steps_and_the_same_seed_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL", False)
    found: dict[int, list[int]] = {}
    for seed in (1, 2, 1):
        monkeypatch.setattr(module, "SEED", seed)
        assert found.setdefault(seed, some_steps(KINDS)) == some_steps(KINDS)
    assert found[1] != found[2]


def test_all_steps_are_taken_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL", True)
    assert some_steps(KINDS) == list(range(len(KINDS)))


@pytest.mark.parametrize("kinds", [[], ["a"], ["a", "b"], ["a", "b", "c", "d"]])
def test_few_steps_of_different_kinds_are_all_taken(kinds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL", False)
    assert some_steps(kinds) == list(range(len(kinds)))
