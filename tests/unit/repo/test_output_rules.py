"""Nothing is printed past siterig/cli/output.py, which escapes every text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("blockfs", "replication", "azure_emu", "scenarios", "siterig", "cext")
MAY_WRITE = {
    "siterig/cli/output.py",  # the one way
    "siterig/__main__.py",  # a constant, before anything can be imported
    "scenarios/workloads/worker.py",  # speaks to its parent process over a pipe
    "scenarios/simulation/__main__.py",  # a command of developers
    "siterig/thrash/__main__.py",  # the same
    "cext/build_cext.py",
}
BYPASSES = {"print", "echo", "secho", "pprint"}


def bypasses(path: Path) -> Iterator[str]:
    """Calls that print, and uses of the two standard streams but to read, ask or duplicate."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            if name in BYPASSES:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {name}()"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich"):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"
        if isinstance(node, ast.Attribute) and node.attr in ("write", "writelines", "buffer"):
            stream = node.value
            if isinstance(stream, ast.Attribute) and stream.attr in ("stdout", "stderr", "__stdout__", "__stderr__"):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"


MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.slow
def test_no_module_prints_but_the_one_that_escapes() -> None:
    found = [text for path in MODULES if str(path.relative_to(ROOT)) not in MAY_WRITE for text in bypasses(path)]
    assert found == []


@pytest.mark.parametrize(
    "statement",
    [
        "print(x)",
        "console.print(x)",
        "sys.stderr.write(x)",
        "sys.stdout.buffer.write(x)",
        "from rich.console import Console",
    ],
)
def test_the_rule_sees_a_bypass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "module.py"
    path.write_text(statement)
    assert list(bypasses(path))
