"""The initial replication of one VM by a whole rig, beside a bare loop that moves the same bytes through the same account.

``python -m bench.replication [--mib 768] [--rounds 3] [--folder DIR]``; needs FUSE and Azurite.

In each round new VMs of one disk are replicated, in turn with two loops that do without siterig:

- *puts*: blobs of 8 MiB are put into the rig's Azurite, two in flight;
- *applied*: each of two workers puts a blob, gets it, writes it to a file of this host's disk, and calls fdatasync.

A replication is measured from the order (``vault.enable_protection``) until the vault has noted that every part is in the
account (*sent*), and until everything is applied (*applied*).  In the service the recovery side is not on the machines of
the site.  So *alone* is a replication during which the applier is stopped until all is sent; otherwise it shares the cores
and the account with the agent.  Only the ratios of one round are comparable.

On a virtual machine a page of memory that was not used lately costs a fault of the hypervisor.  So before each measurement
memory is used and freed again, as much as a measurement needs for the files that it makes.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import trio
from azure.storage.blob import BlobServiceClient, ContainerClient

from siterig.azure_emu.storage.azurite import connection_string
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.core.paths import Layout
from siterig.replication.engine.part_pipeline import PART_BYTES_MAX
from siterig.replication.engine.uploader import SPOOLED_PARTS_MAX
from siterig.testing.testbed import Testbed

BLOB_BYTES = 8 << 20
PUTS_IN_FLIGHT = 2
POLL_S = 0.1
MIB_MAX = (SPOOLED_PARTS_MAX - 8) * PART_BYTES_MAX >> 20
PAGES_OF_A_RUN = 3
"""A measurement writes the bytes of the disk about so many times to new files."""
SENDING_STATE = "InitialReplicationInProgress"
APPLIED_STATES = ("InitialReplicationCompletedOnRecovery", "Protected")
SENT_STATES = ("InitialReplicationCompletedOnPrimary", *APPLIED_STATES)
TARGETS = {
    ("random alone sent", "bare puts"): 0.9,
    ("text alone sent", "bare puts"): 1.5,
    ("random applied", "bare applied"): 0.8,
    ("random sent", "bare puts"): 0.0,
}
"""Least ratio of a rate, in bytes of the guest, to that of a loop with random bytes; 0: for comparison."""
_WORDS = [bytes(random.Random(number).choices(b"etaoinshrdlu", k=2 + number % 9)) for number in range(4000)]  # noqa: S311


def random_bytes(_number: int) -> bytes:
    """Return a blob of bytes that cannot be compressed."""
    return os.urandom(BLOB_BYTES)


def text(number: int) -> bytes:
    """Return a blob of words that zstd compresses to about a third."""
    dice = random.Random(number)  # noqa: S311
    words = b" ".join(dice.choices(_WORDS, k=BLOB_BYTES // 6))
    return (words * 2)[:BLOB_BYTES] if len(words) < BLOB_BYTES else words[:BLOB_BYTES]


KINDS: dict[str, Callable[[int], bytes]] = {"random": random_bytes, "text": text}


class BareLoop:
    """Moves the bytes of one file through a container of its own in the rig's Azurite."""

    def __init__(self, layout: Layout, folder: Path, size_bytes: int) -> None:
        self._container: ContainerClient = BlobServiceClient.from_connection_string(
            connection_string(layout.azurite, layout.keys),
            retry_total=0,
            max_single_put_size=1 << 30,
            connection_verify=str(layout.authority_certificate),
        ).get_container_client("bench")
        self._folder = folder
        self._count = size_bytes // BLOB_BYTES
        self._blobs = [os.urandom(BLOB_BYTES) for _ in range(4)]

    def puts(self) -> float:
        """Return the bytes a second of puts alone."""
        return self._timed(self._put)

    def applied(self) -> float:
        """Return the bytes a second of put, get, write and fdatasync."""
        path = self._folder / "bare"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

        def whole(number: int) -> None:
            self._put(number)
            data = self._container.download_blob(f"b{number}").readall()
            os.pwrite(fd, data, number * BLOB_BYTES)
            os.fdatasync(fd)

        try:
            return self._timed(whole)
        finally:
            os.close(fd)
            path.unlink()

    def _put(self, number: int) -> None:
        self._container.upload_blob(f"b{number}", self._blobs[number % len(self._blobs)], overwrite=True)

    def _timed(self, work: Callable[[int], None]) -> float:
        self._container.create_container()
        try:
            _use_pages(self._folder, self._count * BLOB_BYTES)
            begun = time.perf_counter()
            with ThreadPoolExecutor(PUTS_IN_FLIGHT) as pool:
                list(pool.map(work, range(self._count)))
            return self._count * BLOB_BYTES / (time.perf_counter() - begun)
        finally:
            self._container.delete_container()


