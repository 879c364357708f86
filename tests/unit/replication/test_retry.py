from __future__ import annotations

import errno
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.blockfs.core.errors import Code, RigError
from siterig.replication.engine.retry import OFFICIAL_DELAYS_S, ResyncNeeded, RetryTable, as_rig_error, unwrap_group
from siterig.replication.replicas.replica import KEY_AGAIN_S
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads

HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


def test_official_table_is_1_2_4_8_10_minutes_then_every_30() -> None:
    table = RetryTable()
    assert [table.delay_s(attempt) / 60 for attempt in range(1, 9)] == [1, 2, 4, 8, 10, 30, 30, 30]


def test_a_delay_is_not_shorter_than_the_account_asks_for() -> None:
    asked = RigError(Code.CacheUnreachable, "busy", recoverable=True, retry_after_s=7)
    assert [RetryTable((1.0, 20.0)).delay_s(attempt, asked) for attempt in (1, 2)] == [7.0, 20.0]


@pytest.mark.parametrize("delays_s", [(), (1.0, 0.0), (-1.0,)])
def test_table_without_positive_delays_is_refused(delays_s: tuple[float, ...]) -> None:
    with pytest.raises(RigError, match=r"retry delays .* s: at least one, each above 0"):
        RetryTable(delays_s)


@pytest.mark.parametrize(
    ("number", "code", "recoverable"),
    [
        (errno.ENOSPC, "DiskFull", True),
        (errno.ENOMEM, "LowMemory", True),
        (errno.ENOTCONN, "DiskHostUnreachable", True),
        (errno.EMFILE, "HostIoError", True),
        (errno.EACCES, "HostIoError", False),
    ],
)
def test_host_errors_have_their_class(number: int, code: str, recoverable: bool) -> None:
    error = as_rig_error(OSError(number, "why", "/some/file"))
    assert (error.code, error.message, error.recoverable) == (code, "/some/file: why", recoverable)


def test_of_several_failures_the_one_that_needs_a_hand_decides() -> None:
    passing, lasting = RigError(Code.of("A"), "a", recoverable=True), RigError(Code.of("B"), "b")
    with pytest.raises(RigError) as caught, unwrap_group():
        raise ExceptionGroup("", [passing, ExceptionGroup("", [lasting])])
    assert caught.value is lasting
    with pytest.raises(ResyncNeeded), unwrap_group():
        raise ExceptionGroup("", [lasting, ResyncNeeded("LogGap")])


def test_a_bug_among_the_failures_stays_visible() -> None:
    with pytest.raises(ExceptionGroup), unwrap_group():
        raise ExceptionGroup("", [RigError(Code.of("A"), "a"), ZeroDivisionError()])


@pytest.mark.slow
async def test_72_hours_without_cache_account_are_retried_by_the_official_table(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(tmp_path)
    rig.retry_delays_s = OFFICIAL_DELAYS_S
    await rig.make_vm()
    rig.write(5)
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        with rig.cache_down():
            await trio.sleep(72 * HOUR_S)
            assert rig.vault.recovered == []
        await trio.sleep(0.6 * HOUR_S)
        times = [time for time, _, _, _ in rig.vault.errors]
        gaps = [round((b - a) / 60) for a, b in pairwise(times)]
        assert gaps[:6] == [1, 2, 4, 8, 10, 30]
        assert set(gaps[6:]) == {30}
        assert 140 <= len(times) <= 150
        assert [attempt for _, _, attempt, _ in rig.vault.errors] == list(range(1, len(times) + 1))
        assert {code for _, code, _, _ in rig.vault.errors} == {"CacheUnreachable"}
        assert [next_s for _, _, _, next_s in rig.vault.errors][:6] == list(OFFICIAL_DELAYS_S)
        assert len(rig.vault.recovered) == 1
        cut = await rig.cycle(agent)
    for position in rig.vault.points:
        rig.check_point(position)
    rig.check_point(cut.position)
    rig.host.close()


async def test_a_permanent_failure_is_critical_and_waits_for_an_administrator(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(tmp_path)
    await rig.make_vm()
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        with rig.cache_down("CacheAuthentication", recoverable=False):
            await trio.sleep(24 * HOUR_S)
        assert [(code, next_s) for _, code, _, next_s in rig.vault.errors] == [("CacheAuthentication", None)]
        points = len(rig.vault.points)
        await trio.sleep(HOUR_S)
        assert len(rig.vault.points) == points, "it stays Critical though the cause has gone"
        await rig.cycle(agent)
        assert len(rig.vault.recovered) == 1
        points = len(rig.vault.points)
        await trio.sleep(10 * rig.interval_s)
        assert len(rig.vault.points) >= points + 9
    rig.host.close()


async def test_an_order_ends_the_long_wait_for_a_retry(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    rig = Rig(tmp_path)
    rig.retry_delays_s = OFFICIAL_DELAYS_S
    await rig.make_vm()
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        with rig.cache_down("SasExpired"):
            await trio.sleep(2 * HOUR_S)
            tries = len(rig.vault.errors)
            agent.retry_now("test")
            await trio.sleep(1)
            assert len(rig.vault.errors) == tries + 1, "the work is tried once, and waits again"
        agent.retry_now("test")
        await trio.sleep(0.1)
        assert len(rig.vault.recovered) == 1

        def order_once(name: str) -> None:
            if name == "replication_error":
                rig.interceptor.before = lambda _name: None
                agent.retry_now("test")

        with rig.cache_down("SasExpired"):
            rig.interceptor.before = order_once
            tries = len(rig.vault.errors)
            await trio.sleep(rig.interval_s + 1)
            assert len(rig.vault.errors) == tries + 2, "an order while the failure is being reported is not lost"
    rig.host.close()


async def test_a_revoked_key_stops_the_cycles_until_it_is_restored(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(tmp_path)
    await rig.make_vm()
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        with rig.cache_down("KeyRevoked", recoverable=False):
            await trio.sleep(HOUR_S)
        assert [(code, next_s) for _, code, _, next_s in rig.vault.errors] == [("KeyRevoked", None)], "one report"
        points = len(rig.vault.points)
        await trio.sleep(KEY_AGAIN_S + 10 * rig.interval_s)
        assert len(rig.vault.points) >= points + 9
        assert len(rig.vault.recovered) == 1
    rig.host.close()


async def test_initial_replication_reports_failure_and_resumes_on_request(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(tmp_path)
    await rig.make_vm()
    rig.write(10)
    async with rig.agent() as agent:
        with rig.cache_down("CacheForbidden", recoverable=False), pytest.raises(RigError, match="CacheForbidden for"):
            await rig.protect(agent)
        await agent.initial_replication(vm=VM)
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)
    rig.host.close()


async def test_reports_that_the_vault_missed_are_sent_later_and_data_still_flows(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(tmp_path)
    await rig.make_vm()
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        before = len(rig.vault.points)
        rig.vault.trouble = RigError(Code.RoleUnavailable, "vault is away", recoverable=True)
        rig.write(3)
        cut = await rig.cycle(agent)
        assert cut.position not in rig.vault.points
        assert any(part.stream == "log" for part in rig.cache.blobs), "data does not wait for the vault"
        await trio.sleep(5 * rig.interval_s)
        puts = len(rig.cache.puts)
        assert puts == len(set(rig.cache.puts)), "nothing was sent twice"
        rig.vault.trouble = None
        await trio.sleep(10)
        assert cut.position in rig.vault.points
        assert len(rig.vault.points) >= before + 5
        assert rig.vault.errors == []
    rig.check_point(cut.position)
    rig.host.close()
