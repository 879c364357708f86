"""The injector of change logs and managed disks: windows, counts, reports, refusals, and no cost without rules."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import host_calls
from siterig.core.fault_contract import FaultReport
from siterig.host_faults.disk_names import DiskNames
from siterig.host_faults.faulty_calls import FaultyCalls
from siterig.host_faults.host_rules import PART_OPERATIONS, HostRule
from siterig.host_faults.injector import HostFileInjector
from siterig.host_faults.log_files import DiskHostLogs, StandaloneLog
from siterig.host_faults.rule_book import RuleBook
from siterig.host_faults.store_files import ManagedDisks
from siterig.scenarios.faults.catalog import LAYERS, PARTS, effects_of
from siterig.scenarios.faults.rules import read_rule
from tests.support.disks.disk_history import DISK_ID
from tests.support.faults.host_faults import armed, plan, report
from tests.support.faults.logged_disk import LoggedDisk

EIO = "Input/output error"


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[LoggedDisk]:
    made = LoggedDisk(tmp_path)
    yield made
    made.close()


# --- what can be armed ----------------------------------------------------------------------------------------------------

VALUES = {
    "error": "error=EIO",
    "tear": "tear=true",
    "flip": "flip=true",
    "full_after": "full_after=0B",
    "kill": "kill=SIGKILL",
    "lost": "lost=true",
    "broken_chain": "broken_chain=true",
    "mark": "mark=m",
}


@pytest.mark.parametrize("layer", ["log", "store"])
async def test_every_fault_of_every_part_is_armed_or_refused_by_name(layer: str, tmp_path: Path) -> None:
    places = {"log": DiskHostLogs(tmp_path), "store": ManagedDisks(tmp_path)}[layer]
    assert set(PART_OPERATIONS[layer]) == set(PARTS[layer])  # type: ignore[index]
    assert {op for ops in PART_OPERATIONS[layer].values() for op in ops} == set(LAYERS[layer].operations)  # type: ignore[index]
    for effect in effects_of(layer):  # type: ignore[arg-type]
        for part in ("*", *PARTS[layer]):
            for op in ("", *LAYERS[layer].operations):  # type: ignore[index]
                words = f"{layer} {op} {VALUES[effect]}" + ("" if part == "*" else f" part={part}")
                try:
                    read_rule(words)
                except RigError:
                    continue  # the language does not have it
                try:
                    async with armed([places], words):
                        pass
                except RigError as exc:
                    assert exc.code == Code.FaultNotPossible
                    assert any(key in exc.message for key in ("where.part", "where.op")), exc.message
                    assert "allowed" in exc.message or "no operation that meets" in exc.message


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("store flip=true", "where.layer: 'store' has no files in this process; allowed: log"),
        (
            "log rotate part=snapshot error=EIO",
            "where.op: 'snapshot' has no operation 'rotate'; allowed: open, read",
        ),
        (
            "log append part=dirty-bitmap error=EIO",
            "'dirty-bitmap' has no operation 'append'; allowed: open, read, sync",
        ),
        ("log append part=snapshot tear=true", "where.part: 'snapshot' does not meet tear; allowed: segment"),
    ],
)
async def test_a_rule_that_cannot_be_armed_names_key_value_and_allowed_ones(words: str, why: str, tmp_path: Path) -> None:
    injector = HostFileInjector([DiskHostLogs(tmp_path)])
    with pytest.raises(RigError) as refused:
        await injector.arm_faults(plans=[plan("log append error=EIO"), plan(words)])
    assert (refused.value.code, why in refused.value.message) == (Code.FaultNotPossible, True), refused.value.message
    assert (await report(injector)).counts == {}, "all or none"


async def test_damage_at_once_is_in_a_file_that_holds_something(tmp_path: Path) -> None:
    folder = tmp_path / "web01"
    folder.mkdir()
    for name in ("data.recycled", "data.spare"):
        (folder / name).write_bytes(bytes(8192))
    injector = HostFileInjector([DiskHostLogs(tmp_path)])
    flip, append = plan("log part=segment flip=true name=f"), plan("log append part=segment error=EIO name=a")
    assert (await injector.arm_faults(plans=[flip])).targets == {"f": []}
    assert len((await injector.arm_faults(plans=[append])).targets["a"]) == 2
    assert {path.read_bytes() for path in folder.iterdir()} == {bytes(8192)}
    await injector.disarm_faults(names=["f", "a"])


# --- what is in force -----------------------------------------------------------------------------------------------------


async def test_without_rules_no_call_is_looked_at(logged: LoggedDisk) -> None:
    injector = HostFileInjector([DiskHostLogs(logged.root)])
    other = host_calls.HostCalls()
    host_calls.install(other)  # nobody else has installed any
    host_calls.uninstall()
    await injector.arm_faults(plans=[plan("log append error=EIO")])
    with pytest.raises(RuntimeError, match="already"):
        host_calls.install(other)
    await injector.disarm_faults(names=["log append error=EIO", "unknown"])
    logged.write(3)
    assert logged.errors == []
    host_calls.install(other)
    host_calls.uninstall()


async def test_rules_of_other_disks_and_ranges_do_not_match(logged: LoggedDisk) -> None:
    rules = (
        "log web02/* append error=EIO",
        "log web01/data append error=EIO",
        "log append part=snapshot error=EIO",
        "log append start=1GiB error=EIO",
    )
    async with armed([DiskHostLogs(logged.root)], *rules) as injector:
        logged.work()
        counts = (await report(injector)).counts
    assert logged.errors == []
    assert [count.matched for count in counts.values()] == [0, 0, 0, 0]


async def test_a_closed_window_counts_nothing(logged: LoggedDisk) -> None:
    injector = HostFileInjector([DiskHostLogs(logged.root)])
    rule = plan("log append error=EIO times=1", is_open=False)
    await injector.arm_faults(plans=[rule])
    logged.write(2)
    assert (await report(injector)).counts[rule.name].matched == 0
    await injector.set_fault_window(name=rule.name, is_open=True)
    logged.write(2)
    await injector.set_fault_window(name=rule.name, is_open=False)
    logged.write(2)
    found = await report(injector)
    injector.close()
    assert logged.errors == [EIO]
    assert (found.counts[rule.name].matched, found.counts[rule.name].fired) == (2, 1)
    assert [(each.n, each.operation.split()[:2]) for each in found.injections] == [(1, ["append", "web01/os/segment,"])]
    assert (await report(injector)).counts == found.counts, "counts of a removed rule are reported"


async def test_counts_of_a_former_process_continue(logged: LoggedDisk) -> None:
    injector = HostFileInjector([DiskHostLogs(logged.root)])
    before = {"matched_before": 2, "fired_before": 1}
    rules = ("log append error=EIO occurrence=4 name=nth", "log append error=ENOSPC times=1 name=once")
    await injector.arm_faults(plans=[plan(words).model_copy(update=before) for words in rules])
    logged.write(3)
    found = await report(injector)
    injector.close()
    assert logged.errors == [EIO]
    assert [(each.name, each.n) for each in found.injections] == [("nth", 4)]
    counts = {name: (count.matched, count.fired) for name, count in found.counts.items()}
    assert counts == {"nth": (3, 1), "once": (3, 0)}, "a report is of this process alone"


async def test_the_same_seed_gives_the_same_faults(tmp_path: Path) -> None:
    seen = []
    for number, seed in enumerate((7, 7, 8)):
        root = tmp_path / str(number)
        root.mkdir()
        logged = LoggedDisk(root)
        rules = ("log append probability=0.2 error=EIO", "log append tear=true probability=0.2 name=torn")
        async with armed([DiskHostLogs(logged.root)], *rules, seed=seed) as injector:
            logged.work()
            seen.append([(each.name, each.n, each.done, each.ranges) for each in (await report(injector)).injections])
        logged.close()
    assert seen[0] == seen[1] != seen[2]
    assert {name for name, *_ in seen[0]} == {"log append probability=0.2 error=EIO", "torn"}


async def test_a_report_has_position_and_ranges_of_new_injections_only(logged: LoggedDisk) -> None:
    async with armed([DiskHostLogs(logged.root)], "log append flip.bits=2 times=2") as injector:
        logged.write(1)
        first = await report(injector)
        logged.write(2)
        second = await report(injector, first.sequence, first.epoch)
        segment = logged.segments()[0]
    [injected] = first.injections
    assert injected.done == f"inverted 2 bits in {segment}"
    assert injected.position is not None
    assert [length for _, length in injected.ranges] == [1, 1]
    assert [each.n for each in second.injections] == [2]


async def test_a_report_is_waited_for(logged: LoggedDisk) -> None:
    async with armed([DiskHostLogs(logged.root)], "log append error=EIO") as injector, trio.open_nursery() as nursery:

        async def wait() -> None:
            assert (await injector.fault_report(after=0, epoch="", patience_s=4.0)).injections

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await trio.to_thread.run_sync(logged.write, 1)


async def test_two_rules_on_one_operation_report_which_one_decided(logged: LoggedDisk) -> None:
    rules = ("log append error=ENOSPC times=1 name=first", "log append flip=true times=1 name=second")
    async with armed([DiskHostLogs(logged.root)], *rules) as injector:
        logged.write(1)
        found = (await report(injector)).injections
    assert logged.errors == ["No space left on device"]
    assert [(each.name, each.done) for each in found] == [
        ("first", "failed with ENOSPC"),
        ("second", "had no effect: the rule first failed the operation"),
    ]


async def test_a_file_of_another_process_is_damaged_by_that_process_alone(logged: LoggedDisk) -> None:
    before = logged.paths.file("dirty").read_bytes()
    async with armed([DiskHostLogs(logged.root)], "log part=dirty-bitmap flip=true", lent_layers=["log"]) as injector:
        assert (await report(injector)).injections == []
    assert logged.paths.file("dirty").read_bytes() == before


async def test_a_rule_is_in_force_for_files_that_appear_later(logged: LoggedDisk) -> None:
    async with armed([DiskHostLogs(logged.root)], "log append error=EIO every=1") as injector:
        logged.disk.tracking.log.rotate()
        logged.write(1)
        assert len((await report(injector)).injections) == 1
    assert logged.errors == [EIO]


async def test_a_standalone_log_has_only_the_files_of_its_disk(tmp_path: Path) -> None:
    places = StandaloneLog(tmp_path, "disk")
    for name in ("disk.000001.hrl", "disk.dirty", "disk.spare", "other.000001.hrl", "disk.img", "disk.disk"):
        (tmp_path / name).touch()
    assert [(file.path.name, file.part, file.owner) for file in places.files()] == [
        ("disk.000001.hrl", "segment", "disk/disk"),
        ("disk.dirty", "dirty-bitmap", "disk/disk"),
        ("disk.spare", "segment", "disk/disk"),
    ]


async def test_only_files_of_the_log_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may have the mount that this process serves: a look at it would wait for ever."""
    looked: list[str] = []
    is_file = Path.is_file

    def look(path: Path) -> bool:
        looked.append(path.name)
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", look)
    (tmp_path / "mount").mkdir()
    (tmp_path / "disk.dirty").touch()
    assert len(list(StandaloneLog(tmp_path, "disk").files())) == 1
    assert looked == ["disk.dirty"]


