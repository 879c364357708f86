"""The files of a run: the rules with their counts, for a director that is started again, and the injections.

Fault contract: ``run.json`` is replaced as a whole, so a director that is killed at any moment leaves the old one or the
new one; the counts of operations may be half a second old.  It is not synced, because a power loss of the real machine ends
the run.  Durations (``for``, ``time:``) begin again with the new director.  ``injections.jsonl`` grows up to
``INJECTION_BYTES_MAX``, then becomes ``injections.jsonl.1`` and replaces the former one.  Both files are those of the last
time that the rig was up: they stay when it is down.  The seed of the fault atlas stays as long as the rig: with another one
new damage could meet the copies that the old one has left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from siterig.blockfs.core.wire_model import Whole, WireModel
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.json_text import json_text
from siterig.scenarios.faults.records import Injection
from siterig.scenarios.faults.rules import read_rule
from siterig.scenarios.faults.schedule import FaultListener, FaultSchedule

INJECTION_BYTES_MAX = 16 << 20
_log = structlog.get_logger("faults")


class SavedRule(WireModel):
    """A rule of the run."""

    rule: dict[str, Any]
    seed: Whole
    matched: Whole
    fired: Whole
    spared: Whole
    last_ns: Whole | None
    was_open: bool
    is_closed: bool
    is_removed: bool


class SavedRun(WireModel):
    """The state of a run; ``roles`` has the epoch and sequence number of each role with an injector."""

    seed: Whole
    sequence: Whole
    rules: list[SavedRule]
    marks: list[str]
    roles: dict[str, tuple[str, int]]


def read_run(path: Path) -> SavedRun | None:
    """Return the state of the run that the last director left; None if there is none, or if it cannot be read."""
    try:
        return SavedRun.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _log.error("fault_run_unreadable", path=str(path), reason=str(error))
        return None


def write_run(path: Path, run: SavedRun) -> None:
    """Replace the state of the run."""
    _replace(path, json_text(run))


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(safe_files.open_file(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


def read_atlas_seed(path: Path) -> int | None:
    """Return the seed of the fault atlas of a rig; None if no rule has needed it."""
    try:
        return int(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.error("atlas_seed_unreadable", path=str(path), reason=str(error))
        return None


def write_atlas_seed(path: Path, seed: int) -> None:
    """Keep the seed of the fault atlas of a rig, which does not change any more."""
    if not path.exists():
        _replace(path, f"{seed}\n")


def state_of(schedule: FaultSchedule, roles: dict[str, tuple[str, int]]) -> SavedRun:
    """Return the state of a run."""
    return SavedRun(
        seed=schedule.seed,
        sequence=schedule.sequence,
        rules=[
            SavedRule(
                rule=armed.rule.document(),
                seed=armed.seed,
                matched=armed.matched,
                fired=armed.fired,
                spared=armed.spared,
                last_ns=armed.last_ns,
                was_open=armed.window.opened_ns is not None,
                is_closed=armed.window.is_closed,
                is_removed=armed.is_removed,
            )
            for armed in schedule.all_rules()
        ],
        marks=list(schedule.marks),
        roles=roles,
    )


def read_injections(path: Path) -> list[Injection]:
    """Return the injections of the run, oldest first; of a long run the last ones, and a torn last line is left out."""
    found: list[Injection] = []
    for file in (former_file(path), path):
        with contextlib.suppress(FileNotFoundError):
            for line in file.read_bytes().splitlines():
                with contextlib.suppress(ValidationError):
                    found.append(Injection.model_validate_json(line))
    return found


def former_file(path: Path) -> Path:
    """Return the file that has the injections before those of ``path``."""
    return path.with_name(f"{path.name}.1")


def restore_run(schedule: FaultSchedule, run: SavedRun, injections: Sequence[Injection] = ()) -> None:
    """Put a run into a new schedule, which has its seed already; no listener hears of it."""
    schedule.resume(
        injections=injections,
        sequence=run.sequence,
        marks=run.marks,
        rules=[(read_rule(saved.rule), saved.model_dump(exclude={"rule"})) for saved in run.rules],
    )


def _write_all(file: FileIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


class InjectionFile(FaultListener):
    """Writes each injection as one line of JSON."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def injected(self, injection: Injection) -> None:
        line = json_text(injection) + "\n"
        try:
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_size + len(line) > INJECTION_BYTES_MAX:
                    self._path.replace(former_file(self._path))
            with os.fdopen(safe_files.open_file(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab", 0) as file:
                size_bytes = os.fstat(file.fileno()).st_size
                try:
                    _write_all(file, line.encode())
                except OSError:
                    file.truncate(size_bytes)  # the next line must not continue half a line
                    raise
        except OSError as error:
            _log.error("injection_not_written", path=str(self._path), reason=str(error))
