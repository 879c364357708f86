"""A tree of files with checksums as a workload of a scenario."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from siterig.blockfs.files.os_errors import reason
from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.files.workload_tables import WorkloadTable
from siterig.scenarios.loads.load import LoadPlace
from siterig.scenarios.loads.process_load import ProcessLoad, promises
from siterig.scenarios.workloads import file_tree
from siterig.scenarios.workloads.ack_log import Ack


class FilesLoad(ProcessLoad[WorkloadTable]):
    """Files with known contents, each durable when it is acknowledged."""

    module = "file_tree"

    def _root(self, mounts: Mapping[str, Path]) -> Path:
        return mounts[self.disks[0]] / self.table.name

    def arguments(self, place: LoadPlace) -> Sequence[object]:
        return ["--root", self._root(place.mounts)]

    def findings(
        self, mounts: Mapping[str, Path], folder: Path, acks: list[Ack], cut: int | None
    ) -> tuple[list[CheckFinding], frozenset[int]]:
        found = file_tree.present(self._root(mounts))
        newest = max(found, default=0)
        wrong = [text for n, path in sorted(found.items()) if (text := _wrong(n, path)) is not None]
        evidence = f"{len(found)} files, every SHA-256 as written" if not wrong else "; ".join(wrong[:3])
        # Older files are deleted: they count as present, because later ones could only be written after them.
        present = frozenset(range(1, newest - file_tree.KEPT + 1)) | frozenset(found)
        return [CheckFinding("files", not wrong, evidence), *promises("file", acks, present, cut)], present


def _wrong(n: int, path: Path) -> str | None:
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"{path.name}: {reason(error, path.name)}"
    if hashlib.sha256(data).digest() == hashlib.sha256(file_tree.content(n)).digest():
        return None
    return f"{path.name}: content differs, {len(data)} bytes"
