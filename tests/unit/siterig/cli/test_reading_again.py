"""A file that a role serves is read again from its start if the role ended meanwhile, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from siterig.azure_emu.contracts.reports import RoleState, RoleStatus
from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import reading_again
from siterig.cli.reading_again import ATTEMPTS_MAX, read_served
from siterig.core.supervisor_contract import RigStatus


class FakeSupervisor:
    """A guide for role ``azure``, which serves ``file``; ``comes_back``: the state of the role in the end."""

    def __init__(self, file: Path, comes_back: RoleState = "ready") -> None:
        self.file, self.comes_back = file, comes_back
        self.pid, self.state = 7, "ready"
        file.write_bytes(b"disk")

    def role(self) -> RoleStatus:
        return RoleStatus.model_validate(
            {"name": "azure", "state": self.state, "pid": self.pid, "restarts": 0, "detail": "", "since_ns": 0, "waits": []}
        )

    def dies(self, *, is_noticed: bool) -> None:
        self.file.unlink()
        if is_noticed:
            self.state = "restarting"

    async def status(self) -> RigStatus:
        return RigStatus(folder="/rig", pid=1, roles=[self.role()])

    async def wait_for_steady_state(self, *, name: str) -> RoleStatus:
        assert name == "azure"
        if self.state == "ready" and not self.file.exists():
            self.state = "restarting"  # only now it hears of the end
        elif self.state == "restarting":
            self.pid, self.state = self.pid + 1, self.comes_back
            if self.comes_back == "ready":
                self.file.write_bytes(b"disk")
        return self.role() if self.state != "restarting" else self.role().model_copy(update={"state": "ready"})


class Reader:
    """Fails so many times; ``supervisor`` then loses its role, if it is given."""

    def __init__(self, failures: int, supervisor: FakeSupervisor | None, *, is_noticed: bool = True) -> None:
        self.failures, self.supervisor, self.is_noticed, self.calls = failures, supervisor, is_noticed, 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            if self.supervisor is not None:
                self.supervisor.dies(is_noticed=self.is_noticed)
            raise RigError(Code.ReadFailed, "os.img: cannot be read at byte 4096: Transport endpoint is not connected")


async def read(supervisor: FakeSupervisor, reader: Reader) -> list[str]:
    notes: list[str] = []
    served: Any = supervisor
    await read_served(served, "azure", supervisor.file, reader, notes.append)
    return notes


@pytest.mark.parametrize("is_noticed", [True, False])
async def test_it_is_read_again_when_the_role_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_noticed: bool
) -> None:
    # The real clock: one that jumps would pass the time limit while a thread looks at the file.
    monkeypatch.setattr(reading_again, "_AGAIN_S", 0.001)
    supervisor = FakeSupervisor(tmp_path / "os.img")
    reader = Reader(2, supervisor, is_noticed=is_noticed)
    notes = await read(supervisor, reader)
    assert reader.calls == 3
    assert len(notes) == 2
    assert notes[0].startswith(f"role azure ended while {supervisor.file} was read; waiting until it is back")


async def test_a_disk_that_cannot_be_read_while_its_role_is_well_is_no_absence(tmp_path: Path) -> None:
    supervisor = FakeSupervisor(tmp_path / "os.img")
    reader = Reader(1, None)
    with pytest.raises(RigError, match="cannot be read at byte 4096"):
        await read(supervisor, reader)
    assert reader.calls == 1


async def test_a_role_that_does_not_return_is_named_with_the_remedy(tmp_path: Path) -> None:
    supervisor = FakeSupervisor(tmp_path / "os.img", comes_back="failed")
    with pytest.raises(RigError, match=r"role azure failed .*give the command again when it is back$") as caught:
        await read(supervisor, Reader(9, supervisor))
    assert (caught.value.code, caught.value.role) == ("RoleFailed", "azure")


async def test_a_role_that_ends_each_time_is_not_read_for_ever(tmp_path: Path) -> None:
    supervisor = FakeSupervisor(tmp_path / "os.img")
    reader = Reader(99, supervisor)
    with pytest.raises(RigError, match="cannot be read at byte 4096"):
        await read(supervisor, reader)
    assert reader.calls == ATTEMPTS_MAX


async def test_a_supervisor_that_does_not_answer_stops_no_read(tmp_path: Path) -> None:
    class Silent(FakeSupervisor):
        async def status(self) -> RigStatus:
            raise RigError(Code.RoleUnavailable, "the supervisor did not answer within 5 s", recoverable=True)

    supervisor: Any = Silent(tmp_path / "os.img")
    reader = Reader(0, None)
    await read_served(supervisor, "azure", supervisor.file, reader, lambda _text: None)
    assert reader.calls == 1
    failing = Reader(1, None)
    with pytest.raises(RigError, match="cannot be read at byte 4096"):
        await read_served(supervisor, "azure", supervisor.file, failing, lambda _text: None)
    assert failing.calls == 1
