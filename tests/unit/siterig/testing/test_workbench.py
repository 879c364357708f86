"""The workbench: which servers its blocks use, and which templates belong to which setup."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from siterig.testing import workbench
from siterig.testing.settings import TestingSettings
from siterig.testing.templates import number_of
from siterig.testing.workbench import Workbench


class FakeServer:
    """A server that is up at once."""

    made: ClassVar[list[FakeServer]] = []

    def __init__(self, kind: str, folder: Path, *, limit_s: float, shared: bool) -> None:
        self.folder, self.shared = folder, shared
        self.values: dict[str, Any] = {"folder": str(folder / "short"), "connection_string": f"{kind} in {folder.name}"}
        self.is_kept, self.is_left = False, False
        FakeServer.made.append(self)

    def is_up(self) -> bool:
        return not self.is_left

    def keep_files(self) -> None:
        self.is_kept = True

    def leave(self) -> None:
        self.is_left = True


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    monkeypatch.setattr(workbench, "SharedServer", FakeServer)
    monkeypatch.setattr(FakeServer, "made", [])
    return Workbench(tmp_path / "own", TestingSettings(share=True), shared=tmp_path / "shared")


def test_a_rig_of_its_own_is_another_one_than_the_shared_rig(bench: Workbench, tmp_path: Path) -> None:
    with bench.rig() as shared, bench.rig(share=False) as own, bench.rig() as again:
        assert (shared.is_shared, own.is_shared) == (True, False)
        assert own.folder != shared.folder == again.folder
        assert bench.rig_files(own.folder) == tmp_path / "own" / "rig-1" / "rig"
        bench.keep_rig(own.folder)
    assert [(server.shared, server.is_kept) for server in FakeServer.made] == [(True, False), (False, True)]
    bench.close()
    assert all(server.is_left for server in FakeServer.made)


def test_an_azurite_of_its_own_is_another_one_than_the_shared_azurite(bench: Workbench) -> None:
    assert bench.azurite() == bench.azurite(share=True) == "azurite in azurite"
    assert bench.azurite(share=False) == "azurite in azurite-1"


def test_a_function_has_another_number_than_one_that_is_gone() -> None:
    numbers = []
    for word in ("first", "second", "third"):

        def setup(folder: Path, word: str = word) -> None:
            (folder / word).touch()

        numbers += [number_of(setup), number_of(setup)]
        del setup
    assert len(set(numbers)) == 3
