"""``siterig disk``, against hosts that are objects; and the limits of ``siterig up`` on their way to the roles."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from siterig.azure_emu.vault.model.choices import Side
from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.contracts.control import DiskInfo, HydrationInfo
from siterig.blockfs.contracts.counters import LATENCY_BUCKETS, DiskCounters
from siterig.blockfs.contracts.upload_limits import PER_VM, UploadLimits
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.host.disk_host import DiskHost
from siterig.cext.fuse_server import FuseServerOptions
from siterig.cli.commands import disks
from siterig.core import fuse_options, limits
from siterig.core.fuse_options import FuseOptions
from siterig.core.limits import Limits
from siterig.core.parsing import format_time, parse_disk_name
from siterig.core.paths import Layout, create
from siterig.core.upload_options import upload_limits_of
from siterig.supervisor import launch
from siterig.supervisor.main import role_specs
from tests.support.command import siterig

MIB = 1 << 20


class Hosts:
    """Both sides' disks, in this process; a side that is ``gone`` does not answer."""

    def __init__(self, folder: Path) -> None:
        self.of: dict[Side, DiskHost] = {
            "site": DiskHost(folder / "site", folder / "site-mnt"),
            "azure": DiskHost(folder / "azure", folder / "azure-mnt"),
        }
        self.gone: set[Side] = set()

    def __getitem__(self, side: Side) -> Any:
        if side in self.gone:

            class Gone:
                async def list_disks(self) -> list[DiskInfo]:
                    raise RigError(Code.RoleUnavailable, f"nobody answers for {side}", recoverable=True)

            return Gone()
        return self.of[side]

    def make(self, side: Side, name: str = "os", *, tracked: bool = True) -> Any:
        async def make() -> None:
            await self.of[side].create_disk(vm="web01", name=name, size_bytes=64 * MIB)
            if tracked:
                await self.of[side].start_tracking(vm="web01")

        trio.run(make)
        return self.of[side].disk("web01", name)


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """A rig that looks up, in ``SITERIG_DIR``."""
    layout = Layout.of(tmp_path / "rig")
    create(layout)
    supervisor = socket.socket(socket.AF_UNIX)
    supervisor.bind(str(layout.socket("supervisor")))
    supervisor.listen()
    hosts = Hosts(tmp_path)
    monkeypatch.setattr("siterig.rpc.directory.site", lambda _layout: hosts["site"])
    monkeypatch.setattr("siterig.rpc.directory.azure", lambda _layout: hosts["azure"])
    monkeypatch.setenv("SITERIG_DIR", str(layout.root))
    yield hosts
    supervisor.close()
    for host in hosts.of.values():
        host.abandon()


def error(result: Any) -> tuple[int, str]:
    assert result.stdout == ""
    return result.exit_code, result.stderr.removeprefix("siterig: error: ").strip()


# --- list ---------------------------------------------------------------------------------------------------------


def test_a_rig_without_disks_is_reported(hosts: Hosts) -> None:
    assert siterig("disk", "list").stderr == "siterig: note: no disks: siterig vm create\n"
    assert json.loads(siterig("disk", "list", "--json").stdout) == []


def test_list_shows_the_disks_of_both_sides_with_the_used_part_of_their_limits(hosts: Hosts) -> None:
    disk = hosts.make("site")
    disk.write(0, bytes(MIB))
    hosts.make("azure", "data", tracked=False)
    head, *rows = siterig("disk", "list").stdout.splitlines()
    assert head.split("\t")[0] == "disk"
    assert [row.split("\t") for row in rows] == [
        ["web01/os", "site", "64 MiB", "yes", "1", "1 MiB of 32 MiB", "-", "-", "-", "-", "no"],
        ["web01/data", "azure", "64 MiB", "no", "0", "-", "-", "-", "-", "-", "no"],
    ]


def test_list_names_disks_that_need_a_resync_and_the_changed_bytes(hosts: Hosts) -> None:
    disk = hosts.make("site")
    for at in range(33):
        disk.write(at * MIB, bytes(MIB))
    row = siterig("disk", "list").stdout.splitlines()[-1]
    assert row.split("\t")[-3:] == ["LogOverflow", "-", "no"]
    assert "33 MiB" in row


def test_list_as_json_is_all_that_is_known_and_the_side(hosts: Hosts) -> None:
    hosts.make("azure")
    (found,) = json.loads(siterig("disk", "list", "--json").stdout)
    assert found.pop("side") == "azure"
    assert DiskInfo.model_validate(found).size_bytes == 64 * MIB


def test_list_shows_the_progress_of_a_hydration_and_its_obstacle() -> None:
    assert disks.hydration_text(None) == "-"
    assert disks.hydration_text(HydrationInfo.of(70, 200, None)) == "35 %"
    assert disks.hydration_text(HydrationInfo.of(70, 200, RigError(Code.DiskFull, "..."))) == "35 %, stopped: DiskFull"


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_a_side_that_is_lost_hides_nothing_of_the_other(hosts: Hosts, option: tuple[str, ...]) -> None:
    hosts.make("azure")
    hosts.gone.add("site")
    result = siterig("disk", "list", *option)
    assert result.exit_code == 3
    assert "azure" in result.stdout
    if option:
        body = {"code": "RoleUnavailable", "message": "nobody answers for site", "recoverable": True}
        assert json.loads(result.stderr)["error"] == body
    else:
        assert result.stderr == "siterig: error: nobody answers for site (RoleUnavailable)\n"


