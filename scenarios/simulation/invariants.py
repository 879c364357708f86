"""The invariants of a simulation, checked at every call and at the end; each broken one is a finding.

The truth is read with production code for reading: :mod:`siterig.azure_emu.disks` opens a managed disk from its files, at
any moment, because files change only between two checkpoints of a simulation.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from siterig.azure_emu.contracts.reports import ApplierReports
from siterig.azure_emu.disks.loader import StoreState, load_history
from siterig.azure_emu.disks.view import cipher_of, decrypted, open_disk, view_in
from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.layer import ViewLayer
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.blockfs.transfer.bundle import BundleName, decode, is_readable
from siterig.blockfs.transfer.cache_account import AccountBlob, BlobAccount
from siterig.blockfs.transfer.data_keys import DataKeys
from siterig.blockfs.transfer.envelope import DataKey
from siterig.blockfs.transfer.part_name import PartName, Watermark
from siterig.scenarios.simulation.coverage import Coverage
from siterig.scenarios.simulation.disk_model import DiskModel
from siterig.scenarios.simulation.disk_promises import DiskPromises
from siterig.scenarios.simulation.rig.network import CallObserver, SimulatedLink
from siterig.scenarios.simulation.trace import RunTrace

MARKER = b"siterig simulation: plaintext of a guest "
"""Every write of the guest begins with it; no blob of the account may have it."""
FINDINGS_MAX = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken invariant.

    Attributes:
        invariant: its short name, which stays the same when a run is shrunk.
        text: the objects and values.
        at_s: the simulated time.
    """

    invariant: str
    text: str
    at_s: float

    def __str__(self) -> str:
        return f"{self.invariant} at {self.at_s:.3f} s: {self.text}"


@dataclass(slots=True)
class KnownState:
    """The knowledge of a world that outlives a run.

    Attributes:
        models: the models of the disks by name.
        names: the names of the disks by id.
        reported: the newest watermark of each disk that the vault has taken.
        ended: the names of the disks whose replication ended after their newest report, by id; blobs of parts that were
            reported before may still be deleted.
        durable: the newest known state of each managed disk.
        first_seqs: the first record after the first snapshot of each generation, by disk id and generation.
        bundles: the parts that were put in each bundle.
        keys: the keys of the managed disks that the vault gave out.
    """

    models: dict[str, DiskModel] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    reported: dict[str, Watermark] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    durable: dict[str, Watermark] = field(default_factory=dict)
    first_seqs: dict[tuple[str, int], int] = field(default_factory=dict)
    bundles: dict[BundleName, list[PartName]] = field(default_factory=dict)
    keys: dict[str, DataKey] = field(default_factory=dict)

    def copied(self) -> KnownState:
        """Return a copy that a run may change."""
        copies: dict[str, Any] = {each.name: dict(getattr(self, each.name)) for each in fields(self)}
        copies["models"] = {name: model.copied() for name, model in self.models.items()}
        return KnownState(**copies)


