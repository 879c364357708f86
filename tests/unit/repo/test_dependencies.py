"""The packages that siterig needs: all are used, the locks have them, and together they stay small."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.repo import rooms

ROOT = Path(__file__).resolve().parents[3]
INSTALLED_MB_MAX = 150
IMPORT_NAMES = {
    "prometheus-client": "prometheus_client",
    "azure-storage-blob": "azure",
    "tomli-w": "tomli_w",
    "typing-extensions": "typing_extensions",
}
NOT_IMPORTED = {"cffi"}
"""The compiled part of siterig needs it."""


def declared() -> list[str]:
    """The dependencies of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text).name for text in project["dependencies"]]


def locked(name: str) -> set[str]:
    """The packages that a lock pins."""
    return set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / name).read_text(), re.MULTILINE))


def distributions() -> dict[str, importlib.metadata.Distribution]:
    """All that pip installs with siterig, and siterig itself."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = ["siterig", *declared()]
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        if name != "siterig":
            needs = [Requirement(text) for text in found[name].requires or []]
            wanted += [each.name for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def size_of(path: Path) -> int:
    """The bytes of a file, or 0 if it is not there."""
    return path.stat().st_size if path.is_file() else 0


def test_every_dependency_is_imported() -> None:
    imported = {module.split(".")[0] for path in rooms.modules().values() for module in rooms.imports(path)}
    assert [name for name in declared() if name not in NOT_IMPORTED and IMPORT_NAMES.get(name, name) not in imported] == []


def test_the_product_lock_has_no_test_tool_and_the_locks_do_not_overlap() -> None:
    product, tests = locked("requirements.lock"), locked("requirements-test.lock")
    assert product & tests == set()
    assert {"pytest", "mypy", "ruff", "hypothesis"} <= tests
    assert set(declared()) <= product


def test_the_installed_packages_stay_small() -> None:
    files = {name: found.files or [] for name, found in distributions().items()}
    sizes = {name: sum(size_of(Path(str(file.locate()))) for file in listed) for name, listed in files.items()}
    source = sum(path.stat().st_size for path in (ROOT / "cext").glob("_core*.so"))
    source += sum(path.stat().st_size for path in rooms.modules().values())
    total_mb = (sum(sizes.values()) + source) / 1e6
    largest = sorted(((size // 1_000_000, name) for name, size in sizes.items()), reverse=True)[:8]
    assert total_mb < INSTALLED_MB_MAX, f"the largest, in MB: {largest}"