# --- which disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["web01", "/os", "web01/", "web01/os/x", ""])
def test_a_word_that_names_no_disk_is_refused(hosts: Hosts, text: str) -> None:
    status, message = error(siterig("disk", "stats", text))
    assert (status, message) == (2, f"disk {text!r} is not understood: write VM/NAME, e.g. web01/os (InvalidDisk)")


def test_an_unknown_disk_is_named_with_those_there_are(hosts: Hosts) -> None:
    assert error(siterig("disk", "stats", "web01/os")) == (2, "there is no disk web01/os; there are: none (DiskNotFound)")
    hosts.make("site")
    hosts.make("azure", "data")
    status, message = error(siterig("disk", "resize", "web01/nix", "1GiB"))
    assert (status, message) == (2, "there is no disk web01/nix; there are: web01/os, web01/data (DiskNotFound)")
    status, message = error(siterig("disk", "stats", "web01/os", "--side", "azure"))
    assert message == "there is no disk web01/os at side azure; there are: web01/data (DiskNotFound)"


def test_the_side_of_a_disk_on_both_sides_is_required_and_only_that_disk_grows(hosts: Hosts) -> None:
    site, azure = hosts.make("site"), hosts.make("azure")
    status, message = error(siterig("disk", "resize", "web01/os", "128MiB"))
    assert (status, message) == (
        2,
        "disk web01/os: both sides have a disk of this name; select one with --side site or --side azure (BadRequest)",
    )
    assert siterig("disk", "resize", "web01/os", "128MiB", "--side", "azure").exit_code == 0
    assert (site.size_bytes, azure.size_bytes) == (64 * MIB, 128 * MIB)
    assert siterig("disk", "stats", "web01/os", "--side", "nowhere").exit_code == 2


def test_a_lost_side_matters_only_if_the_disk_is_not_at_the_other(hosts: Hosts) -> None:
    hosts.make("azure")
    hosts.gone.add("site")
    assert siterig("disk", "stats", "web01/os").exit_code == 0
    assert error(siterig("disk", "stats", "web01/data")) == (3, "nobody answers for site (RoleUnavailable)")


# --- resize -------------------------------------------------------------------------------------------------------


def test_resize_grows_and_names_the_side(hosts: Hosts) -> None:
    disk = hosts.make("site")
    result = siterig("disk", "resize", "web01/os", "1GiB")
    assert (result.exit_code, disk.size_bytes) == (0, 1 << 30)
    assert result.stdout == f"disk web01/os (site) has 1 GiB: {hosts.of['site'].mountpoint}/web01/os.img\n"
    found = json.loads(siterig("disk", "resize", "web01/os", "2GiB", "--json").stdout)
    assert (found["side"], found["size_bytes"]) == ("site", 2 << 30)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (
            "32MiB",
            f"new size is {32 * MIB} bytes; it must be a multiple of 512, at least {64 * MIB} (a disk is never shrunk)",
        ),
        ("65TiB", "and at most 64 TiB"),
        ("1000", "size '1000' is 1000 bytes: it must be a positive multiple of 512"),
        ("+1GiB", "size '+1GiB' is not understood"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_words(hosts: Hosts, size: str, says: str) -> None:
    hosts.make("site")
    status, message = error(siterig("disk", "resize", "web01/os", size))
    assert (status, message.rsplit(" ", 1)[1]) == (2, "(InvalidDiskSize)")
    assert says in message


# --- stats --------------------------------------------------------------------------------------------------------


def test_stats_shows_requests_and_the_state_of_log_and_snapshot(hosts: Hosts) -> None:
    disk = hosts.make("site")
    disk.write(0, bytes(MIB))
    lines = siterig("disk", "stats", "web01/os").stdout.splitlines()
    assert lines[0] == "disk web01/os (site): 64 MiB, generation 1"
    assert lines[1].startswith("counted since 2")
    assert lines[3].split("\t") == ["requests", "ops", "bytes", "errors", "p50", "p99", "longest"]
    assert [line.split()[0] for line in lines[4:9]] == ["read", "write", "flush", "discard", "seek"]
    assert "log written\t1 MiB in 1 records" in lines
    assert "log kept\t1 MiB of 32 MiB" in lines
    assert lines[-2:] == ["dirty\t-", "snapshot\t-"]


def test_stats_as_json_are_the_counters_of_the_host_and_the_side(hosts: Hosts) -> None:
    hosts.make("azure", tracked=False)
    found = json.loads(siterig("disk", "stats", "web01/os", "--json").stdout)
    assert found.pop("side") == "azure"
    assert len(DiskCounters.model_validate(found).requests["read"].latency_log2_us) == LATENCY_BUCKETS


def counters(hosts: Hosts) -> DiskCounters:
    return trio.run(lambda: hosts.of["site"].counters(vm="web01", disk="os"))


def test_rates_count_the_time_between_and_are_missing_after_a_restart(hosts: Hosts) -> None:
    hosts.make("site")
    before = counters(hosts)
    write = before.requests["write"].model_copy(update={"ops": 300, "bytes": 3 * MIB})
    after = before.model_copy(update={"requests": {**before.requests, "write": write}})
    assert disks.rates_between(after.requests["write"], before.requests["write"], 3.0) == ("100", "1 MiB")
    drawn = disks.counter_lines("site", after, before=before, passed_s=3.0)
    assert drawn[3][-3::2] == ["ops/s", "bytes/s"]
    restarted = after.model_copy(update={"since_ns": before.since_ns + 1})
    assert disks.counter_lines("site", restarted, before=before, passed_s=3.0)[3][-1] == "longest"


def test_json_is_printed_once(hosts: Hosts) -> None:
    hosts.make("site")
    assert error(siterig("disk", "stats", "web01/os", "--json", "--watch"))[0] == 2


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (None, "-"),
        (0.0, "0 us"),
        (0.5, "0.5 us"),
        (85.4, "85.4 us"),
        (1234.0, "1.23 ms"),
        (999_900.0, "1e+03 ms"),
        (3e6, "3 s"),
    ],
)
def test_times_are_for_people(us: float | None, text: str) -> None:
    assert format_time(us) == text


