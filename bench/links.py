"""A benchmark of TLS on the links between the sides, each beside the same without TLS.

``python -m bench.links [--rounds N] [--calls N] [--json FILE]``; it needs Azurite.

Client and server are processes of their own.  Rounds with and without TLS take turns; the ratio of each pair counts, and
the median of the ratios is shown.

- *call*: a call of the agent to the vault over a kept connection, beside a Unix socket;
- *handshake*: the same over a connection of its own, as while a fault rule is armed;
- *put*: uploads of 4 MiB with two in flight, over HTTPS beside HTTP.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

from siterig.azure_emu.authority.authority import Authority
from siterig.azure_emu.storage.azurite import IDENTITY, AzuriteProcess, start_azurite
from siterig.azure_emu.storage.blob_cache import BlobCacheAccount
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.trust.identity import TlsContext, only
from siterig.core.paths import Layout
from siterig.rpc import server, trust
from siterig.rpc.client import proxy
from siterig.rpc.tls_server import serve_tls
from siterig.rpc.ways import TlsWay
from siterig.supervisor.identities import ensure_identities

PUT_BYTES = 4 << 20
PUTS = 24
IN_FLIGHT = 2
DISK_ID = "0f0e0d0c-0000-4000-8000-000000000001"
Measure = Callable[[], Awaitable[float]]
"""Returns the result of one round: calls or MiB in a second."""


class Answers:
    """The part of ``VaultLink`` that is called."""

    async def may_replicate(self, *, vm: str) -> bool:
        """Return True for every VM with a name."""
        return bool(vm)


async def serve_calls(layout: Layout) -> None:
    """Serve the calls on a Unix socket and over TLS, until killed."""
    ensure_identities(layout, SYSTEM_CLOCK)
    Authority(layout.authority, SYSTEM_CLOCK).replace_identity(layout.host_identity, "host", trust.HOST)
    faces: dict[str, tuple[type, object]] = {"VaultLink": (VaultLink, Answers())}
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, faces, layout.socket("vault"))
        context = trust.vault_server_tls(layout, SYSTEM_CLOCK, print)
        await nursery.start(serve_tls, faces, layout.port("vault"), context, lambda _: None)
        print("ready", flush=True)


@contextmanager
def calls_server(folder: Path) -> Iterator[None]:
    """Run the server of calls in a process of its own."""
    command = [sys.executable, "-m", "bench.links", "--serve", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            for _ in child.stdout or ():
                break
            yield
        finally:
            child.kill()


async def calls(link: VaultLink, count: int, way: TlsWay | None = None) -> float:
    """Return the calls in a second; with a way each call has a connection of its own."""
    begin = time.perf_counter()
    for _ in range(count):
        await link.may_replicate(vm="web01")
        if way is not None:
            await way.aclose()
    return count / (time.perf_counter() - begin)


async def puts(account: BlobCacheAccount, data: bytes) -> float:
    """Return the MiB in a second."""
    numbers = iter(range(1, PUTS + 1))
    begin = time.perf_counter()

    async def put() -> None:
        for number in numbers:
            await account.put(PartName(DISK_ID, 1, "sync", number, number), data, replace=True)

    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(put)
    return PUTS * PUT_BYTES / (1 << 20) / (time.perf_counter() - begin)


async def compare(rounds: int, with_tls: Measure, without: Measure) -> tuple[float, float, float]:
    """Return the medians with and without TLS, and the median of the ratios; the first pair is not counted."""
    pairs = [(await with_tls(), await without()) for _ in range(rounds + 1)][1:]
    found = (statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs))
    return *found, statistics.median(tls / plain for tls, plain in pairs)


async def measure(folder: Path, rounds: int, count: int) -> dict[str, tuple[float, float, float]]:
    """Return the results by subject."""
    layout = Layout(folder)
    found = {}
    with calls_server(folder):
        context = partial(trust.host_tls, layout, SYSTEM_CLOCK)
        way, alone = (trust.tls_way(layout, "agent", "vault", context) for _ in range(2))
        plain = partial(calls, proxy(VaultLink, layout.socket("vault")), count)
        found["call"] = await compare(rounds, partial(calls, proxy(VaultLink, way), count), plain)
        fresh = partial(calls, proxy(VaultLink, alone), count, alone)
        found["handshake"] = await compare(rounds, fresh, plain)
        await way.aclose()
    authority = Authority(folder / "authority", SYSTEM_CLOCK)
    authority.replace_identity(folder / "secure" / IDENTITY, "storage", "cache")
    tls = TlsContext(False, authority=authority.certificate, clock=SYSTEM_CLOCK, check=only("storage"))
    secure = await start_azurite(folder / "azurite-secure", folder / "secure")
    bare = await start_azurite(folder / "azurite-bare", folder / "bare")
    accounts = BlobCacheAccount(secure.connection_string, tls=tls), BlobCacheAccount(bare.connection_string)
    data = os.urandom(PUT_BYTES)
    try:
        found["put"] = await compare(rounds, partial(puts, accounts[0], data), partial(puts, accounts[1], data))
    finally:
        await stop(secure, bare)
    return found


async def stop(*processes: AzuriteProcess) -> None:
    """End Azurite."""
    for process in processes:
        await process.stop()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        trio.run(serve_calls, Layout(options.serve))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("run", "links", "agent"):
            Path(folder, name).mkdir()
        found = trio.run(measure, Path(folder), options.rounds, options.calls)
    table = Table("subject", "with TLS", "without", "ratio")
    for subject, (with_tls, without, ratio) in found.items():
        table.add_row(subject, f"{with_tls:.1f}", f"{without:.1f}", f"{ratio:.2f}")
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
