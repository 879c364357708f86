"""A protected VM to begin with: made once for each process, and copied for each run.

A run that begins with nothing spends half of its time to enable the protection.  The state is that after a kill of all roles
at once, so each run begins with their recovery.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from siterig.blockfs.transfer.cache_account import AccountBlob
from siterig.scenarios.simulation.invariants import Invariants, KnownState
from siterig.scenarios.simulation.rig.world import World


@dataclass(frozen=True, slots=True)
class StartState:
    """The state of a world between two runs.

    Attributes:
        folder: the files of all roles.
        begun_s: the time that the world has existed for.
        blobs: the blobs of the cache account.
        acknowledged: the parts that were put.
        memory: the knowledge of the invariants.
    """

    folder: Path
    begun_s: float
    blobs: dict[AccountBlob, bytes]
    acknowledged: set[AccountBlob]
    memory: KnownState

    @classmethod
    def of(cls, world: World, invariants: Invariants, lasted_s: float) -> StartState:
        """Take the state of a world that has existed for ``lasted_s``, and in which no role lives any more."""
        return cls(
            world.folder,
            lasted_s,
            dict(world.account.blobs),
            set(world.account.acknowledged),
            invariants.memory.copied(),
        )

    def copy_files(self, folder: Path) -> None:
        """Copy the files of all roles into an empty folder, with their times: a changed time is a changed disk."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, copy_function=shutil.copy2)

    def put_into(self, world: World, invariants: Invariants) -> None:
        """Give the rest of the state to a new world."""
        world.account.blobs = dict(self.blobs)
        world.account.acknowledged = set(self.acknowledged)
        invariants.memory = self.memory.copied()
