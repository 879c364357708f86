"""A protected VM at work: its writes, its recovery point objective, and the memory of the roles over a backlog.

``python -m bench.protected [writes] [rpo] [backlog] [--rounds 3] [--folder DIR]``; needs FUSE, Azurite and fio.

- *writes*: fio writes to a full range of a disk of a VM that is protected, at an interval of ``--interval`` seconds, beside
  the same job on a disk that is tracked and not protected; a job that fills a log up to its limit counts as a failure;
- *rpo*: four VMs write 5 MB/s each, at random places, for ``--minutes``, at an interval of 30 s; the largest RPO of a VM
  that the vault names, read each second, once the first recovery point is there;
- *backlog*: the largest memory of all processes but Azurite's program while a backlog grows and is worked off, beside one
  that is ten times shorter; once of a log that waits for the account, and once of parts that wait for the applier.

Only figures of one run are comparable.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

from bench import fio
from bench.idle.processes import peaks, processes, reset_peaks
from siterig.azure_emu.vault.model.resources import ProtectedItem
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.testing.testbed import Testbed

WRITES_MIN, RPO_S_MAX, MEMORY_MAX = 0.7, 40.0, 1.1
"""The targets: throughput against an unprotected disk, the largest RPO, and memory against that of the shorter backlog."""
WRITTEN_DISK_BYTES, SEQUENTIAL_S = 16 << 30, 3.0
"""The limit of a log is half of its disk: one of the sequential job needs a large disk, and a short time."""
BACKLOG_DISK_BYTES = 4 << 30
HELD = ("azurite", "applier")
RPO_VMS, RPO_RATE = 4, 5_000_000
RPO_INTERVAL_S = 30.0
BLOCK_BYTES = 4096
READY_S = 600.0
Rigs = Callable[[str], AbstractAsyncContextManager[Testbed]]


async def _item(rig: Testbed, vm: str) -> ProtectedItem:
    (item,) = [item for item in await rig.vault.items() if item.name == vm]
    return item


async def _make(rig: Testbed, vm: str, size_bytes: int) -> Path:
    await rig.vault.create_vm(vm=vm, disks=[DiskSpec(name="data", size_bytes=size_bytes)])
    return rig.layout.site_mount / vm / "data.img"


async def _protect(rig: Testbed, vm: str, interval_s: float) -> None:
    await rig.vault.enable_protection(vm=vm, interval_s=interval_s)
    await _until_applied(rig, vm)


async def _until_applied(rig: Testbed, vm: str) -> None:
    with trio.fail_after(READY_S):
        while not _is_applied(await _item(rig, vm)):  # noqa: ASYNC110 (the vault is another process)
            await trio.sleep(0.2)


async def _until_sent(rig: Testbed, vm: str, since: float) -> None:
    """Wait until a state of the VM that is newer than ``since``, in trio's time, is in the account."""
    with trio.fail_after(READY_S):
        while True:
            age_s = (await _item(rig, vm)).lastRpoInSeconds
            if age_s is not None and age_s < trio.current_time() - since:
                return
            await trio.sleep(0.2)


def _is_applied(item: ProtectedItem) -> bool:
    return item.protectionState == "Protected" and not item.unapplied_bytes


def _fill(disk: Path, size_bytes: int) -> None:
    with disk.open("r+b", buffering=0) as file:
        for _ in range(size_bytes >> 20):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())


async def writes(rigs: Rigs, options: argparse.Namespace) -> list[str]:
    """Return the ratios of the throughput of a protected disk to that of one that is only tracked."""
    found: dict[str, dict[str, list[float]]] = {name: {"tracked": [], "protected": []} for name in ("randwrite", "seqwrite")}
    async with rigs("writes") as rig:
        disks = {vm: await _make(rig, vm, WRITTEN_DISK_BYTES) for vm in ("tracked", "protected")}
        for disk in disks.values():
            await trio.to_thread.run_sync(_fill, disk, fio.AREA_BYTES)
        await _protect(rig, "protected", options.interval)
        for number in range(options.rounds):
            for column in found:
                for vm in ("tracked", "protected") if number % 2 else ("protected", "tracked"):
                    if vm == "tracked":
                        await rig.site.start_tracking(vm=vm)
                    seconds = min(options.seconds, SEQUENTIAL_S) if column == "seqwrite" else options.seconds
                    figure = await trio.to_thread.run_sync(_job, column, disks[vm], seconds)
                    found[column][vm].append(figure.value)
                    (state,) = await rig.site.list_disks(vm=vm)
                    if state.needs_resync is not None:
                        raise SystemExit(f"{column}: the log of the disk is full: {state.needs_resync}")
                    if vm == "tracked":
                        await rig.site.stop_tracking(vm=vm)
                    else:
                        await _until_applied(rig, vm)
                print(f"round {number + 1}/{options.rounds}  {column}", found[column]["protected"][-1], flush=True)
    lines = []
    for column, figures in found.items():
        ratios = [ours / theirs for ours, theirs in zip(figures["protected"], figures["tracked"], strict=True)]
        values = ", ".join(f"{vm} {statistics.median(each):.0f}" for vm, each in figures.items())
        ratio = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}), at least {WRITES_MIN:g}x"
        lines.append(f"{fio.COLUMNS[column].title}, {fio.COLUMNS[column].unit}: {values}: {ratio}")
    return lines


