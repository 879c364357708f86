"""fio with verification as a workload of a scenario."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.files.workload_tables import WorkloadTable
from siterig.scenarios.loads.load import LoadPlace, due_at
from siterig.scenarios.loads.process_load import ProcessLoad, promises
from siterig.scenarios.workloads import fio_rounds
from siterig.scenarios.workloads.ack_log import Ack


class FioLoad(ProcessLoad[WorkloadTable]):
    """Rounds of fio, each a file with checksums in its blocks."""

    module = "fio_rounds"

    def _root(self, mounts: Mapping[str, Path]) -> Path:
        return mounts[self.disks[0]] / self.table.name

    def arguments(self, place: LoadPlace) -> Sequence[object]:
        words = ["--root", self._root(place.mounts), "--size", self.table.size, "--rounds", self.table.rounds]
        return words if self.table.kept is None else [*words, "--kept", self.table.kept]

    def findings(
        self, mounts: Mapping[str, Path], folder: Path, acks: list[Ack], cut: int | None
    ) -> tuple[list[CheckFinding], frozenset[int]]:
        root = self._root(mounts)
        found = fio_rounds.present(root)
        due = [ack.n for ack in due_at(acks, cut) if ack.n in found]
        findings = [] if not due else [_verified(root, due, self.table.size)]
        # Older rounds are deleted: they count as present, because later ones could only be written after them.
        oldest = 0 if self.table.kept is None else max(found, default=0) - self.table.kept
        present = frozenset(ack.n for ack in acks if ack.n in found or ack.n <= oldest)
        return [*findings, *promises("round", acks, present, cut)], present


def _verified(root: Path, due: list[int], size_bytes: int) -> CheckFinding:
    files = {n: fio_rounds.round_path(root, n) for n in due}
    words = fio_rounds.command(files, size_bytes, verifies=True)
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()  # with results on stdout, the reason is on stderr
    text = f"{len(due)} files of {size_bytes} bytes verified" if done.returncode == 0 else " | ".join(lines[-3:])[-300:]
    return CheckFinding("fio verifies every acknowledged round", done.returncode == 0, text)
