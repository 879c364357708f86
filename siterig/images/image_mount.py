"""Exposes one image as a disk in a folder until it is unmounted: the work of ``siterig mount``.

SIGINT, SIGTERM, SIGHUP or ``umount`` ends the mount.  The first signal does not unmount a disk that is in use, because its
users (a file system on a loop device) would lose unwritten data.  The second signal does.  A loop device that is being
detached is no user: the first signal waits for it.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.fuse import server
from siterig.blockfs.guests import loop_devices
from siterig.blockfs.host import standalone
from siterig.blockfs.host.standalone import EndedGeneration, StandAlone
from siterig.blockfs.images.image_file import Image, MountFormat, mount_source, open_image
from siterig.core.fuse_options import FuseOptions
from siterig.images import mountpoint
from siterig.images.mount_faults import MountFaults
from siterig.scenarios.faults.records import FaultVerdict, Injection
from siterig.scenarios.faults.rules import FaultRules

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DETACH_S = 5.0
"""The time that the first signal waits for a loop device which is being detached, and for users that cannot be found."""
_SILENT_S = 1.0
"""A longer wait after the unmount is explained."""


@dataclass(frozen=True, slots=True)
class MountRequest:
    """The request for one mount.

    Attributes:
        image: the image.
        where: the folder to mount on.
        name: the name of the disk; None for the name of the image.
        tracked: record every write in a change log.
        read_only: refuse every write.
        format: the format of the image; None to detect it.
        fuse_options: the options of the FUSE server.
        faults: rules to arm before the disk can be used; None if the user named no file.
        seed: the seed of random choices of faults; None for that of the rules, or a random one.
        keeps_unsynced: keep what a loss of power by hand undoes.
    """

    image: Path
    where: Path
    name: str | None
    tracked: bool
    read_only: bool
    format: MountFormat | None
    fuse_options: FuseOptions
    faults: FaultRules | None = None
    seed: int | None = None
    keeps_unsynced: bool = False


@dataclass(slots=True)
class Mounted:
    """An image that is exposed.

    Attributes:
        image: the image.
        alone: its disk.
        disk: the file of the disk in the mount.
        faults: the faults of the disk.
        verdicts: when the mount has ended, for each fault rule whether it fired as often as it should.
    """

    image: Image
    alone: StandAlone
    disk: Path
    faults: MountFaults
    verdicts: list[FaultVerdict] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MountListener:
    """The functions that hear of a mount.

    Attributes:
        ready: called once, when the disk can be used.
        note: receives remarks for the user.
        injected: called with each fault that was injected.
        ended: called when the disk is no longer served, before the image is closed.
    """

    ready: Callable[[Mounted], None]
    note: Callable[[str], None]
    injected: Callable[[Injection], None]
    ended: Callable[[Mounted], None]


async def expose(request: MountRequest, listener: MountListener) -> Mounted:
    """Mount, and serve until the mount ends; image and log are then closed and durable.

    Args:
        request: the image and its options.
        listener: hears of the mount.
    Raises:
        KeyboardInterrupt: a signal arrived before the disk was mounted.
        RigError: ``ImageChanged`` if another program changed or removed the image, ``MountBusy`` if the second signal
            ended the mount while programs used it, ``LogAbandoned`` if the log was abandoned before the last write;
            ``FaultNotPossible`` or ``InvalidFault`` if a rule cannot be armed, and nothing is mounted then.
    """
    mountpoint.check_fuse()
    end = _End(listener.note)
    _heed_no_signal_after_the_end()
    with trio.open_signal_receiver(*END_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            end.opening = nursery.cancel_scope
            nursery.start_soon(end.listen, signals)
            async with _opened(request, end, listener) as mounted:
                await _serve(mounted, request, end, listener)
                listener.ended(mounted)
            nursery.cancel_scope.cancel()
    if end.interrupted:
        raise KeyboardInterrupt
    image, state = mounted.image, mounted.alone.disk.state
    if request.tracked and not state.tracked:
        why = mounted.alone.log_trouble or state.needs_resync
        raise RigError(
            Code.LogAbandoned, f"{image.path}: its change log was abandoned ({why}): the last writes are not in it"
        )
    if end.torn:
        raise RigError(
            Code.MountBusy, f"{mounted.disk.parent}: was unmounted while programs used it; the image and its log are closed"
        )
    return mounted


def _heed_no_signal_after_the_end() -> None:
    """Ignore signals after the receiver is closed: the process then only reports the end, and exits.

    ``timeout -s INT`` sends its signal twice, and the second one may come late.
    """
    for number in END_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a handler in Python would be replaced by the default action when Python ends


class _End:
    """The end of a mount: it handles signals.

    Attributes:
        opening: everything, while the image is not open: the wait for its last mount may be long.
        mounted: the file of the disk while it is served.
        device: the device number (``MAJ:MIN``) of the mount while it is served.
    """

    def __init__(self, note: Callable[[str], None], clock: Clock = SYSTEM_CLOCK) -> None:
        self._note, self._clock = note, clock
        self._refused = False
        self._unmounted = trio.Event()
        self.serving = trio.CancelScope()
        self.opening: trio.CancelScope | None = None
        self.mounted: Path | None = None
        self.device = ""
        self.interrupted = self.torn = False

    async def listen(self, signals: AsyncIterator[int]) -> None:
        """Handle signals until the end: a signal that is not received would be raised again after the cleanup."""
        async for _ in signals:
            if self.serving.cancel_called:
                continue
            if self.mounted is None:
                self.interrupted = True
                (self.opening or self.serving).cancel()
            elif not self._unmounted.is_set():
                await self._unmount(self.mounted)
            elif await mountpoint.copies(self.device):
                self.torn = True
                self.serving.cancel()

    async def explain(self) -> None:
        """Report the mount namespaces that keep the server after the unmount."""
        await self._unmounted.wait()
        await self._clock.sleep(_SILENT_S)
        if self.mounted is not None and (processes := await mountpoint.copies(self.device)):
            self._note(
                f"{self.mounted.parent} is unmounted, but still mounted in the mount namespace of {', '.join(processes)}; "
                "end that first (a second signal ends this mount while it is in use)"
            )

    async def _unmount(self, disk: Path) -> None:
        refused = await mountpoint.unmount(disk.parent)
        deadline_ns = self._clock.monotonic_ns() + round(DETACH_S * 1e9)
        while refused is not None and not self._refused and self._clock.monotonic_ns() < deadline_ns:
            if not await mountpoint.is_being_released(disk):
                break
            await self._clock.sleep(0.05)  # the kernel has no event for the end of the last use
            refused = await mountpoint.unmount(disk.parent)
        if refused is None:
            self._unmounted.set()  # the server sees it, and ends
        elif self._refused:
            self.torn = True
            self.serving.cancel()
        else:
            self._refused = True
            by = ", ".join(await mountpoint.users(disk)) or refused
            self._note(f"{disk.parent} is in use by {by}; end that first (a second signal unmounts it while it is in use)")


@asynccontextmanager
async def _opened(request: MountRequest, end: _End, listener: MountListener) -> AsyncIterator[Mounted]:
    """Open the disk of the image and prepare the mount point, and release both at the end, also after a failure."""
    note = listener.note
    image = await open_image(request.image, format_=request.format, read_only=request.read_only, note=note)
    end.opening = None
    try:
        if image.read_only and not request.read_only:
            note(f"{image.path} lies on a read-only file system: the disk can only be read")
        where = mountpoint.prepare(request.where)
        try:
            alone = standalone.open_disk(image, request.name or image.path.stem, tracked=request.tracked, report=note)
            try:
                if alone.ended_generation is not None:
                    note(_ended(image, alone, alone.ended_generation))
                disk = where.path / f"{alone.disk.paths.name}.img"
                yield Mounted(image, alone, disk, _faults(request, alone, disk, listener))
            finally:
                if end.mounted is None:
                    alone.withdraw()
                else:
                    await alone.look_at_the_end()
                    alone.close()
        finally:
            where.remove_if_created()
    finally:
        image.close()


def _faults(request: MountRequest, alone: StandAlone, disk: Path, listener: MountListener) -> MountFaults:
    of_file = None if request.faults is None else request.faults.seed
    if request.keeps_unsynced:
        alone.disk.faults.keep_unsynced()
    return MountFaults(alone, disk, seed=of_file if request.seed is None else request.seed, report=listener.injected)


def _ended(image: Image, alone: StandAlone, log: EndedGeneration) -> str:
    state = alone.disk.state
    text = f"{image.path}: the change log of generation {log.generation} ends: {log.why}"
    return f"{text}; generation {state.generation} begins with the image as it is now" if state.tracked else text


async def _serve(mounted: Mounted, request: MountRequest, end: _End, listener: MountListener) -> None:
    image, where, faults = mounted.image, mounted.disk.parent, mounted.faults
    for use in await loop_devices.loops(mounted.disk):
        listener.note(
            f"{use.loop} lies on {mounted.disk} of an earlier mount, which is dead; detach it: losetup -d {use.loop}"
        )
    async with trio.open_nursery() as nursery:
        await nursery.start(faults.run)
        if request.faults is not None:
            await faults.arm(request.faults)
        with end.serving:
            async with trio.open_nursery() as serving:

                async def serve_files(*, task_status: trio.TaskStatus[None]) -> None:
                    await server.serve(
                        mounted.alone.tree,
                        where,
                        source=mount_source(image.path),
                        read_only=image.read_only,
                        fuse_server=request.fuse_options.fuse_server,
                        task_status=task_status,
                    )
                    end.serving.cancel()

                await serving.start(serve_files)
                end.mounted, end.device = mounted.disk, mountpoint.device_at(where)
                serving.start_soon(end.explain)
                await serving.start(faults.answer_calls, end.device, listener.note)
                listener.ready(mounted)
        with trio.CancelScope(shield=True):
            mounted.verdicts += await faults.verdicts()
        nursery.cancel_scope.cancel()
