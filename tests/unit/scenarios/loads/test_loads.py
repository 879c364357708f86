"""The workloads of scenarios: their checks accept what was acknowledged, and find what is lost, changed or too new."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.files.workload_tables import WORKLOAD_KINDS, WorkloadTable
from siterig.scenarios.loads.command_load import CommandLoad, run_bound
from siterig.scenarios.loads.files_load import FilesLoad
from siterig.scenarios.loads.fio_load import FioLoad
from siterig.scenarios.loads.load import LoadPlace
from siterig.scenarios.loads.make_load import make_load
from siterig.scenarios.loads.postgres_load import PostgresLoad
from siterig.scenarios.workloads import file_tree, fio_rounds
from siterig.scenarios.workloads.ack_log import Ack, AckWriter, read_acks
from siterig.scenarios.workloads.file_tree import FileTree
from siterig.scenarios.workloads.fio_rounds import FioRounds
from siterig.scenarios.workloads.worker import Steps


class CountingSteps:
    """Advances the position file with each step, as a disk host does with each write."""

    def __init__(self, steps: Steps, position: Path) -> None:
        self._steps, self._position, self._now = steps, position, 0
        self.advance()

    def advance(self) -> None:
        self._now += 10
        self._position.write_bytes(struct.pack("<Q", self._now))

    def run(self, count: int) -> None:
        for _ in range(count):
            self._steps.step()
            self.advance()
        self._steps.close()


def table(kind: str, **more: object) -> WorkloadTable:
    return WorkloadTable.model_validate({"name": "load", "kind": kind, "vm": "web01", **more})


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    folder = tmp_path / "mount"
    folder.mkdir()
    return folder


def failed(findings: list[CheckFinding]) -> list[str]:
    return [finding.name for finding in findings if not finding.ok]


def files_of(mount: Path, count: int) -> tuple[FilesLoad, list[Ack]]:
    acks, position = mount.parent / "load.acks", mount.parent / "position"
    position.write_bytes(struct.pack("<Q", 1))
    CountingSteps(FileTree(mount / "load", AckWriter(acks), position), position).run(count)
    return FilesLoad(table("files"), ["data"]), read_acks(acks)


def test_a_tree_of_files_is_checked_against_acknowledged_files(mount: Path) -> None:
    load, acks = files_of(mount, file_tree.KEPT + 6)
    mounts = {"data": mount}
    assert len(file_tree.present(mount / "load")) == file_tree.KEPT
    findings, present = load.findings(mounts, mount, acks, None)
    assert (failed(findings), len(present)) == ([], len(acks))

    newest = file_tree.path_of(mount / "load", acks[-1].n)
    content = newest.read_bytes()
    newest.write_bytes(content[:-1] + b"x")
    assert failed(load.findings(mounts, mount, acks, None)[0]) == ["files"]
    newest.unlink()
    assert failed(load.findings(mounts, mount, acks, None)[0]) == ["every file acknowledged"]
    oldest = acks[-1].n - file_tree.KEPT  # the last step deleted it
    file_tree.path_of(mount / "load", oldest).write_bytes(file_tree.content(oldest))
    assert failed(load.findings(mounts, mount, acks, acks[-2].end_position + 5)[0]) == []
    newest.write_bytes(content)
    assert failed(load.findings(mounts, mount, acks, acks[-2].end_position + 5)[0]) == ["no file from after the state"]


def test_a_new_process_continues_the_tree(mount: Path) -> None:
    _, acks = files_of(mount, 3)
    again = FileTree(mount / "load", AckWriter(mount.parent / "load.acks"), mount.parent / "position")
    assert again.newest == 3
    (mount / "load" / "d4" / "f4.partial").write_bytes(b"half")
    again.step()
    again.close()
    assert [ack.n for ack in read_acks(mount.parent / "load.acks")] == [*(ack.n for ack in acks), 4]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fio") is None, reason="program fio is not installed; on Debian: apt-get install fio")
def test_fio_verifies_every_acknowledged_round(mount: Path) -> None:
    states = set(Path("/").glob("*-verify.state"))
    acks_file, position = mount.parent / "load.acks", mount.parent / "position"
    position.write_bytes(struct.pack("<Q", 1))
    CountingSteps(FioRounds(mount / "load", AckWriter(acks_file), position, size_bytes=32768, rounds=2), position).run(2)
    load, acks = FioLoad(table("fio", size="32KiB"), ["data"]), read_acks(acks_file)
    mounts = {"data": mount}
    assert failed(load.findings(mounts, mount, acks, None)[0]) == []
    assert set(Path("/").glob("*-verify.state")) == states, "fio left a file in the folder in which it was started"
    with (mount / "load" / "round-2").open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    findings = load.findings(mounts, mount, acks, None)[0]
    assert failed(findings) == ["fio verifies every acknowledged round"]
    assert "verify" in findings[0].evidence, "the reason, not only numbers"
    before_2 = acks[0].end_position + 5
    assert failed(load.findings(mounts, mount, acks, before_2)[0]) == ["no round from after the state"]
    (mount / "load" / "round-2").unlink()
    assert failed(load.findings(mounts, mount, acks, before_2)[0]) == []
    (mount / "load" / "round-1").unlink()
    assert failed(load.findings(mounts, mount, acks, before_2)[0]) == ["every round acknowledged before the state"]


def test_files_of_older_rounds_of_fio_are_deleted(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        Path(next(word for word in words if word.startswith("--filename=")).partition("=")[2]).touch()
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", write)
    acks_file, position = mount.parent / "load.acks", mount.parent / "position"
    position.write_bytes(struct.pack("<Q", 1))
    CountingSteps(
        FioRounds(mount / "load", AckWriter(acks_file), position, size_bytes=4096, rounds=9, rounds_kept=2), position
    ).run(5)
    assert fio_rounds.present(mount / "load") == {4, 5}
    load, acks = FioLoad(table("fio", size="4KiB", kept=2), ["data"]), read_acks(acks_file)
    findings, present = load.findings({"data": mount}, mount, acks, None)
    assert (failed(findings), set(present)) == ([], {1, 2, 3, 4, 5})
    fio_rounds.round_path(mount / "load", 4).unlink()
    assert failed(load.findings({"data": mount}, mount, acks, None)[0]) == ["every round acknowledged"]


@pytest.mark.slow
async def test_a_workload_needs_a_mounted_disk(mount: Path) -> None:
    (mount.parent / "position").write_bytes(bytes(8))
    load = FilesLoad(table("files"), ["data"])
    with pytest.raises(RigError, match="no disk is mounted"):
        await load.start(LoadPlace({"data": mount}, mount.parent / "position", mount.parent, "site-1"))
    assert not list(mount.iterdir())


@pytest.mark.slow
async def test_a_command_is_a_workload_until_it_is_stopped(mount: Path) -> None:
    run = (
        'trap "echo ended > $SITERIG_DISK_data/end; exit 0" TERM; touch "$SITERIG_DISK/begun"; while :; do sleep 0.01; done'
    )
    load = CommandLoad(table("command", run=run, check='test -e "$SITERIG_DISK/end" || { echo none; exit 3; }'), ["data"])
    before = await load.check({"data": mount}, mount, "site-1", None)
    assert [(found.ok, found.evidence) for found in before.findings] == [(False, "exit status 3: none")]
    await load.start(LoadPlace({"data": mount}, mount / "position", mount.parent, "site-1"))
    while not (mount / "begun").exists():
        assert load.is_running
        await run_bound("true", {})
    assert await load.stop() is None
    assert not load.is_running
    assert failed((await load.check({"data": mount}, mount, "site-1", None)).findings) == []


@pytest.mark.slow
async def test_a_command_leaves_no_process_in_the_background(tmp_path: Path) -> None:
    status, output = await run_bound("sleep 1000 & echo $!", {})
    assert status == 0
    assert not Path(f"/proc/{output}").exists() or "Z" in Path(f"/proc/{output}/stat").read_text()
    assert await run_bound("exit 7", {}) == (7, "")


def test_each_kind_has_a_workload() -> None:
    made: dict[str, Callable[..., object]] = {"files": FilesLoad, "ledger-postgresql": PostgresLoad}
    for kind in WORKLOAD_KINDS:
        load = make_load(table(kind, **({"run": "true"} if kind == "command" else {})), ["data"])
        assert isinstance(load, made.get(kind, object))  # type: ignore[arg-type]
