"""Each fault of the layer disk is mapped to the C core, or refused by name."""

from __future__ import annotations

import errno

import pytest

from siterig.blockfs.contracts.fault_effects import (
    BadSectorsEffect,
    DelayEffect,
    DiskEffect,
    FailEffect,
    FlipEffect,
    FreezeEffect,
    FullEffect,
    LieEffect,
    LimitEffect,
    MisdirectEffect,
    NoteEffect,
    ShortenEffect,
    StaleEffect,
    TearEffect,
)
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.fault_decisions import Turns, stream_of, threshold_of
from siterig.blockfs.disk.disk_faults import PowerLoss
from siterig.faults.disk_mapping import MappedFault, map_rule
from siterig.scenarios.faults.catalog import effects_of
from siterig.scenarios.faults.rules import read_rule

MS = 1_000_000
SEED = 4711
STREAM = stream_of(SEED, "x")


def mapped(words: str) -> MappedFault:
    return map_rule("x", read_rule(f"{words} name=x"), SEED)


EFFECTS: list[tuple[str, DiskEffect, tuple[str, ...]]] = [
    ("write error=ENOSPC", FailEffect(errno.ENOSPC), ("write",)),
    ("flush error=EIO timing=after", FailEffect(errno.EIO, late=True), ("flush",)),
    (
        "delay=40ms jitter=1ms distribution=pareto",
        DelayEffect(40 * MS, MS, "pareto"),
        ("read", "write", "zero", "discard", "flush"),
    ),
    ("write rate=2MiB/s", LimitEffect(bytes_per_s=2 << 20), ("write",)),
    ("read rate=2MiB/s iops=100", LimitEffect(2 << 20, 100), ("read",)),
    ("write truncate=512", ShortenEffect(512), ("write",)),
    ("write tear.parts=4 tear.keep=1,3", TearEffect(parts=4, keep=(1, 3)), ("write",)),
    ("tear=true", TearEffect(), ("write",)),
    ("misdirect=+8KiB", MisdirectEffect(8192), ("read", "write")),
    ("stale=true", StaleEffect(), ("read",)),
    ("read flip.bits=3 recoverable=true", FlipEffect(3), ("read",)),
    ("start=1MiB length=64KiB bad_sectors=true", BadSectorsEffect(), ("read",)),
    ("lie=true", LieEffect(), ("flush",)),
    ("full_after=1MiB", FullEffect(1 << 20), ("write", "zero")),
    ("read pause=true timing=after", FreezeEffect(late=True), ("read",)),
    ("write mark=m", NoteEffect(), ("write",)),
    ("flush lose=unflushed", FailEffect(errno.EIO), ("flush",)),
    ("flush lose=unflushed crash=false", NoteEffect(), ("flush",)),
    ("flush lose=unflushed timing=after", FailEffect(errno.EIO, late=True), ("flush",)),
    ("write lose=unflushed survive=1,4 timing=after", FailEffect(errno.EIO, late=True), ("write",)),
    (
        "write lose=unflushed tear.sizes=512,512 tear.keep=2",
        TearEffect(sizes=(512, 512), keep=(2,), error=errno.EIO),
        ("write",),
    ),
]


@pytest.mark.parametrize(("words", "effect", "operations"), EFFECTS, ids=[row[0] for row in EFFECTS])
def test_a_fault_of_an_operation_becomes_one_effect(words: str, effect: DiskEffect, operations: tuple[str, ...]) -> None:
    found = mapped(f"disk {words}")
    assert found.fault is not None
    assert (found.fault.effect, found.fault.operations, found.is_immediate) == (effect, operations, False)
    assert found.fault.holds == ("never" if found.loss is None else "after" if "timing=after" in words else "before")


def test_every_fault_of_the_catalog_is_in_the_table() -> None:
    keys = {pair.partition("=")[0].partition(".")[0] for words, _, _ in EFFECTS for pair in words.split() if "=" in pair}
    assert keys >= set(effects_of("disk"))


def test_place_and_turns_are_those_of_the_rule() -> None:
    found = mapped("disk write error=EIO start=1MiB length=64KiB occurrence=3 every=2 probability=0.5 times=4").fault
    assert found is not None
    assert (found.start, found.length) == (1 << 20, 64 << 10)
    assert found.turns == Turns(STREAM, 3, 2, threshold_of(0.5), 4)


def test_a_delay_stands_before_another_fault() -> None:
    found = mapped("disk write error=EIO delay=40ms").fault
    assert found is not None
    assert (found.effect, found.delay) == (FailEffect(errno.EIO), DelayEffect(40 * MS))


@pytest.mark.parametrize(
    ("words", "loss", "crashes"),
    [
        ("lose=unflushed", PowerLoss(STREAM), True),
        ("lose=unflushed crash=false", PowerLoss(STREAM, keeps_waits=True), False),
        ("lose=unflushed survive=random", PowerLoss(STREAM, keeps=True), True),
        ("lose=unflushed survive=2", PowerLoss(STREAM, survivors=(2,)), True),
        ("lose=unflushed tear=true", PowerLoss(STREAM, keeps=True, tear_bytes=512), True),
        ("flush lose=unflushed", PowerLoss(STREAM), True),
    ],
)
def test_the_extent_of_a_power_loss(words: str, loss: PowerLoss, *, crashes: bool) -> None:
    found = mapped(f"disk {words}")
    assert (found.loss, found.crashes) == (loss, crashes)


def test_a_pause_without_an_operation_stops_all_of_them_when_the_rule_begins() -> None:
    found = mapped("disk pause=true")
    assert found.is_immediate
    assert found.fault is not None
    assert (found.fault.effect, found.fault.operations) == (FreezeEffect(), ())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("pause=true delay=1s", "what.delay"),
        ("lose=unflushed tear.parts=2", "what.tear"),
        ("lose=unflushed tear=true survive=1", "what.survive"),
        ("write,flush lose=unflushed tear=true", "where.op"),
    ],
)
def test_an_impossible_rule_is_refused_by_name(words: str, named: str) -> None:
    with pytest.raises(RigError, match="fault 'x': ") as caught:
        mapped(f"disk {words}")
    assert caught.value.code == Code.FaultNotPossible
    assert named in caught.value.message
