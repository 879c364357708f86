"""Failpoints: each is defined once, is armed by name for a block, and does nothing when it is not armed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from siterig.blockfs.core import failpoint
from siterig.blockfs.core.failpoint import Failpoint


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the failpoints of the product, and remove those that a test defines."""
    monkeypatch.setattr(failpoint, "_defined", {})
    yield


def test_a_failpoint_acts_only_within_the_block_that_arms_it() -> None:
    point, reached = Failpoint("store.written"), list[str]()
    point.reach()
    with failpoint.armed("store.written", reached.append):
        point.reach()
        point.reach()
    point.reach()
    assert reached == ["store.written"] * 2


def test_the_inner_block_wins_and_the_outer_one_returns_after_an_error() -> None:
    point, reached = Failpoint("store.written"), list[str]()
    with failpoint.armed("store.written", reached.append):
        with pytest.raises(KeyError), failpoint.armed("store.written", failpoint.raises(KeyError("here"))):
            point.reach()
        assert reached == []
        point.reach()
    assert reached == ["store.written"]


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    Failpoint("store.written")
    Failpoint("store.synced")
    with pytest.raises(ValueError, match=r"no failpoint 'store.writen'; defined: store.synced, store.written"):
        failpoint.armed("store.writen", print).__enter__()
    with pytest.raises(ValueError, match=r"no failpoint 'disk....'; defined: store.synced"):
        failpoint.all_armed(print, "disk.").__enter__()


@pytest.mark.parametrize("name", ["", "written", "Store.written", "store written.x", "store.", ".written"])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"is malformed: write component.moment in lower case"):
        Failpoint(name)


def test_a_name_can_be_defined_only_once() -> None:
    Failpoint("store.written")
    with pytest.raises(ValueError, match=r"'store.written' is defined twice"):
        Failpoint("store.written")


def test_all_failpoints_of_a_component_are_armed_together() -> None:
    written, synced, other = Failpoint("store.written"), Failpoint("store.synced"), Failpoint("log.written")
    reached: list[str] = []
    with failpoint.all_armed(reached.append, "store."):
        for point in (written, other, synced):
            point.reach()
    with failpoint.all_armed(reached.append):
        other.reach()
    written.reach()
    assert reached == ["store.written", "store.synced", "log.written"]


@pytest.mark.slow
def test_the_action_kills_ends_the_process_with_sigkill() -> None:
    point = Failpoint("store.written")
    child = os.fork()
    if child == 0:
        with failpoint.armed("store.written", failpoint.kills):
            point.reach()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