async def replicate(
    rig: Testbed, vm: str, make: Callable[[int], bytes], size_bytes: int, *, alone: bool
) -> dict[str, float]:
    """Return the bytes a second of the replication of a new VM: ``sent``, and ``applied`` unless the agent is alone."""
    await rig.vault.create_vm(vm=vm, disks=[DiskSpec(name="data", size_bytes=size_bytes)])
    disk = rig.layout.site_mount / vm / "data.img"
    await trio.to_thread.run_sync(_fill, disk, make, size_bytes)
    await trio.to_thread.run_sync(_use_pages, rig.layout.root, size_bytes)
    (applier,) = [role.pid for role in (await rig.supervisor.status()).roles if role.name == "applier" and role.pid]
    begun = time.perf_counter()
    await rig.vault.enable_protection(vm=vm, interval_s=900)
    found: dict[str, float] = {}
    stopped = False
    try:
        while (state := await _state(rig, vm)) not in APPLIED_STATES or not found:
            if state in SENT_STATES:
                found.setdefault("sent", size_bytes / (time.perf_counter() - begun))
                os.kill(applier, signal.SIGCONT)
            elif alone and not stopped and state == SENDING_STATE:
                os.kill(applier, signal.SIGSTOP)
                stopped = True
            await trio.sleep(POLL_S)
    finally:
        os.kill(applier, signal.SIGCONT)
    if not alone:
        found["applied"] = size_bytes / (time.perf_counter() - begun)
    job = await rig.vault.disable_protection(vm=vm)
    while job.endTime is None:
        await trio.sleep(0.1)
        job = await rig.vault.job(name=job.name)
    await rig.vault.delete_vm(vm=vm)
    return found


async def _state(rig: Testbed, vm: str) -> str:
    (item,) = [item for item in await rig.vault.items() if item.name == vm]
    return item.protectionState


def _fill(disk: Path, make: Callable[[int], bytes], size_bytes: int) -> None:
    with disk.open("r+b", buffering=0) as file:
        for number in range(size_bytes // BLOB_BYTES):
            file.write(make(number))
        os.fsync(file.fileno())


def _use_pages(folder: Path, size_bytes: int) -> None:
    """Let the hypervisor provide the memory that a measurement of so many bytes will need."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(PAGES_OF_A_RUN * size_bytes // BLOB_BYTES):
            file.write(bytes(BLOB_BYTES))


async def measure(folder: Path, size_bytes: int, rounds: int) -> dict[str, list[float]]:
    """Return the rates of all rounds by subject."""
    rates: dict[str, list[float]] = defaultdict(list)
    async with Testbed.up(folder / "rig") as rig:
        loop = BareLoop(rig.layout, folder, size_bytes)
        for number in range(rounds):
            for name, run in (("puts", loop.puts), ("applied", loop.applied)):
                rates[f"bare {name}"].append(await trio.to_thread.run_sync(run))
            for kind, alone in (("random", True), ("random", False), ("text", True)):
                subject = f"{kind} alone" if alone else kind
                vm = f"{subject.replace(' ', '-')}-{number}"
                for stage, rate in (await replicate(rig, vm, KINDS[kind], size_bytes, alone=alone)).items():
                    rates[f"{subject} {stage}"].append(rate)
            figures = (f"{name} {found[-1] / 1e6:.0f}" for name, found in rates.items())
            print(f"round {number + 1}/{rounds}", *figures, sep="  ", flush=True)
    return rates


def main() -> None:
    """Measure all rounds, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    allowed = f"8 to {MIB_MAX}, because more may not wait for the applier, which is stopped meanwhile"
    parser.add_argument("--mib", type=int, default=768, help=f"MiB of the disk: {allowed}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if not 8 <= options.mib <= MIB_MAX:
        parser.error(f"--mib: {options.mib} is not allowed; allowed: {allowed}")
    with tempfile.TemporaryDirectory(prefix="siterig-bench-", dir=options.folder) as folder:
        rates = trio.run(measure, Path(folder), options.mib << 20, options.rounds)
    for name, rate in rates.items():
        print(f"{name:18s} {statistics.median(rate) / 1e6:7.1f} MB/s")
    for (subject, peer), least in TARGETS.items():
        ratios = [ours / theirs for ours, theirs in zip(rates[subject], rates[peer], strict=True)]
        found = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{subject} against {peer}: {found}, at least {least:g}x")


if __name__ == "__main__":
    main()
