"""The calls on the host's files while fault rules are armed: those of Python, and those of the engine in C.

Both ask the same :class:`siterig.host_faults.rule_book.RuleBook`.  The engine's calls arrive through a table in C
(cext/src/faults/host_files.h) that lets all calls pass that no rule can meet.

Fault contract: a call that meets no fault does exactly what it does without rules.  A fault acts on the call that meets it,
and on the files that its rule names; what a program does about it is the program's own promise.  An error in this module is
logged, and the call proceeds.  Threads: any.  The engine calls with the lock of a disk held: nothing here waits for a disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import structlog
from typing_extensions import Buffer

from siterig.blockfs.files import host_calls
from siterig.blockfs.files.host_calls import HostCalls, HostOperation
from siterig.cext._core import ffi, lib
from siterig.host_faults.host_rules import HostRule
from siterig.host_faults.places import HostFile
from siterig.host_faults.rule_book import HostVerdict, RuleBook, flipped_bits, torn_ranges
from siterig.host_faults.written_bytes import nth_byte, record_position
from siterig.scenarios.faults.rules import mark_words

SEGMENT_HEADER_BYTES = 128
LINK_BYTES_MAX = 256
"""Longer writes are no links of a chain."""
_OFFSETS_MAX = 1 << 63
_NOT_LOOKED_UP = HostFile("log", "", "", "", Path())
_log = structlog.get_logger("faults")


class EngineCall(NamedTuple):
    """A call of the engine, as ``sr_io_hook_fn`` in cext/src/base/io.h has it."""

    op: int
    fd: int
    offset: int
    length: int
    iov: Any
    iovs: int


class FaultyCalls(HostCalls):
    """The calls of a process in which rules are armed.

    Args:
        book: the rules.
    """

    def __init__(self, book: RuleBook) -> None:
        self._book = book
        self._files: dict[tuple[int, int], HostFile | None] = {}
        self._changes = 0
        """The number of changes of rules and names: what was found before the last one may be wrong."""
        self._compacting: dict[Path, int] = {}

    # --- in force -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Put the rules in force for all calls of this process.

        Raises:
            RuntimeError: those of another rule book are in force.
        """
        host_calls.install(self)
        _ENGINE.calls = self
        lib.sr_host_files_watch(lib.sr_py_host_call)

    def end(self) -> None:
        """Let all calls pass again."""
        lib.sr_host_files_watch(ffi.NULL)
        _ENGINE.calls = None
        host_calls.uninstall()
        self._files.clear()

    def files_changed(self) -> None:
        """Look up again which files belong to which disk."""
        self._changes += 1
        self._files.clear()
        lib.sr_host_files_forget_all()

    def rules_changed(self) -> None:
        """Let the engine ask again which calls a rule can meet."""
        self._changes += 1
        lib.sr_host_files_forget_all()

    # --- files ----------------------------------------------------------------------------------------------------

    def _file(self, fd: int) -> HostFile | None:
        found = os.fstat(fd)
        key = (found.st_dev, found.st_ino)
        if (known := self._files.get(key, _NOT_LOOKED_UP)) is not _NOT_LOOKED_UP:
            return known
        changes, file = self._changes, self._book.file_of(_path_of(fd))
        self._files[key] = file
        if changes != self._changes:  # in another thread, meanwhile: the next call looks again
            self._files.pop(key, None)
        return file

    def opening(self, path: Path, flags: int) -> None:
        file = self._book.file_of(path)
        if file is None:
            return
        there = path.exists()
        verdict = self._book.judge(file, "open", skips=() if there else ("lost",))
        if verdict is None:
            return
        self._fail_before(verdict)
        for rule, n in verdict.with_effect("lost"):
            size = path.stat().st_size
            path.unlink()
            self._record(verdict, rule, n, f"removed {path}", [(0, size)])
        self._after(verdict)

    def opened(self, path: Path, fd: int) -> None:
        found = os.fstat(fd)
        self._files[found.st_dev, found.st_ino] = self._book.file_of(path)
        lib.sr_host_files_forget(found.st_dev, found.st_ino)

    # --- Python's calls -------------------------------------------------------------------------------------------

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        file = self._file(fd)
        verdict = None if file is None else self._book.judge(file, "read", offset, length)
        if verdict is None:
            return os.pread(fd, length, offset)
        self._fail_before(verdict)
        data = bytearray(os.pread(fd, length, offset))
        self._flip(verdict, memoryview(data), offset, "for the reader")
        self._after(verdict)
        return bytes(data)

    def pwritev(self, fd: int, pieces: Sequence[Buffer], offset: int) -> int:
        file = self._file(fd)
        if file is None:
            return os.pwritev(fd, pieces, offset)
        done = self._write(file, fd, [memoryview(piece).cast("B") for piece in pieces], offset)
        return os.pwritev(fd, pieces, offset) if done is None else done

    def sync(self, fd: int, *, data_only: bool) -> None:
        file = self._file(fd)
        verdict = None if file is None else self._book.judge(file, "sync")
        if verdict is not None:
            self._fail_before(verdict)
        super().sync(fd, data_only=data_only)
        if verdict is not None:
            self._after(verdict)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        file = self._file(fd)
        verdict = None if file is None else self._book.judge(file, "rotate", offset, length, only="full_after")
        if verdict is not None:
            self._fail_before(verdict)
        super().allocate(fd, offset, length)

    @contextmanager
    def operation(self, name: HostOperation, path: Path, length: int) -> Iterator[None]:
        file = self._book.file_of(path / "base.img" if name == "compact" else path)
        if file is None:
            yield
            return
        verdict = self._book.judge(file, name, 0 if length else None, length, skips=("full_after",))
        if verdict is not None:
            self._fail_before(verdict)
        if name == "compact":
            self._compacting[path] = self._compacting.get(path, 0) + 1
        try:
            yield
        finally:
            if name == "compact":
                self._compacting.pop(path, None)
        if verdict is None:
            return
        for rule, n in verdict.with_effect("lost"):
            path.unlink(missing_ok=True)
            self._record(verdict, rule, n, f"removed {path}", [(0, length)])
        self._after(verdict)

    # --- writing --------------------------------------------------------------------------------------------------

    def _write(self, file: HostFile, fd: int, pieces: list[memoryview], offset: int) -> int | None:
        """Write with the faults that the write meets, and return the bytes that were done; None if it meets none."""
        length = sum(map(len, pieces))
        op, position = "write", None
        if file.layer == "log":
            op = "rotate" if file.part == "segment" and (offset, length) == (0, SEGMENT_HEADER_BYTES) else "append"
            if op == "append" and file.part == "segment":
                position = record_position(pieces)
        places = self._book.places_of(file)
        written = places.written(file, op, pieces, offset) if self._book.spares_copies(file) else ()
        is_link = places.is_link(file, op, b"".join(pieces) if length <= LINK_BYTES_MAX else b"")
        ops = self._operations(file, op)
        verdict = None
        for each in ops:
            found = self._book.judge(
                file,
                each,
                offset,
                length,
                position=position,
                new_bytes=lambda: _new_bytes(file, fd, offset, length),
                skips=() if is_link else ("broken_chain",),
                only=None if each == op else "full_after",
                judged=None if each == op else op,
                written=lambda: written,
            )
            if verdict is None:
                verdict = found
            elif found is not None:
                verdict.hits += found.hits
                verdict.allowed |= found.allowed
        if verdict is None:
            return None
        self._tear(verdict, fd, pieces, offset)
        self._fail_before(verdict)
        whole = bytearray(b"".join(pieces))
        for rule, n in verdict.with_effect("broken_chain"):
            whole[:] = places.broken_link(file, bytes(whole), fd)
            self._record(verdict, rule, n, "broke the chain", [(offset, length)])
        self._flip(verdict, memoryview(whole), offset, f"in {_path_of(fd)}")
        done = _write_whole(fd, memoryview(whole), offset)
        for rule, n in verdict.with_effect("lost"):
            path = _path_of(fd)
            path.unlink(missing_ok=True)
            self._record(verdict, rule, n, f"removed {path}", [(0, os.fstat(fd).st_size)])
        self._after(verdict)
        return done

    def _operations(self, file: HostFile, op: str) -> list[str]:
        """Return the operations that a write is, for the space that it takes: it may belong to one with many calls."""
        if file.layer != "store":
            return [op]
        if file.part == "checkpoint":
            return [op, "checkpoint"]
        return [op, "compact"] if file.part == "base" and file.path.parent in self._compacting else [op]

    def _tear(self, verdict: HostVerdict, fd: int, pieces: list[memoryview], offset: int) -> None:
        """Write a part of the data and fail, if a rule tears the write and no earlier one fails it.

        Raises:
            OSError: ``EIO``.
        """
        for rule, n in verdict.with_effect("tear"):
            if _first_failing(verdict) is not rule:
                continue
            whole = memoryview(b"".join(pieces))
            kept = torn_ranges(rule, n, len(whole))
            for start, end in kept:
                _write_whole(fd, whole[start:end], offset + start)
            lost, at = [], 0
            for start, end in [*kept, (len(whole), len(whole))]:
                if start > at:
                    lost.append((offset + at, start - at))
                at = end
            written = sum(end - start for start, end in kept)
            sequence = self._record(verdict, rule, n, f"wrote {written} of {len(whole)} bytes, then failed with EIO", lost)
            self._spare(verdict, rule)
            if rule.rule.what.kill is not None:
                self._book.kill(rule, sequence)
            _fail(errno.EIO, verdict.file.path)

    def _flip(self, verdict: HostVerdict, data: memoryview, offset: int, where: str) -> None:
        for rule, n in verdict.with_effect("flip"):
            first, end = rule.overlap(offset, len(data))
            ranges = verdict.allowed.get(rule.name, [(first, max(0, end - first))])
            bits = flipped_bits(rule, n, sum(length for _, length in ranges) * 8)
            places = [nth_byte(ranges, bit // 8) for bit in bits]
            for place, bit in zip(places, bits, strict=True):
                data[place - offset] ^= 1 << bit % 8
            count = "1 bit" if len(bits) == 1 else f"{len(bits)} bits"
            self._record(verdict, rule, n, f"inverted {count} {where}", [(place, 1) for place in places])

    # --- failing --------------------------------------------------------------------------------------------------

    def _fail_before(self, verdict: HostVerdict) -> None:
        """Fail or kill if a rule does that before the operation.

        Raises:
            OSError: the errno of the rule.
        """
        failing = _first_failing(verdict)
        for rule, n in verdict.hits:
            if rule is failing:
                name = "ENOSPC" if "full_after" in rule.effects else str(rule.rule.what.error)
                self._record(verdict, rule, n, f"failed with {name}", _range(verdict))
                self._spare(verdict, rule)
                _fail(getattr(errno, name), verdict.file.path)
        for rule, n in verdict.with_effect("kill", late=False):
            self._kill(verdict, rule, n)

    def _after(self, verdict: HostVerdict) -> None:
        """Fail or kill if a rule does that after the operation; record marks.

        Raises:
            OSError: the errno of the rule.
        """
        for rule, n in verdict.with_effect("mark"):
            self._record(verdict, rule, n, mark_words(rule.rule))
        for rule, n in verdict.with_effect("kill", late=True):
            self._kill(verdict, rule, n)
        for rule, n in verdict.with_effect("error", late=True):
            self._record(verdict, rule, n, f"was done, and failed with {rule.rule.what.error}", _range(verdict))
            _fail(getattr(errno, str(rule.rule.what.error)), verdict.file.path)

    def _kill(self, verdict: HostVerdict, rule: HostRule, n: int) -> None:
        self._book.kill(rule, self._record(verdict, rule, n, f"sent {rule.rule.what.kill} to the process"))

    def _spare(self, verdict: HostVerdict, failing: HostRule) -> None:
        """Record the other rules of an operation that one rule fails."""
        for rule, n in verdict.hits:
            if rule is not failing:
                self._record(verdict, rule, n, f"had no effect: the rule {failing.name} failed the operation")

    def _record(
        self, verdict: HostVerdict, rule: HostRule, n: int, done: str, ranges: Sequence[tuple[int, int]] = ()
    ) -> int:
        return self._book.record(rule, n, verdict.operation, done, ranges)

    # --- the engine's calls ---------------------------------------------------------------------------------------

    def engine_call(self, call: EngineCall) -> int:
        """Decide on a call of the engine, and return the result of the hook.

        Raises:
            OSError: the call fails with its errno.
        """
        op, fd, offset, length, iov, iovs = call
        file = self._file(fd)
        self._note(fd, file)
        if file is None or op == lib.SR_IO_RESIZE:
            return 0
        if op == lib.SR_IO_SYNC:
            return self._engine_sync(file, fd)
        if op == lib.SR_IO_PUNCH:
            return self._engine_punch(file, fd, offset, length)
        vectors = [memoryview(ffi.buffer(iov[i].iov_base, iov[i].iov_len)) for i in range(iovs) if iov[i].iov_len]
        if op == lib.SR_IO_READ:
            return self._engine_read(file, fd, vectors[0], offset)
        done = self._write(file, fd, vectors, offset)
        return 0 if done is None else int(lib.sr_io_done(done))

    def _engine_read(self, file: HostFile, fd: int, into: memoryview, offset: int) -> int:
        verdict = self._book.judge(file, "read", offset, len(into))
        if verdict is None:
            return 0
        self._fail_before(verdict)
        done = 0
        while done < len(into) and (count := os.preadv(fd, [into[done:]], offset + done)):
            done += count
        self._flip(verdict, into[:done], offset, "for the reader")
        self._after(verdict)
        return int(lib.sr_io_done(done))

    def _engine_sync(self, file: HostFile, fd: int) -> int:
        verdict = self._book.judge(file, "sync")
        if verdict is not None:
            self._fail_before(verdict)
            if any(rule.rule.when.timing == "after" for rule, _ in verdict.hits):
                os.fdatasync(fd)
            self._after(verdict)
        return 0

    def _engine_punch(self, file: HostFile, fd: int, offset: int, length: int) -> int:
        verdict = self._book.judge(file, "write", offset, length, skips=("tear", "flip", "full_after", "broken_chain"))
        if verdict is not None:
            self._fail_before(verdict)
            self._after(verdict)
        return 0

    def _note(self, fd: int, file: HostFile | None) -> None:
        """Note for the engine which calls on a file a rule can meet."""
        changes, found = self._changes, os.fstat(fd)
        rules = [rule for rule in self._book.rules() if rule.is_open and file is not None and rule.is_about(file)]
        ops, start, end = 0, _OFFSETS_MAX, 0
        for rule in rules:
            where = rule.rule.where
            ops |= sum(1 << op for op in _engine_operations(rule))
            start = min(start, where.start or 0)
            end = max(end, _OFFSETS_MAX if where.length is None else (where.start or 0) + where.length)
        note = {"device": found.st_dev, "inode": found.st_ino, "ops": ops, "start": start, "end": end}
        lib.sr_host_files_note(ffi.new("struct sr_host_file *", note))
        if changes != self._changes:  # by another thread, meanwhile: the next call asks again
            lib.sr_host_files_forget(found.st_dev, found.st_ino)


def _engine_operations(rule: HostRule) -> set[int]:
    """Return the calls of the engine that are operations of a rule."""
    found: set[int] = set()
    for op in rule.rule.operations:
        if op == "read":
            found.add(lib.SR_IO_READ)
        elif op == "sync":
            found.add(lib.SR_IO_SYNC)
        elif op in ("append", "write", "rotate", "compact", "checkpoint"):
            found |= {lib.SR_IO_WRITE, lib.SR_IO_PUNCH}
    return found


class _Engine:
    """The calls that decide for the engine; None: no rule is armed."""

    calls: FaultyCalls | None = None


_ENGINE = _Engine()


@ffi.def_extern(name="sr_py_host_call", error=0)  # type: ignore[untyped-decorator]
def _host_call(*call: Any) -> int:
    calls = _ENGINE.calls
    if calls is None:
        return 0
    try:
        return calls.engine_call(EngineCall(*call))
    except OSError as exc:
        return -(exc.errno or errno.EIO)


# --- helpers ----------------------------------------------------------------------------------------------------------


def _fail(error: int, path: Path) -> NoReturn:
    raise OSError(error, os.strerror(error), str(path))


def _range(verdict: HostVerdict) -> list[tuple[int, int]]:
    operation = verdict.operation
    return [] if operation.start is None else [(operation.start, operation.length)]


def _first_failing(verdict: HostVerdict) -> HostRule | None:
    """Return the first rule that fails the operation before it is done."""
    return next((rule for rule, _ in verdict.hits if rule.fails_operation), None)


def _path_of(fd: int) -> Path:
    path = Path(f"/proc/self/fd/{fd}").readlink()
    return path.with_name(path.name.removesuffix(" (deleted)"))


def _write_whole(fd: int, data: memoryview, offset: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
    return done


def _new_bytes(file: HostFile, fd: int, offset: int, length: int) -> int:
    """Return how many bytes take space on the host's disk: all of a log's, and those in holes of other files."""
    if file.layer == "log":
        return length
    at, end, found = offset, offset + length, 0
    size = os.fstat(fd).st_size
    while at < min(end, size):
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # no more data
            break
        found += min(data, end) - at
        at = min(end, size) if data >= end else min(os.lseek(fd, data, os.SEEK_HOLE), end)
    return found + end - at