def test_disks_are_named_with_their_vm() -> None:
    assert parse_disk_name("web01/os") == ("web01", "os")


# --- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--log-share-max", "--snapshot-share-max"])
@pytest.mark.parametrize("value", ["0", "50", "-0.5", "1.01", "nan", "inf", "half", ""])
def test_shares_that_make_no_sense_are_refused_before_anything_starts(tmp_path: Path, option: str, value: str) -> None:
    found = error(siterig("up", "--dir", str(tmp_path / "rig"), option, value))
    assert found == (2, f"{option} is {value!r}: it must be a share of the disk, above 0 and at most 1 (InvalidLimit)")
    assert not (tmp_path / "rig").exists()


@pytest.mark.parametrize("option", ["--uploads-per-host", "--uploads-per-vm"])
@pytest.mark.parametrize("value", ["0", "65", "-1", "1.5", "two", ""])
def test_numbers_of_uploads_that_make_no_sense_are_refused(tmp_path: Path, option: str, value: str) -> None:
    found = error(siterig("up", "--dir", str(tmp_path / "rig"), option, value))
    assert found == (2, f"{option} is {value!r}: it must be a whole number from 1 to 64 (InvalidLimit)")
    assert not (tmp_path / "rig").exists()


def test_another_policy_for_a_full_disk_is_refused_with_those_there_are(tmp_path: Path) -> None:
    result = siterig("up", "--dir", str(tmp_path / "rig"), "--when-log-full", "panic")
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert "Invalid value for '--when-log-full'" in said
    assert "'panic' is not one of 'refuse', 'bitmap'" in said
    with pytest.raises(RigError, match="--when-log-full is 'panic': it must be refuse or bitmap"):
        Limits.of_words(["--log-share-max=1", "--when-log-full=panic", "--snapshot-share-max=1"])


@pytest.mark.slow
def test_limits_reach_both_hosts_and_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawned: list[list[str]] = []

    def spawn(_layout: Layout, _report_fd: int, options: list[str]) -> Any:
        spawned.append(options)
        raise RigError(Code.of("Stopped"), "far enough")

    monkeypatch.setattr(launch, "_spawn", spawn)
    limited = ("--log-share-max", "0.25", "--when-log-full", "bitmap", "--fuse-threads", "3", "--fuse-queue", "7")
    result = siterig("up", "--dir", str(tmp_path), *limited, "--portable-fuse", "--uploads-per-host", "6")
    assert result.stderr == "siterig: error: far enough (Stopped)\n"
    told = {spec.name: spec.command for spec in role_specs(Layout.of(tmp_path), ["--quick-retries", *spawned[0]])}
    for role in ("site", "azure"):
        found = Limits.of_words(told[role])
        assert found == Limits(log_share_max=0.25, when_log_full="bitmap", snapshot_share_max=0.5)
        assert found.log_policy == LogPolicy(kept_share_max=0.25, when_full="bitmap")
        assert FuseOptions.of_words(told[role]) == FuseOptions(portable=True, threads=3, queue=7)
        assert "--quick-retries" not in told[role]
    for role in ("azurite", "vault", "applier", "agent"):
        assert not [word for word in told[role] if word.partition("=")[0] in (*limits.OPTIONS, *fuse_options.OPTIONS)]
    assert "--quick-retries" in told["agent"]
    assert upload_limits_of(told["agent"]) == UploadLimits(per_host=6, per_vm=PER_VM)


def test_without_options_limits_and_front_end_are_the_engines() -> None:
    assert FuseOptions.of_words(FuseOptions().words()) == FuseOptions()
    assert FuseOptions().fuse_server == FuseServerOptions()
    assert Limits.of_words(Limits().words()) == Limits()
    assert Limits().log_policy == LogPolicy()