class Invariants(CallObserver):
    """Checks calls, disks and recovery points, and collects the findings."""

    def __init__(self, now_s: Callable[[], float], managed: Callable[[], Path]) -> None:
        self.trace = RunTrace()
        self.findings: list[Finding] = []
        self.memory = KnownState()
        self.coverage = Coverage()
        self.disks = DiskPromises()
        self._checked: set[tuple[int, str]] = set()
        self._now_s = now_s
        self._managed = managed

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.add(self._now_s(), text)

    def broken(self, invariant: str, text: str) -> None:
        """Record a finding."""
        self.note(f"BROKEN {invariant}: {text}")
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(invariant, text, self._now_s()))

    def applied_position(self) -> int:
        """Return the position up to which all replicated disks are applied, by the reports that the vault has taken."""
        marks = [mark for disk_id, mark in self.memory.reported.items() if disk_id not in self.memory.ended]
        return min((mark.complete_position for mark in marks), default=0)

    # --- calls --------------------------------------------------------------------------------------------------

    def before(self, link: SimulatedLink, method: str, arguments: dict[str, Any]) -> None:
        if link.protocol is DiskHostControl and method == "trim_log":
            self._check_trim(**arguments)
        elif link.protocol is DiskHostControl and method == "log_state":
            for each in arguments["applied"]:
                self._check_trim(each.disk_id, each.generation, each.last_seq)
        elif link.protocol is BlobAccount and method == "delete":
            self._check_blob_deleted(link, arguments["arg0"])
        elif link.protocol is BlobAccount and method == "put" and MARKER in arguments["arg1"]:
            self.broken("no plaintext in the account", f"part {arguments['arg0'].blob()}")
        elif link.protocol is BlobAccount and method == "put" and isinstance(arguments["arg0"], BundleName):
            self.memory.bundles[arguments["arg0"]] = list(decode(arguments["arg0"], arguments["arg1"]))
        elif link.protocol is ApplierReports and method == "applied":
            self._check_durable("reported by the applier", arguments["watermark"])

    def after(self, link: SimulatedLink, method: str, arguments: dict[str, Any], result: Any) -> None:
        if isinstance(result, Exception):
            return
        if link.protocol is ApplierReports and method == "applied":
            self.memory.reported[arguments["watermark"].disk_id] = arguments["watermark"]
            self.memory.ended.pop(arguments["watermark"].disk_id, None)
        elif link.protocol is VaultLink and method == "watermarks":
            for mark in result:
                self._check_durable("told to the agent", mark)
        elif link.protocol is DiskHostControl and method == "begin_snapshot":
            for disk in result.disks:
                self.memory.first_seqs.setdefault((disk.disk_id, disk.generation), disk.first_seq)
        elif link.protocol is DataKeys and method == "disk_key":
            self.memory.keys[arguments["disk_id"]] = result.key()

    def ended(self, link: SimulatedLink, method: str, outcome: str) -> None:
        self.note(f"{link.name} {method} {outcome}")

    def bug(self, where: str, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ is not None else None
        at = "" if frame is None else f" ({Path(frame.filename).name}:{frame.lineno})"
        self.broken("no exception but RigError", f"{where}: {type(error).__name__}: {error}{at}")

    def _state(self, disk_id: str) -> Watermark | None:
        """Return the watermark of a managed disk by its files."""
        try:
            state = load_history(self._managed() / disk_id).history.watermark()
        except RigError:
            return None
        self.memory.durable[disk_id] = state
        return state

    def _check_durable(self, where: str, mark: Watermark) -> None:
        known = self.memory.durable.get(mark.disk_id)
        if known is not None and _key(mark) <= _key(known):
            return  # a managed disk does not go back
        has = self._state(mark.disk_id)
        if has is None:
            if mark.generation:
                self.broken("no watermark ahead of durable data", f"{where}: {mark!r}; the managed disk has nothing")
        elif _key(mark) > _key(has):
            self.broken("no watermark ahead of durable data", f"{where}: {mark!r}; the managed disk has {has!r}")

    def _check_trim(self, disk_id: str, generation: int, last_seq: int) -> None:
        has = self.memory.durable.get(disk_id)
        if has is None or (has.generation, has.log_seq) < (generation, last_seq):
            has = self._state(disk_id)
        if has is not None and has.generation >= generation and (has.generation > generation or has.log_seq >= last_seq):
            return
        if last_seq < self.memory.first_seqs.get((disk_id, generation), 0):
            return  # the records are in the snapshot that a copy begins with
        self.broken("no segment deleted early", f"disk {disk_id} generation {generation} up to {last_seq}: has {has!r}")

    def _check_blob_deleted(self, link: SimulatedLink, name: AccountBlob) -> None:
        """Check a part; or each part of a bundle, unless the agent deletes a bundle that cannot be read."""
        blobs: dict[AccountBlob, bytes] = link.server.services[BlobAccount].blobs
        if isinstance(name, PartName):
            self._check_delete(link.client.name, name)
        elif link.client.name == "applier":
            for part in self.memory.bundles[name]:
                if part not in blobs:
                    self._check_delete("applier", part)
        elif name in blobs and is_readable(name, blobs[name]):
            self.broken("no blob deleted early", f"{link.client.name} deletes {name.blob()}")

    def _check_delete(self, client: str, part: PartName) -> None:
        if part.disk_id not in self.memory.names:
            return  # a part of a failback: the disk itself is the truth
        if client != "applier":
            self.broken("no blob deleted early", f"{client} deletes {part.blob()}")
            return
        mark, has = self.memory.reported.get(part.disk_id), self.memory.durable.get(part.disk_id)
        if has is None or not _covers(has, part):
            has = self._state(part.disk_id)
        for what, known in (("reported", mark), ("durable", has)):
            if known is None or not _covers(known, part):
                self.broken("no blob deleted early", f"{part.blob()}: {what} is {known!r}")

    def check_files(self, folders: Iterable[Path]) -> None:
        """Check that no file of the recovery side has a write of the guest as it was."""
        for folder in folders:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and MARKER in path.read_bytes():
                    self.broken("no plaintext in a file of the recovery side", str(path.relative_to(folder.parent)))

    # --- disks --------------------------------------------------------------------------------------------------

    def check_source(self, host: DiskHost, vm: str, why: str) -> None:
        """Check that the source disks have all writes of the guest: promise 1 and 3."""
        for name, model in self.memory.models.items():
            found = host.disk(vm, name).read(0, model.size_bytes)
            if found != model.now():
                self.broken("a kill loses no write", f"disk {name} after {why}: {_difference(found, model.now())}")

    def begin_again(self, host: DiskHost, vm: str) -> None:
        """Check the durable writes after a loss of power, and take over what the disks have now."""
        for name, model in self.memory.models.items():
            found = host.disk(vm, name).read(0, model.size_bytes)
            lost = model.lost(found)
            if lost is not None:
                self.broken("a flush is durable", f"disk {name}: bytes at {lost} are lost")
            model.begin_again(host.positions.value, found)

    # --- recovery points ----------------------------------------------------------------------------------------

    def check_new_points(self, points: list[RecoveryPoint]) -> None:
        """Check all points of the VM, newest first: their disks, and the contents of those that were not compared yet."""
        for text in self.disks.broken_by(points):
            self.broken("points have their disks", text)
        for point in points:
            self.check_point(point)

    def check_point(self, point: RecoveryPoint) -> None:
        """Compare all disks of a recovery point with the model, once."""
        position = point.position
        for disk_id, name in self.memory.names.items():
            if (position, disk_id) in self._checked or not self.disks.in_point(name, point):
                continue
            self._checked.add((position, disk_id))
            folder, key = self._managed() / disk_id, self.memory.keys.get(disk_id)
            self._check_view(name, position, partial(open_disk, folder, position, key))

    def check_points(self, points: list[RecoveryPoint]) -> None:
        """Compare all disks at all recovery points with the model, at the end: no role changes a file any more."""
        for disk_id, name in self.memory.names.items():
            positions = [point.position for point in points if self.disks.in_point(name, point)]
            if not positions:
                continue
            try:
                state = load_history(self._managed() / disk_id)
                cipher = cipher_of(state, self.memory.keys.get(disk_id))
            except RigError as error:
                self.broken("every point can be opened", f"disk {name}: {error.code} {error.message}")
                continue
            for position in sorted(positions):
                self._check_view(name, position, partial(_view_at, state, cipher, position))

    def _check_view(self, name: str, position: int, opened: Callable[[], ViewLayer]) -> None:
        try:
            view = opened()
        except RigError as error:
            self.broken("every point can be opened", f"position {position} of disk {name}: {error.code} {error.message}")
            return
        try:
            found = view.pread(0, view.size_bytes)
        finally:
            view.close()
        expected = self.memory.models[name].at(position)
        if found != expected:
            self.broken(
                "every point equals the model", f"position {position} of disk {name}: {_difference(found, expected)}"
            )


def _view_at(state: StoreState, cipher: DiskCipher | None, position: int) -> ViewLayer:
    return decrypted(view_in(state, position), cipher)


def _key(mark: Watermark) -> tuple[int, int, bool, int]:
    return mark.generation, mark.sync_parts, mark.sync_complete, mark.log_seq


def _covers(mark: Watermark, part: PartName) -> bool:
    if mark.generation != part.generation:
        return mark.generation > part.generation
    return part.last <= (mark.sync_parts if part.stream == "sync" else mark.log_seq)


def _difference(actual: bytes, expected: bytes) -> str:
    if len(actual) != len(expected):
        return f"{len(actual)} bytes instead of {len(expected)}"
    places = [at for at in range(0, len(actual), 512) if actual[at : at + 512] != expected[at : at + 512]]
    return f"{len(places)} sectors differ, the first at {places[0]}"
