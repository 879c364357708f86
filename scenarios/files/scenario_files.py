"""Scenario files: reading, and the library that siterig has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.documents.model_problems import problems_of
from siterig.blockfs.documents.nearest import hint
from siterig.blockfs.documents.toml_document import TomlDocument
from siterig.scenarios.files.scenario import ScenarioDocument

LIBRARY = Path(__file__).parent.parent / "library"
SUFFIX = ".toml"


@dataclass(frozen=True, slots=True)
class ScenarioFile:
    """A scenario that was read: its name, its path, and its text."""

    name: str
    path: Path
    scenario: ScenarioDocument


def read_scenario(path: Path) -> ScenarioFile:
    """Read a scenario file; its name is that of the file without ``.toml``.

    Raises:
        RigError: ``InvalidScenario``; the message names file, line, key, value and the allowed ones.
    """
    return ScenarioFile(path.stem, path, _validated(TomlDocument.read(path, Code.InvalidScenario)))


def parse_scenario(name: str, text: str) -> ScenarioDocument:
    """Return the scenario of a TOML text; ``name`` stands for the file in messages."""
    return _validated(TomlDocument(name, text, Code.InvalidScenario))


def _validated(document: TomlDocument) -> ScenarioDocument:
    try:
        return ScenarioDocument.model_validate(document.data)
    except ValidationError as error:
        raise document.error(problems_of(error, ScenarioDocument)) from None


def library_names() -> list[str]:
    """Return the names of the scenarios of the library, sorted."""
    return sorted(path.stem for path in LIBRARY.glob(f"*{SUFFIX}"))


def find_scenario(name: str) -> ScenarioFile:
    """Return the scenario of the library with this name, or of the file with this path.

    Raises:
        RigError: ``NoSuchScenario`` or ``InvalidScenario``.
    """
    if "/" in name or name.endswith(SUFFIX):
        return read_scenario(Path(name))
    path = LIBRARY / f"{name}{SUFFIX}"
    if not path.is_file():
        raise RigError(
            Code.NoSuchScenario,
            f"there is no scenario {name!r}{hint(name, library_names())}: `siterig scenario list` shows the library; "
            f"a file is named by its path, ./{name}.toml",
        )
    return read_scenario(path)


def library() -> list[ScenarioFile]:
    """Return all scenarios of the library, by name."""
    return [find_scenario(name) for name in library_names()]
