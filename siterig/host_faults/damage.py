"""Faults that act on the host's files at once: a file is lost, stored bits are inverted, a chain is broken."""

from __future__ import annotations

import os

from siterig.blockfs.core import fault_decisions as decisions
from siterig.blockfs.core.errors import Code, RigError
from siterig.host_faults.host_rules import HostRule
from siterig.host_faults.places import FileDamage, HostFile
from siterig.host_faults.rule_book import RuleBook, flipped_bits
from siterig.host_faults.written_bytes import nth_byte
from siterig.scenarios.faults.catalog import IMMEDIATE
from siterig.scenarios.faults.operations import FaultOperation
from siterig.scenarios.faults.rules import mark_words

_N = 1
"""An immediate fault is its own first operation."""
_FILE_CHOICE = 1
"""The number of the choice of a file: these rules have no delay, to which it belongs otherwise."""


def act_at_once(book: RuleBook, rule: HostRule) -> None:
    """Carry out the immediate fault of a rule whose window is open, unless it has happened.

    The seed chooses among the files at the rule's place.  Without one nothing happens: another process may have it.

    Raises:
        RigError: ``FaultNotPossible`` if none of the files has bytes or a chain to change; nothing has happened then.
    """
    files = sorted(book.files_of(rule), key=lambda file: file.path)
    if not files or book.decide_immediate(rule) is None:
        return
    try:
        with book.unobserved():
            damage = _damage(book, rule, files)
    except BaseException:
        rule.take_back()
        raise
    operation = FaultOperation(rule.layer, IMMEDIATE, damage.file.place)
    book.record(rule, _N, operation, damage.done, damage.ranges)


def _damage(book: RuleBook, rule: HostRule, files: list[HostFile]) -> FileDamage:
    if "mark" in rule.effects:
        return FileDamage(files[0], mark_words(rule.rule), ())
    if "lost" in rule.effects:
        return _lose(rule, files)
    if "flip" in rule.effects:
        return _flip(rule, files)
    return _break_chain(book, rule, files)


def _choose(rule: HostRule, count: int) -> int:
    return decisions.below(rule.turns.stream, _N, _FILE_CHOICE, count)


def _lose(rule: HostRule, files: list[HostFile]) -> FileDamage:
    file = files[_choose(rule, len(files))]
    size = file.path.stat().st_size
    file.path.unlink()
    return FileDamage(file, f"removed {file.path}", ((0, size),))


def _flip(rule: HostRule, files: list[HostFile]) -> FileDamage:
    stored = [(file, ranges) for file in files if (ranges := _stored_ranges(rule, file))]
    if not stored:
        raise not_possible(rule, "no file at this place has stored bytes in this range now")
    file, ranges = stored[_choose(rule, len(stored))]
    bits = flipped_bits(rule, _N, sum(length for _, length in ranges) * 8)
    places = [nth_byte(ranges, bit // 8) for bit in bits]
    fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for place, bit in zip(places, bits, strict=True):
            os.pwrite(fd, bytes([os.pread(fd, 1, place)[0] ^ 1 << bit % 8]), place)
    finally:
        os.close(fd)
    count = "1 bit" if len(bits) == 1 else f"{len(bits)} bits"
    return FileDamage(file, f"inverted {count} in {file.path}", tuple((place, 1) for place in places))


def _stored_ranges(rule: HostRule, file: HostFile) -> list[tuple[int, int]]:
    """Return start and length of the ranges of a file that hold data, within the range of the rule."""
    fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, at = os.fstat(fd).st_size, 0
        found: list[tuple[int, int]] = []
        while at < size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:  # no more data
                break
            at = os.lseek(fd, start, os.SEEK_HOLE)
            first, end = rule.overlap(start, at - start)
            if first < end:
                found.append((first, end - first))
    finally:
        os.close(fd)
    return found


def _break_chain(book: RuleBook, rule: HostRule, files: list[HostFile]) -> FileDamage:
    for places in book.places:
        own = [file for file in files if file.layer == places.layer]
        damage = places.break_chain(own, lambda count: _choose(rule, count)) if own else None
        if damage is not None:
            return damage
    needed = "no log has two segments" if rule.layer == "log" else "no journal has a frame"
    raise not_possible(rule, f"there is no chain to break: {needed} now")


def not_possible(rule: HostRule, why: str) -> RigError:
    """Return ``FaultNotPossible`` for a rule."""
    return RigError(Code.FaultNotPossible, f"fault {rule.name!r}: {rule.rule.words()}: {why}")
