"""The agent's record of each VM, in one small file that is replaced as a whole.

Fault contract: ``relationships.json`` is always one complete version (temporary file, fsync, rename, fsync of the folder).
A kill may lose the newest change that was not saved yet; every step of the agent can be repeated safely.  The file is
written in the event loop, not in a thread, so that no other task runs between a decision and its record; only the progress
of copies is written in a thread.  A change that cannot be written is not made.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, Literal

import trio
from pydantic import BaseModel, Field, ValidationError

from siterig.blockfs.contracts.app_script import AppScript
from siterig.blockfs.contracts.bandwidth import BandwidthLimit
from siterig.blockfs.contracts.control import SnapshotDisk
from siterig.blockfs.core.clock_reading import ClockReading
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.wire_model import WireModel
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.small_file import FileTooLongError, read_small_file

FORMAT = 2
"""Format 1 has the wall time of the last application-consistent point; it is read, and that schedule restarts."""
_BYTES_MAX = 16 << 20
"""Largest size of the file in bytes: it has a record for each protected VM."""
ReplicationPhase = Literal["created", "initial", "resync", "delta", "resync-required", "suspended"]


class DiskSync(WireModel):
    """Progress of the sync stream (initial replication or resync) of a disk's generation.

    Attributes:
        first_seq: first sequence number that is not in the *first* snapshot of this generation; the log is sent from there.
        parts: number of sync parts that are in the spool, or applied.
        next_offset: the bytes of the disk below this offset are in those parts.
        done: True if the last of them has the ``sync-end`` tag.
        scope: the ranges (offset, length) that a resync compares, because the rest is equal; None: the whole disk.
        opening: the opening of the disk (``DiskInfo.opening``) of which parts may have been sent
            (:mod:`siterig.replication.engine.openings`).
    """

    disk_id: str
    name: str
    generation: int
    size_bytes: int
    first_seq: int
    parts: int = 0
    next_offset: int = 0
    done: bool = False
    opening: str = ""
    scope: list[tuple[int, int]] | None = None

    @classmethod
    def begun(cls, disk: SnapshotDisk) -> DiskSync:
        """Return the state of a stream that begins with this snapshot."""
        return cls(
            disk_id=disk.disk_id,
            name=disk.name,
            generation=disk.generation,
            size_bytes=disk.size_bytes,
            first_seq=disk.first_seq,
        )


class DiskJoin(WireModel):
    """The copy of disks that join the replication of a VM.

    Attributes:
        names: the names of the disks, sorted.
        disks: the progress of the copy; empty before the first snapshot.
        by_comparison: True if the managed disks may have data, so that the copy is a resync.
        resync_begun: True if ``disks`` is the progress of a resync that is not complete, and that can continue.
    """

    names: list[str]
    disks: list[DiskSync] = Field(default_factory=list)
    by_comparison: bool = False
    resync_begun: bool = False


class Relationship(WireModel):
    """The replication relationship of a VM.

    Attributes:
        phase: ``created`` (nothing sent yet), ``initial``, ``resync``, ``delta`` (cycles), ``resync-required`` (no cycles
            until a resync), ``suspended`` (failed over).
        resync_reason: why a resync is required.
        resync_reported: True if the vault knows that.
        resync_limited: True if a resync may trust that both sides are equal where no change was recorded.
        resync_begun: True if ``disks`` is the progress of a resync that is not complete, and that can continue.
        paused: True if a user paused the cycles; they do not run in phase ``delta`` then.
        removed: the names of disks that were removed, with the position of the last cut that can have the disk.
        joining: the disks that are copied to join the replication; None: there are none.
        replicated: the names of the disks that are replicated, sorted; None: all disks of the VM (an older siterig).
        app_point: the host's clocks at the last application-consistent point; None: none since the schedule began.
    """

    vm: str
    interval_s: float
    app_consistent_every_s: float | None
    phase: ReplicationPhase = "created"
    disks: list[DiskSync] = Field(default_factory=list)
    resync_reason: str | None = None
    resync_reported: bool = False
    resync_begun: bool = False
    resync_limited: bool = False
    paused: bool = False
    replicated: list[str] | None = None
    removed: dict[str, int] = Field(default_factory=dict)
    joining: DiskJoin | None = None
    app_point: ClockReading | None = None


class ReceivedDisk(WireModel):
    """A disk that was received completely: its staging file at ``path`` is durable."""

    vm: str
    disk: str
    source_id: str
    path: str


class _Book(WireModel):
    format: int
    relationships: list[Relationship]
    received: list[ReceivedDisk]
    bandwidth: BandwidthLimit | None = None
    app_scripts: dict[str, AppScript] = Field(default_factory=dict)


class _Format(BaseModel):
    format: int


def _from_format_1(data: bytes) -> dict[str, Any]:
    book: dict[str, Any] = json.loads(data)
    relationships = book.get("relationships")
    for record in relationships if isinstance(relationships, list) else []:
        if isinstance(record, dict):
            record.pop("app_point_ns", None)
    return book


class RelationshipBook:
    """All relationships, in memory and in the file; each change is durable when the method returns, or is not made.

    All calls are on the trio thread.
    """

    def __init__(self, folder: Path) -> None:
        """Read ``folder``/relationships.json; ``AgentStateUnreadable`` if it is of another format or damaged."""
        self._path = folder / "relationships.json"
        self._relationships: dict[str, Relationship] = {}
        self._received: list[ReceivedDisk] = []
        self._bandwidth: BandwidthLimit | None = None
        self._app_scripts: dict[str, AppScript] = {}
        self._version = 0
        """Counts the contents that were to be written; a thread never replaces newer ones."""
        self._written = 0
        self._writing = threading.Lock()
        if self._path.exists():
            self._load()

    def _load(self) -> None:
        try:
            data = read_small_file(self._path, _BYTES_MAX)
            found = _Format.model_validate_json(data).format
            if found not in (1, FORMAT):
                raise RigError(Code.AgentStateUnreadable, f"{self._path}: format {found}; this siterig reads 1 and {FORMAT}")
            book = _Book.model_validate(_from_format_1(data)) if found == 1 else _Book.model_validate_json(data)
        except FileTooLongError as exc:
            raise RigError(Code.AgentStateUnreadable, f"{self._path}: {exc}") from exc
        except ValidationError as exc:
            why = exc.errors()[0]["msg"]
            raise RigError(Code.AgentStateUnreadable, f"{self._path}: is not an agent's state: {why}") from exc
        self._take(book)

    def _take(self, book: _Book) -> None:
        self._relationships = {item.vm: item for item in book.relationships}
        self._received = book.received
        self._bandwidth = book.bandwidth
        self._app_scripts = book.app_scripts

    def _now(self) -> _Book:
        return _Book(
            format=FORMAT,
            relationships=list(self._relationships.values()),
            received=self._received,
            bandwidth=self._bandwidth,
            app_scripts=self._app_scripts,
        )

    def _change(self, **changes: Any) -> None:
        """Write the book with other values of these fields, and then take them."""
        book = self._now().model_copy(update=changes)
        self._write(*self._encode(book))
        self._take(book)

    def _encode(self, book: _Book) -> tuple[int, bytes]:
        self._version += 1
        return self._version, book.model_dump_json(indent=1).encode()

    def _write(self, version: int, data: bytes) -> None:
        """Write the file, unless a newer version of it was written meanwhile; in any thread."""
        with self._writing:
            if version > self._written:
                write_atomically(self._path, data)
                self._written = version

    def all(self) -> list[Relationship]:
        """Return every relationship."""
        return list(self._relationships.values())

    def find(self, vm: str) -> Relationship | None:
        """Return the relationship of a VM, or None."""
        return self._relationships.get(vm)

    def get(self, vm: str) -> Relationship:
        """Return the relationship of a VM; raise ``VmNotProtected`` if there is none."""
        found = self._relationships.get(vm)
        if found is None:
            raise RigError(Code.VmNotProtected, f"VM {vm!r} has no replication relationship on this host")
        return found

    def save(self, relationship: Relationship) -> None:
        """Add or replace a relationship."""
        self._change(relationships=list((self._relationships | {relationship.vm: relationship}).values()))

    def update(self, vm: str, **changes: Any) -> Relationship:
        """Change fields of a relationship."""
        self.save(self.get(vm).model_copy(update=changes))
        return self.get(vm)

    def update_disk(self, vm: str, disk_id: str, **changes: Any) -> None:
        """Change fields of one disk of a relationship, which is replicated or joins."""
        self.save(_with_disk(self.get(vm), disk_id, changes))

    async def record_progress(self, vm: str, disk_id: str, *, parts: int, next_offset: int, done: bool) -> None:
        """Record the progress of a disk's copy, in a thread: it is frequent, and other tasks do not wait for the disk.

        Other tasks see the progress before it is durable; so the caller keeps the new parts from them until this returns.

        Raises:
            OSError: it is not durable; then the progress is as before.
        """
        former = _find_disk(self.get(vm), disk_id)
        changes = {"parts": parts, "next_offset": next_offset, "done": done}
        self._relationships[vm] = _with_disk(self.get(vm), disk_id, changes)
        try:
            await trio.to_thread.run_sync(self._write, *self._encode(self._now()))
        except BaseException:
            record = self._relationships.get(vm)
            if former is not None and record is not None:
                before = {name: getattr(former, name) for name in changes}
                self._relationships[vm] = _with_disk(record, disk_id, before, generation=former.generation)
            raise

    def remove(self, vm: str) -> None:
        """Remove a relationship; do nothing if there is none."""
        if vm in self._relationships:
            self._change(relationships=[item for item in self._relationships.values() if item.vm != vm])

    def rename(self, vm: str, name: str) -> None:
        """Move a relationship and a script, if there are any, to a VM's new name; received disks must be received again."""
        self._change(
            relationships=[
                item.model_copy(update={"vm": name}) if item.vm == vm else item for item in self._relationships.values()
            ],
            received=[item for item in self._received if item.vm != vm],
            app_scripts={name if key == vm else key: script for key, script in self._app_scripts.items()},
        )

    @property
    def bandwidth(self) -> BandwidthLimit | None:
        """The limit of the uploads of this host; None: there is none."""
        return self._bandwidth

    def set_bandwidth(self, limit: BandwidthLimit | None) -> None:
        """Change the limit of the uploads of this host."""
        self._change(bandwidth=limit)

    def app_script(self, vm: str) -> AppScript | None:
        """Return the script of a VM for application-consistent points; None if it has none."""
        return self._app_scripts.get(vm)

    def set_app_script(self, vm: str, script: AppScript | None) -> None:
        """Change the script of a VM; None: it has none."""
        if script != self._app_scripts.get(vm):
            others = {name: known for name, known in self._app_scripts.items() if name != vm}
            self._change(app_scripts=others if script is None else others | {vm: script})

    def received(self, vm: str) -> list[ReceivedDisk]:
        """Return the received disks of a VM that wait for the commit."""
        return [item for item in self._received if item.vm == vm]

    def add_received(self, item: ReceivedDisk) -> None:
        """Record a received disk; an older record of the same disk is replaced."""
        self._change(received=[old for old in self._received if (old.vm, old.disk) != (item.vm, item.disk)] + [item])

    def clear_received(self, vm: str, disk: str | None = None) -> None:
        """Remove the records of the received disks of a VM, or of one of them."""
        kept = [item for item in self._received if item.vm != vm or (disk is not None and item.disk != disk)]
        if kept != self._received:
            self._change(received=kept)


def _find_disk(record: Relationship, disk_id: str) -> DiskSync | None:
    disks = [*record.disks, *(record.joining.disks if record.joining is not None else ())]
    return next((disk for disk in disks if disk.disk_id == disk_id), None)


def _with_disk(
    record: Relationship, disk_id: str, changes: dict[str, Any], *, generation: int | None = None
) -> Relationship:
    """Return the relationship with other fields of a disk that is replicated or joins, if it has the given generation."""

    def changed(disks: list[DiskSync]) -> list[DiskSync]:
        return [
            disk.model_copy(update=changes) if disk.disk_id == disk_id and generation in (None, disk.generation) else disk
            for disk in disks
        ]

    joining = record.joining
    if joining is not None:
        joining = joining.model_copy(update={"disks": changed(joining.disks)})
    return record.model_copy(update={"disks": changed(record.disks), "joining": joining})
