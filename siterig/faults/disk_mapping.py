"""Fault rules of the layer ``disk`` as faults of the C core: every key of the catalog, or a refusal by name."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from siterig.blockfs.contracts.fault_effects import (
    BadSectorsEffect,
    DelayEffect,
    DiskEffect,
    DiskFault,
    FailEffect,
    FlipEffect,
    FreezeEffect,
    FullEffect,
    GuestOperation,
    Hold,
    LieEffect,
    LimitEffect,
    MisdirectEffect,
    NoteEffect,
    ShortenEffect,
    StaleEffect,
    TearEffect,
)
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.fault_decisions import ALWAYS, UNLIMITED, Turns, stream_of, threshold_of
from siterig.blockfs.disk.disk_faults import PowerLoss
from siterig.scenarios.faults.fitting import main_effects
from siterig.scenarios.faults.rules import FaultRule
from siterig.scenarios.faults.schema import TornWrite

TEAR_BYTES = 512
"""The sectors in which a power loss tears writes."""


@dataclass(frozen=True, slots=True)
class MappedFault:
    """A rule of the layer ``disk``, ready for the C core.

    Attributes:
        fault: the rule that each matched disk gets, without the ranges of ``file``; None if nothing is armed on the disks.
        loss: the power loss that happens at the fault, or when the window of an immediate rule opens; None if there is none.
        crashes: every operation fails after the power loss until the rule is removed.
        is_immediate: the rule acts when its window opens.
    """

    fault: DiskFault | None
    loss: PowerLoss | None = None
    crashes: bool = False
    is_immediate: bool = False


def refused(name: str, why: str) -> RigError:
    """Return the refusal of a rule."""
    return RigError(Code.FaultNotPossible, f"fault {name!r}: {why}")


def crash_fault(name: str) -> DiskFault:
    """Return the rule that is in force after a power loss: every operation fails."""
    return DiskFault(name, FailEffect(errno.EIO))


def map_rule(name: str, rule: FaultRule, seed: int, *, is_awaited: bool = False) -> MappedFault:
    """Return a rule of the layer ``disk`` as the C core takes it.

    Args:
        name: the label of the rule.
        rule: the rule.
        seed: the seed of its random choices.
        is_awaited: other rules follow its first fault, so the operation that meets it is held for them.
    Raises:
        RigError: ``FaultNotPossible`` with the key, its value, and the remedy.
    """
    if rule.is_immediate:
        return _immediate(name, rule, seed)
    if rule.what.lose is not None:
        return _losing(name, rule, seed)
    return MappedFault(_fault(name, rule, seed, _effect(rule), holds="after" if is_awaited else "never"))


def _turns(name: str, rule: FaultRule, seed: int) -> Turns:
    when = rule.when
    return Turns(
        stream=stream_of(seed, name),
        occurrence=when.occurrence or 0,
        every=when.every or 0,
        threshold=ALWAYS if when.probability is None else threshold_of(when.probability),
        times=UNLIMITED if when.times is None else when.times,
    )


def _fault(name: str, rule: FaultRule, seed: int, effect: DiskEffect, *, holds: Hold = "never") -> DiskFault:
    where, is_delayed = rule.where, rule.what.delay is not None and not isinstance(effect, DelayEffect)
    length = where.length or 0
    return DiskFault(
        name,
        effect,
        operations=cast(tuple[GuestOperation, ...], rule.operations),
        start=where.start or 0,
        length=length,
        turns=_turns(name, rule, seed),
        delay=_delay(rule) if is_delayed else None,
        holds=holds,
    )


# --- faults of operations ------------------------------------------------------------------------------------------


def _delay(rule: FaultRule) -> DelayEffect:
    what = rule.what
    return DelayEffect(what.delay or 0, what.jitter or 0, what.distribution or "uniform")


def _fail(rule: FaultRule) -> DiskEffect:
    return FailEffect(getattr(errno, str(rule.what.error)), late=rule.when.timing == "after")


def _limit(rule: FaultRule) -> DiskEffect:
    return LimitEffect(bytes_per_s=rule.what.rate or 0, operations_per_s=rule.what.iops or 0)


def _tear(torn: TornWrite | None, error: int = 0) -> DiskEffect:
    if torn is None:
        raise AssertionError("only for rules that tear")
    return TearEffect(parts=torn.parts or 0, sizes=torn.sizes or (), keep=torn.keep, error=error)


_EFFECTS: Mapping[str, Callable[[FaultRule], DiskEffect]] = {
    "error": _fail,
    "delay": _delay,
    "rate": _limit,
    "iops": _limit,
    "truncate": lambda rule: ShortenEffect(rule.what.truncate or 0),
    "tear": lambda rule: _tear(rule.what.tear),
    "misdirect": lambda rule: MisdirectEffect(rule.what.misdirect or 0),
    "stale": lambda _rule: StaleEffect(),
    "flip": lambda rule: FlipEffect(rule.what.flip.bits if rule.what.flip else 1),
    "bad_sectors": lambda _rule: BadSectorsEffect(),
    "lie": lambda _rule: LieEffect(),
    "full_after": lambda rule: FullEffect(rule.what.full_after or 0),
    "pause": lambda rule: FreezeEffect(late=rule.when.timing == "after"),
    "mark": lambda _rule: NoteEffect(),
}
"""The effect of each key of ``what`` that stands for a fault of an operation; ``lose`` is mapped by :func:`_losing`."""


def _effect(rule: FaultRule) -> DiskEffect:
    return _EFFECTS[main_effects(rule.what.keys())[0]](rule)


# --- power loss ----------------------------------------------------------------------------------------------------


def _losing(name: str, rule: FaultRule, seed: int) -> MappedFault:
    """Map a power loss at an operation: the operation is held while it happens."""
    what, late = rule.what, rule.when.timing == "after"
    crashes = what.crash is not False
    effect: DiskEffect = NoteEffect()
    if what.tear is not None:
        if late or rule.operations != ("write",):
            raise refused(name, "what.tear: only a write that is not done yet can be torn; where.op: write, no when.timing")
        effect = _tear(what.tear, errno.EIO if crashes else 0)
    elif crashes:
        effect = FailEffect(errno.EIO, late=late)
    fault = _fault(name, rule, seed, effect, holds="after" if late else "before")
    return MappedFault(fault, _loss(name, rule, seed, crashes=crashes, tears=False), crashes)


def _loss(name: str, rule: FaultRule, seed: int, *, crashes: bool, tears: bool) -> PowerLoss:
    survive = rule.what.survive
    return PowerLoss(
        stream=stream_of(seed, name),
        keeps=survive == "random" or (tears and survive is None),
        tear_bytes=TEAR_BYTES if tears else 0,
        survivors=survive if isinstance(survive, tuple) else (),
        keeps_waits=not crashes,
    )


# --- faults that act when the window opens -------------------------------------------------------------------------


def _immediate(name: str, rule: FaultRule, seed: int) -> MappedFault:
    what = rule.what
    if what.delay is not None:
        raise refused(name, "what.delay: an immediate fault happens when its window opens: write when.after = time:...")
    if what.pause:
        where = rule.where
        return MappedFault(
            DiskFault(name, FreezeEffect(), start=where.start or 0, length=where.length or 0), is_immediate=True
        )
    if what.lose is None:
        return MappedFault(None, is_immediate=True)
    crashes = what.crash is not False
    torn = what.tear
    if torn is not None and (torn.parts or torn.sizes or torn.keep):
        raise refused(name, "what.tear: parts, sizes and keep are those of one write: write tear = true, or where.op")
    if torn is not None and isinstance(what.survive, tuple):
        raise refused(name, "what.tear: tears random writes, and what.survive numbers whole ones: write one of them")
    loss = _loss(name, rule, seed, crashes=crashes, tears=torn is not None)
    return MappedFault(None, loss, crashes, is_immediate=True)
