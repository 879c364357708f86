"""The house keeps its order: who may import whom, no cycles, no address of a registry, docs that match."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MAY_IMPORT = {
    "cext": set[str](),
    "blockfs": {"cext"},
    "replication": {"cext", "blockfs"},
    "azure_emu": {"cext", "blockfs"},
    "scenarios": {"cext", "blockfs", "replication", "azure_emu"},
    "siterig": {"cext", "blockfs", "replication", "azure_emu", "scenarios"},
}
LINES_MAX = 600


def modules() -> dict[str, Path]:
    """All our modules by dotted name."""
    found = {}
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports when it is run as well as later, but not for type checking alone."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_no_package_imports_one_to_its_right() -> None:
    wrong = []
    for name, path in modules().items():
        package = name.split(".")[0]
        used = {i.split(".")[0] for i in imports(path)} & MAY_IMPORT.keys() - {package}
        wrong += [f"{name} imports {other}" for other in used - MAY_IMPORT[package]]
    assert wrong == []


def test_no_cycle_of_imports() -> None:
    known = modules()
    graph = {name: {i for i in imports(path) if i in known and i != name} for name, path in known.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_diagram_in_the_docs_is_the_rule() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    drawn: dict[str, set[str]] = {package: set() for package in MAY_IMPORT}
    for left, right in re.findall(r"^    (\w+) --> (\w+)$", text, flags=re.MULTILINE):
        drawn[left].add(right)
    used: dict[str, set[str]] = {package: set() for package in MAY_IMPORT}
    for name, path in modules().items():
        package = name.split(".")[0]
        used[package] |= {i.split(".")[0] for i in imports(path)} & MAY_IMPORT.keys() - {package}
    assert drawn == used


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_no_module_has_become_two() -> None:
    long = {str(p.relative_to(ROOT)): n for p in modules().values() if (n := len(p.read_text().splitlines())) > LINES_MAX}
    assert long == {}


def test_no_registry_is_named_in_a_committed_file() -> None:
    hosts = re.compile(
        "|".join(["registry" + r"\.npmjs", "files" + r"\.pythonhosted", "pypi" + r"\.org", "deb" + r"\.debian\.org"])
    )
    assert [str(p) for p in tracked() if p.is_file() and hosts.search(p.read_text(errors="replace"))] == []


def test_every_link_between_docs_leads_somewhere() -> None:
    broken = []
    for path in tracked():
        if path.suffix == ".md" and path.is_file():
            for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
                if "://" not in target and not (path.parent / target).exists():
                    broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []
