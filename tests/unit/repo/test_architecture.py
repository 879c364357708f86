"""Rooms import only allowed rooms, without cycles; no file has the address of a registry; the docs match."""

from __future__ import annotations

import graphlib
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.support.repo import rooms

ROOT = rooms.ROOT
LINES_MAX = 600
MODULES_MAX = 18


@pytest.mark.slow
def test_every_room_imports_exactly_the_rooms_in_the_table() -> None:
    allowed = rooms.allowed()
    assert rooms.used(set(allowed)) == allowed


def test_no_room_imports_one_that_imports_it() -> None:
    graphlib.TopologicalSorter(rooms.allowed()).prepare()


@pytest.mark.slow
def test_no_cycle_of_imports() -> None:
    known = rooms.modules()
    graph = {name: {i for i in rooms.imports(path) if i in known and i != name} for name, path in known.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_architecture_page_and_the_rooms_agree_with_the_table() -> None:
    assert rooms.page_part() in rooms.PAGE.read_text(), "run python -m tests.support.repo.rooms"
    for room, names in rooms.allowed().items():
        text = (rooms.folder_of(room) / "__init__.py").read_text()
        assert text.startswith(rooms.init_of(room, names)), f"{room}: run python -m tests.support.repo.rooms"


@pytest.mark.slow
def test_a_room_has_about_a_dozen_modules() -> None:
    counted = Counter(rooms.room_of(name, set(rooms.allowed())) for name in rooms.modules())
    counted += Counter(
        path.parent.relative_to(ROOT).as_posix() for folder in ("bench", "tests") for path in (ROOT / folder).rglob("*.py")
    )
    assert {room: count for room, count in counted.items() if count > MODULES_MAX} == {}


@pytest.mark.slow
def test_no_module_of_the_product_imports_tests_or_benches() -> None:
    wrong = {
        name: sorted(found)
        for name, path in rooms.modules().items()
        if (found := {i for i in rooms.imports(path) if i.split(".")[0] in ("tests", "bench")})
    }
    assert wrong == {}


def test_no_benchmark_imports_a_test() -> None:
    wrong = []
    for path in (ROOT / "bench").rglob("*.py"):
        found = {i for i in rooms.imports(path) if i.split(".")[0] == "tests" and not i.startswith("tests.support")}
        wrong += [f"{path.relative_to(ROOT)} imports {i}" for i in found]
    assert wrong == []


@pytest.mark.slow
def test_no_test_imports_a_test_module() -> None:
    wrong = []
    for path in (ROOT / "tests").rglob("*.py"):
        for name in rooms.imports(path):
            if name.startswith("tests.") and any(part.startswith(("test_", "conftest")) for part in name.split(".")):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == [], "helpers belong in tests/support"


def test_folders_of_unit_tests_mirror_the_code_and_hold_tests_alone() -> None:
    unit = ROOT / "tests" / "unit"
    modules = [path.relative_to(unit) for path in unit.rglob("*.py") if path.name not in ("__init__.py", "conftest.py")]
    assert [str(path) for path in modules if not path.name.startswith("test_")] == [], "helpers belong in tests/support"
    elsewhere = {"repo": Path(), "vault": Path("azure_emu/vault")}
    folders = {elsewhere.get(path.parts[0], Path(path.parts[0])).joinpath(*path.parent.parts[1:]) for path in modules}
    assert [str(folder) for folder in folders if not (ROOT / folder).is_dir()] == []


@pytest.mark.slow
def test_every_folder_of_the_product_has_one_import_name() -> None:
    """A user's own package ``replication`` must not come in our way, nor a module of ours be loaded twice."""
    folders = {"cext", "blockfs", "replication", "azure_emu", "scenarios"}
    for folder in folders:
        assert (ROOT / "siterig" / folder).readlink() == Path("..") / folder
    wrong = []
    for top in ("siterig", *folders, "tests", "bench"):
        for path in (ROOT / top).rglob("*.py"):
            wrong += [f"{path.relative_to(ROOT)}: {i}" for i in rooms.imports(path) if i.split(".")[0] in folders]
    assert wrong == []


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_no_module_is_longer_than_600_lines() -> None:
    long = {
        str(p.relative_to(ROOT)): n for p in rooms.modules().values() if (n := len(p.read_text().splitlines())) > LINES_MAX
    }
    assert long == {}


@pytest.mark.slow
def test_no_registry_is_named_in_a_committed_file() -> None:
    hosts = re.compile(
        "|".join(["registry" + r"\.npmjs", "files" + r"\.pythonhosted", "pypi" + r"\.org", "deb" + r"\.debian\.org"])
    )
    assert [str(p) for p in tracked() if p.is_file() and hosts.search(p.read_text(errors="replace"))] == []


@pytest.mark.slow
def test_every_link_between_docs_leads_somewhere() -> None:
    broken = []
    for path in tracked():
        if path.suffix == ".md" and path.is_file() and path.parent != ROOT / "siterig/manual/commands":  # see test_docs
            for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
                if "://" not in target and not (path.parent / target).exists():
                    broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []
