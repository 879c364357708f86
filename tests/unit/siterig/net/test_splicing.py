"""Tests of bytes that move from one socket to another: each reason for the end, and bytes that wait in between."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from siterig.net.splicing import PIPE_BYTES, SpliceEnd, Splicer

TEXT = bytes(range(256)) * 64


@dataclass
class Link:
    """Two connections; bytes move from ``source`` to ``target``."""

    client: socket.socket
    source: socket.socket
    target: socket.socket
    server: socket.socket

    def splicer(self, byte_count: int | None = None) -> Splicer:
        return Splicer(self.source.fileno(), self.target.fileno(), byte_count)


@pytest.fixture
def link() -> Iterator[Link]:
    (client, source), (target, server) = socket.socketpair(), socket.socketpair()
    link = Link(client, source, target, server)
    source.setblocking(False)
    target.setblocking(False)
    yield link
    for each in (client, source, target, server):
        each.close()


@pytest.mark.parametrize("byte_count", [0, 1, 1000])
def test_exactly_the_bytes_that_were_asked_for_move(link: Link, byte_count: int) -> None:
    splicer = link.splicer(byte_count)
    link.client.sendall(TEXT)
    assert splicer.run() is SpliceEnd.COMPLETE
    splicer.close()
    assert (splicer.taken_bytes, splicer.moved_bytes) == (byte_count, byte_count)
    link.target.shutdown(socket.SHUT_WR)
    assert link.server.recv(len(TEXT)) == TEXT[:byte_count]
    assert link.source.recv(len(TEXT)) == TEXT[byte_count:]


def test_the_end_of_the_stream_comes_after_its_bytes(link: Link) -> None:
    splicer = link.splicer()
    link.client.sendall(TEXT)
    link.client.shutdown(socket.SHUT_WR)
    assert splicer.run() is SpliceEnd.END_OF_STREAM
    splicer.close()
    assert link.server.recv(len(TEXT)) == TEXT


def test_a_target_that_is_gone_is_named(link: Link) -> None:
    splicer = link.splicer()
    link.client.sendall(TEXT)
    link.server.close()
    assert splicer.run() is SpliceEnd.TARGET_BROKEN
    splicer.close()
    assert splicer.moved_bytes == 0


def test_a_wake_before_the_run_ends_it(link: Link) -> None:
    splicer = link.splicer()
    link.client.sendall(TEXT)
    splicer.wake()
    assert splicer.run() is SpliceEnd.WOKEN
    splicer.close()
    assert (splicer.taken_bytes, splicer.rest) == (0, b"")


def test_a_wake_keeps_the_bytes_that_the_target_did_not_take(link: Link) -> None:
    """The target reads nothing, so that the run waits for it with bytes in the pipe."""
    splicer = link.splicer()
    ends: list[SpliceEnd] = []
    thread = threading.Thread(target=lambda: ends.append(splicer.run()))
    thread.start()
    sent = bytes(range(251)) * 251 * 16 * (PIPE_BYTES // 2**18)
    link.client.settimeout(0.2)
    at = 0
    with pytest.raises(TimeoutError):
        while at < len(sent):
            at += link.client.send(sent[at:])
    splicer.wake()
    thread.join()
    splicer.close()
    assert ends == [SpliceEnd.WOKEN]
    assert splicer.taken_bytes == splicer.moved_bytes + len(splicer.rest)
    assert splicer.rest
    link.target.shutdown(socket.SHUT_WR)
    link.client.shutdown(socket.SHUT_WR)
    arrived = b"".join(iter(lambda: link.server.recv(1 << 20), b""))
    left = b"".join(iter(lambda: link.source.recv(1 << 20), b""))
    assert arrived + splicer.rest + left == sent[:at]