async def test_managed_disks_are_named_as_the_vault_names_them(tmp_path: Path) -> None:
    (tmp_path / DISK_ID).mkdir()
    (tmp_path / DISK_ID / "progress").write_bytes(bytes(100) + b"x")
    known = {DISK_ID: ("web01", "os")}

    async def ask() -> dict[str, tuple[str, str]]:
        if not known:
            raise RigError(Code.RoleUnavailable, "the vault is away", recoverable=True)
        return known

    names = DiskNames(ask)
    async with armed(
        [ManagedDisks(tmp_path, names.name_of)], "store web01/os part=metadata flip=true", names=names
    ) as injector:
        [injected] = (await report(injector)).injections
        assert injected.operation == "web01/os/metadata"
    known.clear()
    assert (await names.learn(), names.name_of(DISK_ID)) == (False, ("web01", "os"))


async def test_a_rule_that_comes_while_a_file_is_looked_up_is_in_force_for_it(
    logged: LoggedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread arms a rule between the look at the rules and the note that no rule can meet the file."""
    book = RuleBook([DiskHostLogs(logged.root)])
    calls, list_rules, came = FaultyCalls(book), RuleBook.rules, list[str]()

    def arm_meanwhile(book: RuleBook) -> list[HostRule]:
        found = list_rules(book)
        if not came:
            came.append("late")
            book.add([plan("log append error=EIO name=late")])
            calls.rules_changed()
        return found

    book.add([plan("log web02/* append error=EIO")])
    calls.begin()
    try:
        monkeypatch.setattr(RuleBook, "rules", arm_meanwhile)
        logged.write(3)
    finally:
        calls.end()
    assert came
    assert logged.errors == [EIO] * 3


async def test_a_write_with_two_names_takes_its_space_once(tmp_path: Path) -> None:
    path = tmp_path / DISK_ID / "checkpoints" / "000000000001.extents"
    path.parent.mkdir(parents=True)
    words = "store part=checkpoint full_after=8KiB"
    async with armed([ManagedDisks(tmp_path)], words) as injector:
        fd = host_calls.open_path(path, os.O_RDWR | os.O_CREAT)
        try:
            assert [host_calls.pwrite(fd, bytes([1]) * 4096, at) for at in (0, 4096)] == [4096, 4096]
            with pytest.raises(OSError, match="No space left on device"):
                host_calls.pwrite(fd, b"x", 8192)
            assert host_calls.pwrite(fd, b"x", 4096) == 1, "it has its place"
        finally:
            os.close(fd)
        found = await report(injector)
    assert (found.counts[words].matched, found.counts[words].fired, len(found.injections)) == (1, 1, 1)


async def test_a_write_that_a_rule_fails_takes_no_space(tmp_path: Path) -> None:
    path = tmp_path / DISK_ID / "progress"
    path.parent.mkdir()
    rules = ("store part=metadata full_after=4KiB", "store write part=metadata error=EIO times=2")

    def write(offset: int) -> int:
        try:
            return host_calls.pwrite(fd, bytes(4096), offset)
        except OSError as exc:
            return -(exc.errno or 0)

    async with armed([ManagedDisks(tmp_path)], *rules):
        fd = host_calls.open_path(path, os.O_RDWR | os.O_CREAT)
        try:
            assert [write(at) for at in (0, 4096, 8192, 12288)] == [-errno.EIO, -errno.EIO, 4096, -errno.ENOSPC]
        finally:
            os.close(fd)


async def test_a_fault_of_a_read_is_recoverable_without_other_copies(tmp_path: Path) -> None:
    path = tmp_path / DISK_ID / "progress"
    path.parent.mkdir()
    path.write_bytes(bytes(4096))
    async with armed([ManagedDisks(tmp_path)], "store read part=metadata flip=true recoverable=true"):
        assert sum(map(int.bit_count, host_calls.read_file(path))) == 1
    assert path.read_bytes() == bytes(4096)


# --- the end of the process -----------------------------------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
import trio
from siterig.blockfs.core import boot
from siterig.host_faults import rule_book
from siterig.host_faults.log_files import DiskHostLogs
from tests.support.faults.host_faults import armed
from tests.support.faults.logged_disk import LoggedDisk

boot.SOURCE, rule_book.KILL_AFTER_S = Path(sys.argv[3]), 0.1

async def main() -> None:
    logged = LoggedDisk(Path(sys.argv[1]))
    logged.write(20)
    async with armed([DiskHostLogs(logged.root)], sys.argv[2], last_report=Path(sys.argv[4])):
        logged.write(50)

trio.run(main)
"""


@pytest.mark.slow
def test_a_process_is_killed_within_an_append_and_its_log_continues(tmp_path: Path) -> None:
    rule = "log append tear.parts=2 tear.keep=1 kill=SIGKILL occurrence=9"
    last = tmp_path / "last.json"
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path, rule, boot.SOURCE, last], check=False)
    assert ended.returncode == -signal.SIGKILL
    found = FaultReport.model_validate_json(last.read_bytes())
    assert [(each.n, each.done.partition(" ")[0]) for each in found.injections] == [(9, "wrote")]
    assert [(count.matched, count.fired) for count in found.counts.values()] == [(9, 1)]
    logged = LoggedDisk(tmp_path)
    assert logged.disk.state.needs_resync is None
    assert logged.replayed() == logged.disk.read(0, 1 << 20)
    logged.close()
