"""Waits: each is listed with its first start time until it ends."""

from __future__ import annotations

import json
import os
import resource
import socket

import pytest
import trio
import trio.testing

from siterig.blockfs.core import waits as waits_module
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.roles.entry import Health, answer_checks
from tests.support.clocks import SettableClock


def test_a_wait_keeps_its_first_start_time_across_retries_and_reasons() -> None:
    clock = SettableClock(wall_ns=100)
    waits = Waits(clock)
    waits.set("upload", "CacheUnreachable", "refused", vm="web01")
    clock.advance_ns(100)
    waits.set("upload", "CacheUnreachable", "timed out", vm="web01")
    waits.set("upload", "CacheUnreachable", "refused", vm="web02")
    waits.set("upload", "DiskFull", "no room", vm="web01")
    assert [(w.vm, w.code, w.reason, w.since_ns) for w in waits.list()] == [
        ("web01", "DiskFull", "no room", 100),
        ("web02", "CacheUnreachable", "refused", 200),
    ]


def test_a_cleared_wait_starts_with_a_new_time() -> None:
    clock = SettableClock(wall_ns=100)
    waits = Waits(clock)
    waits.set("upload", "CacheUnreachable", "refused")
    waits.clear("upload")
    assert waits.list() == []
    waits.clear("upload")
    clock.advance_ns(200)
    waits.set("upload", "CacheUnreachable", "refused")
    assert [w.since_ns for w in waits.list()] == [300]


def test_all_attempts_in_a_block_are_one_wait_that_ends_with_it() -> None:
    clock = SettableClock(wall_ns=100)
    waits = Waits(clock)

    def attempts() -> None:
        with waits.waiting("apply", vm="web01", disk="os") as because:
            assert waits.list() == []
            for attempt in range(3):
                because(RigError(Code.PartNotFound, f"attempt {attempt}"))
                clock.advance_ns(50)
            assert [(w.disk, w.reason, w.since_ns) for w in waits.list()] == [("os", "attempt 2", 100)]
            raise KeyError

    with pytest.raises(KeyError):
        attempts()
    assert waits.list() == []


def test_only_the_oldest_of_very_many_waits_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits_module, "LISTED_MAX", 2)
    clock = SettableClock(wall_ns=100)
    waits = Waits(clock)
    for name in ("c", "b", "a"):
        waits.set("apply", "Slow", "x" * 1000, disk=name)
        clock.advance_ns(1)
    assert [(w.disk, len(w.reason)) for w in waits.list()] == [("c", 500), ("b", 500)]


async def test_a_role_answers_health_checks_without_a_free_file_descriptor() -> None:
    ours, theirs = socket.socketpair()
    health = Health()
    health.waits.set("upload", "CacheUnreachable", "refused", vm="web01")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ours:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_checks, health, theirs.detach())
            await trio.testing.wait_all_tasks_blocked()
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                ours.send(b"\n")
                await trio.testing.wait_all_tasks_blocked()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            first = json.loads(ours.recv(65536))
            ours.send(b"\n")
            await trio.testing.wait_all_tasks_blocked()
            second = json.loads(ours.recv(65536))
            nursery.cancel_scope.cancel()
    assert [wait["code"] for wait in first["waits"]] == ["CacheUnreachable", "DescriptorsExhausted"]
    assert first["waits"][1]["reason"] == f"all 3 file descriptors are in use ({os.strerror(24)})"
    assert [wait["code"] for wait in second["waits"]] == ["CacheUnreachable"]


async def test_the_error_of_a_failed_probe_is_the_answer() -> None:
    ours, theirs = socket.socketpair()
    health = Health()

    async def silent() -> None:
        raise RigError(Code.AzuriteSilent, "Azurite does not answer")

    health.probe = silent
    with ours:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_checks, health, theirs.detach())
            ours.send(b"\n")
            await trio.testing.wait_all_tasks_blocked()
            assert json.loads(ours.recv(65536)) == {"waits": [], "problem": "Azurite does not answer"}
            nursery.cancel_scope.cancel()


async def test_a_reason_that_is_not_utf8_does_not_hide_other_waits() -> None:
    health = Health()
    health.waits.set("upload", "DiskFull", "/srv/\udcff: no room")
    health.waits.set("vault", "PeerUnreachable", "nobody answers")

    async def probe() -> None:
        raise RigError(Code.MountLost, "/srv/\udcff is gone")

    ours, theirs = socket.socketpair()
    with ours:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_checks, health, theirs.detach())
            stream = trio.socket.from_stdlib_socket(ours)
            await stream.send(b"\n")
            answer = json.loads(await stream.recv(65536))
            assert [wait["reason"] for wait in answer["waits"]] == ["/srv/\\xff: no room", "nobody answers"]
            health.probe = probe
            await stream.send(b"\n")
            assert json.loads(await stream.recv(65536))["problem"] == "/srv/\\xff is gone"
            nursery.cancel_scope.cancel()
