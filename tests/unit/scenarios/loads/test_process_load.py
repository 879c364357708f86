"""A load waits for its disks in a thread: one of a role that is stopped would stop the caller, who continues the role."""

from __future__ import annotations

import threading
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any, cast

import pytest

from siterig.scenarios.loads.ledger_load import LedgerLoad
from siterig.scenarios.loads.load import LoadPlace
from siterig.scenarios.workloads.workload_process import WorkloadProcess

_threads: list[int] = []


class WatchedPath(PosixPath):
    """A mount point that notes the threads in which it is looked at."""

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        _threads.append(threading.get_ident())
        return super().stat(follow_symlinks=follow_symlinks)


async def test_the_mount_points_of_a_load_are_looked_at_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: dict[str, Any] = {}

    async def launch(_module: str, _arguments: object, **options: Any) -> WorkloadProcess:
        launched.update(options)
        return cast(WorkloadProcess, SimpleNamespace())

    monkeypatch.setattr(WorkloadProcess, "launch", launch)
    _threads.clear()
    for name in ("os", "data"):
        (tmp_path / name).mkdir()
    mounts = {name: WatchedPath(tmp_path / name) for name in ("os", "data")}
    load = LedgerLoad(cast(Any, SimpleNamespace(name="books", rate=None)), ["os", "data"])
    await load.start(LoadPlace(mounts, tmp_path / "position", tmp_path, "1"))
    assert launched["mounted"] == [tmp_path / "os", tmp_path / "data"]
    assert _threads and threading.get_ident() not in _threads
