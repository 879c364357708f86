"""The files of a rig under faults, while the host's disk is full."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio
import trio.testing

from siterig.director.rig import SAVE_EVERY_S, DirectedRig
from siterig.director.run_file import read_atlas_seed, read_run
from siterig.scenarios.faults.rules import read_rule
from tests.support.clocks import FakeClock


class FakeRigClock(FakeClock):
    """A clock of a rig whose real time is that of the test, too."""

    @property
    def real(self) -> FakeClock:
        return self


async def test_a_run_that_could_not_be_saved_is_saved_as_soon_as_there_is_room(tmp_path: Path) -> None:
    clock, folder, nothing = FakeRigClock(), tmp_path / "faults", SimpleNamespace()
    anything: Any = nothing
    rig = DirectedRig(
        run_file=folder / "run.json",
        injection_file=folder / "injections.jsonl",
        atlas_file=folder / "atlas-seed",
        supervisor=anything,
        moments=anything,
        items=anything,
        hosts={"site": anything},
        injectors={},
        note_reboot=lambda _host: None,
        clock=clock,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig._save_often)  # noqa: SLF001 (the rest of the rig is not there)
        rig.schedule.add([read_rule("process site pause=true name=stop")])
        rig._save()  # noqa: SLF001 (there is no folder, as there may be no room)
        await trio.testing.wait_all_tasks_blocked()
        assert read_run(folder / "run.json") is None
        folder.mkdir()
        clock.advance_ns(int(SAVE_EVERY_S * 1e9))
        await trio.testing.wait_all_tasks_blocked()
        run = read_run(folder / "run.json")
        assert run is not None
        assert [saved.rule["name"] for saved in run.rules] == ["stop"]
        assert read_atlas_seed(folder / "atlas-seed") is None, "no rule needs one"
        for seed in (8, 9):
            rig.schedule.add([read_rule("store write flip=true recoverable=true")], seed=seed)
            rig._save()  # noqa: SLF001
            rig.schedule.clear()
        assert read_atlas_seed(folder / "atlas-seed") == 8, "damage of the first rules is still there"
        nursery.cancel_scope.cancel()