def _job(column: str, disk: Path, seconds: float) -> fio.Figure:
    return fio.run(fio.COLUMNS[column], disk, seconds=seconds, launcher=[])


async def rpo(rigs: Rigs, options: argparse.Namespace) -> list[str]:
    """Return the largest RPO of each of four VMs that write."""
    largest: dict[str, float] = {}
    async with rigs("rpo") as rig:
        disks = {vm: await _make(rig, vm, 256 << 20) for vm in (f"vm{number}" for number in range(RPO_VMS))}
        for vm in disks:
            await _protect(rig, vm, RPO_INTERVAL_S)
        command = [
            "fio",
            "--ioengine=psync",
            "--rw=randwrite",
            "--bs=16k",
            "--direct=1",
            "--time_based",
            "--group_reporting",
        ]
        command += [f"--rate={RPO_RATE}", f"--runtime={options.minutes * 60:.0f}", "--allow_file_create=0", "--size=256m"]
        for vm, disk in disks.items():
            command += [f"--name={vm}", f"--filename={disk}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as guests:  # noqa: ASYNC220 (begins at once)
            try:
                while guests.poll() is None:
                    for item in await rig.vault.items():
                        if item.lastRpoInSeconds is not None:
                            largest[item.name] = max(largest.get(item.name, 0.0), item.lastRpoInSeconds)
                    await trio.sleep(1)
            finally:
                guests.terminate()
    values = ", ".join(f"{vm} {value:.1f} s" for vm, value in sorted(largest.items()))
    return [f"largest RPO in {options.minutes:g} minutes: {values}; under {RPO_S_MAX:g} s"]


async def backlog(rigs: Rigs, options: argparse.Namespace) -> list[str]:
    """Return the ratios of the memory over a backlog to that over a shorter one."""
    lines = []
    for role in options.held:
        ratios, found = [], []
        for number in range(options.rounds):
            short, long = [
                await _peak_bytes(rigs, f"{role}{number}-{writes}", role, writes)
                for writes in (options.writes, 10 * options.writes)
            ]
            ratios.append(long / short)
            found.append((short, long))
            print(f"round {number + 1}/{options.rounds}  {role} held: {short >> 20} MiB, {long >> 20} MiB", flush=True)
        ratio = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}), at most {MEMORY_MAX:g}x"
        short, long = (statistics.median(each) / 2**20 for each in zip(*found, strict=True))
        waiting = f"{options.writes} and {10 * options.writes} writes of {BLOCK_BYTES} bytes wait for the {role}"
        lines.append(f"memory while {waiting}: {short:.0f} and {long:.0f} MiB: {ratio}")
    return lines


async def _peak_bytes(rigs: Rigs, name: str, role: str, writes: int) -> int:
    """Return the largest PSS of a rig while ``writes`` writes that waited for a role are replicated."""
    async with rigs(name) as rig:
        disk = await _make(rig, "vm", BACKLOG_DISK_BYTES)
        await _protect(rig, "vm", RPO_INTERVAL_S)
        await rig.supervisor.kill_role(name=role, hold=True)
        pids = await processes(rig)
        reset_peaks(pids)
        await trio.to_thread.run_sync(_write, disk, writes)
        written = trio.current_time()
        if role == "applier":
            await _until_sent(rig, "vm", written)
        await rig.supervisor.start_role(name=role)
        await _until_sent(rig, "vm", written)
        await _until_applied(rig, "vm")
        peak = peaks(pids | await processes(rig))
        print(f"  {name}", *(f"{role} {pss >> 20} MiB" for role, pss in sorted(peak.items())), sep="  ", flush=True)
        return sum(peak.values())


def _write(disk: Path, writes: int) -> None:
    dice = random.Random(writes)  # noqa: S311
    blocks = fio.AREA_BYTES // BLOCK_BYTES
    descriptor = os.open(disk, os.O_WRONLY)
    try:
        for _ in range(writes):
            os.pwrite(descriptor, dice.randbytes(BLOCK_BYTES), dice.randrange(blocks) * BLOCK_BYTES)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


SUBJECTS = {"writes": writes, "rpo": rpo, "backlog": backlog}


def main() -> None:
    """Measure, and print the figures with their targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", choices=[*SUBJECTS, []], default=list(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--interval", type=float, default=2.0, help="replication interval of 'writes' in seconds")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a job of 'writes'")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of 'rpo'")
    parser.add_argument("--held", nargs="+", choices=HELD, default=HELD, help="the role that a backlog waits for")
    parser.add_argument("--writes", type=int, default=16384, help="writes of the shorter backlog")
    parser.add_argument("--folder", type=Path, help="where the rigs are; default: the temporary folder")
    options = parser.parse_args()
    if not all(math.isfinite(value) and value > 0 for value in (options.interval, options.seconds, options.minutes)):
        parser.error("--interval, --seconds and --minutes: allowed are numbers above 0")
    with tempfile.TemporaryDirectory(prefix="siterig-bench-", dir=options.folder) as folder:
        lines = [
            line
            for subject in options.subjects
            for line in trio.run(SUBJECTS[subject], lambda name: Testbed.up(Path(folder) / name), options)
        ]
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
