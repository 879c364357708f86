"""A benchmark of the proxies of links and of the blob service, each beside the bare connection, with messages of 1 MiB.

``python -m bench.proxies [--rounds N] [--seconds S] [--only link|blob] [--best] [--json FILE]``; ``blob`` needs Azurite.

Client, proxy and server are processes of their own.  Rounds of the bare connection and of the proxy take turns.  On a host
that does other work, too, many short rounds with ``--best`` compare the best of each.

- *request*: a message, then an answer of one byte, as an RPC call sends it;
- *stream*: messages without a pause, one answer at the end;
- *put*, *get*: uploads and downloads of a blob, by the client of the Azure SDK.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import trio
from azure.storage.blob import BlobServiceClient, ContainerClient
from rich.console import Console
from rich.table import Table

from siterig.azure_emu.storage.azurite import StorageAccount, run_azurite
from siterig.net.blob_faults import BlobFaultList
from siterig.net.blob_proxy import BlobService, serve_blob_proxy
from siterig.net.link_faults import LinkControl
from siterig.net.proxy import serve_link_proxy

MESSAGE_BYTES = 1 << 20
RATIO_MIN = 0.8
"""Target of issue 12."""
_MESSAGE = bytes(MESSAGE_BYTES)


@dataclass(frozen=True, slots=True)
class ProxyRow:
    """The medians of the rounds of one subject, or the best ones, in MiB a second."""

    subject: str
    bare: float
    proxy: float

    @property
    def ratio(self) -> float:
        """The proxy beside the bare connection."""
        return self.proxy / self.bare


@dataclass(frozen=True, slots=True)
class Plan:
    """The number of rounds, the seconds of each, and whether the best ones count."""

    rounds: int
    seconds: float
    is_best: bool


def serve_messages() -> None:
    """Serve the link: answer one byte to a number and so many messages."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            stream, _ = listener.accept()
            threading.Thread(target=answer_messages, args=[stream], daemon=True).start()


def answer_messages(stream: socket.socket) -> None:
    """Serve one connection."""
    buffer = bytearray(MESSAGE_BYTES)
    with stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while count := int.from_bytes(stream.recv(4, socket.MSG_WAITALL)):
            for _ in range(count):
                stream.recv_into(buffer, MESSAGE_BYTES, socket.MSG_WAITALL)
            stream.sendall(b"k")


async def serve_link(port: int) -> None:
    """Run the proxy of the link."""
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_link_proxy, ("127.0.0.1", port), LinkControl())
        print(address[1], flush=True)


async def serve_azurite(folder: Path) -> None:
    """Azurite; prints its port, account and key."""
    async with trio.open_nursery() as nursery:
        azurite = await nursery.start(run_azurite, folder / "azurite", folder / "keys")
        print(azurite.port, azurite.account.name, azurite.account.key, flush=True)


async def serve_blobs(url: str) -> None:
    """Run the proxy of the blob service."""
    async with trio.open_nursery() as nursery:
        print(await nursery.start(serve_blob_proxy, BlobService.parse(url), BlobFaultList()), flush=True)


SERVERS: dict[str, Callable[[str], None]] = {
    "messages": lambda _: serve_messages(),
    "link": lambda port: trio.run(serve_link, int(port)),
    "azurite": lambda folder: trio.run(serve_azurite, Path(folder)),
    "blobs": lambda url: trio.run(serve_blobs, url),
}


@contextmanager
def server(name: str, argument: str = "") -> Iterator[list[str]]:
    """Run a server in a process of its own; yield the words that it prints when it is ready."""
    command = [sys.executable, "-m", "bench.proxies", "--serve", name, argument]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not (line := process.stdout.readline()):
                raise SystemExit(f"bench.proxies: the server {name} did not start")
            yield line.split()
        finally:
            process.terminate()


def exchange(stream: socket.socket, count: int) -> None:
    """Send messages, and wait for the answer."""
    stream.sendall(count.to_bytes(4))
    for _ in range(count):
        stream.sendall(_MESSAGE)
    if stream.recv(1) != b"k":
        raise SystemExit("bench.proxies: the server has ended the connection")


def put(container: ContainerClient) -> None:
    """Upload a blob."""
    container.upload_blob("blob", _MESSAGE, overwrite=True)


def get(container: ContainerClient) -> None:
    """Download it."""
    container.download_blob("blob").readall()


def rate(work: Callable[[], None], seconds: float, messages: int = 1) -> float:
    """Return MiB a second of repeated work."""
    work()
    begin, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < seconds:
        work()
        done += messages
    return done * MESSAGE_BYTES / (1 << 20) / passed


def compare(subject: str, bare: Callable[[], None], proxy: Callable[[], None], plan: Plan, *, messages: int = 1) -> ProxyRow:
    """Measure both in turn."""
    found = [(rate(bare, plan.seconds, messages), rate(proxy, plan.seconds, messages)) for _ in range(plan.rounds)]
    choose = max if plan.is_best else statistics.median
    return ProxyRow(subject, choose(each[0] for each in found), choose(each[1] for each in found))


def link_rows(plan: Plan) -> list[ProxyRow]:
    """Measure the proxy of a link."""
    with ExitStack() as stack:
        (port,) = stack.enter_context(server("messages"))
        (proxy_port,) = stack.enter_context(server("link", port))
        streams = []
        for at in (port, proxy_port):
            stream = stack.enter_context(socket.create_connection(("127.0.0.1", int(at))))
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            streams.append(stream)
        rows = []
        for name, count in (("link, request", 1), ("link, stream", 64)):
            bare, proxy = (partial(exchange, stream, count) for stream in streams)
            rows.append(compare(name, bare, proxy, plan, messages=count))
        return rows


def blob_rows(plan: Plan) -> list[ProxyRow]:
    """Measure the proxy of the blob service."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        port, name, key = stack.enter_context(server("azurite", folder))
        (proxy_port,) = stack.enter_context(server("blobs", f"http://127.0.0.1:{port}/{name}"))
        account = StorageAccount(name, key)
        containers = []
        for at in (port, proxy_port):
            service = BlobServiceClient.from_connection_string(account.connection_string(int(at)))
            containers.append(stack.enter_context(service.get_container_client("bench")))
        containers[0].create_container()
        return [
            compare(
                f"blob, {work.__name__}",
                partial(work, containers[0]),
                partial(work, containers[1]),
                plan,
            )
            for work in (put, get)
        ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.proxies", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--only", choices=("link", "blob"))
    parser.add_argument("--best", action="store_true", help="compare the best rounds in place of the medians")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("argument", nargs="?", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        SERVERS[options.serve](options.argument)
        return
    plan = Plan(options.rounds, options.seconds, options.best)
    subjects = {"link": link_rows, "blob": blob_rows}
    rows = [row for name, measure in subjects.items() if options.only in (None, name) for row in measure(plan)]
    table = Table(title=f"messages of 1 MiB, {'best' if options.best else 'medians'} of {options.rounds} rounds")
    for column in ("", "bare, MiB/s", "proxy, MiB/s", "ratio", f"target {RATIO_MIN}"):
        table.add_column(column)
    for row in rows:
        holds = "holds" if row.ratio >= RATIO_MIN else "missed"
        table.add_row(row.subject, f"{row.bare:,.0f}", f"{row.proxy:,.0f}", f"{row.ratio:.2f}", holds)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
