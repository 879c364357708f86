"""A hook of MkDocs: fills in lists of pages in ``nav``, and adds the script that draws diagrams, from ``node_modules``.

No page of the site loads anything from the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
MERMAID = ROOT / "node_modules" / "@mermaid-js" / "tiny" / "dist" / "mermaid.tiny.js"
START = """\
mermaid.initialize({startOnLoad: true, theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "default"});
"""


def on_config(config: Any) -> Any:
    """Replace each folder in ``nav`` by its pages: the index first, then by name."""
    config["nav"] = _filled(config["nav"], Path(config["docs_dir"]))
    return config


def _filled(entry: Any, docs: Path) -> Any:
    if isinstance(entry, list):
        return [_filled(inner, docs) for inner in entry]
    if isinstance(entry, dict):
        return {title: _filled(inner, docs) for title, inner in entry.items()}
    if isinstance(entry, str) and entry.endswith("/"):
        return [path.relative_to(docs).as_posix() for path in sorted((docs / entry).glob("*.md"))]
    return entry


def on_files(files: Files, config: Any) -> Files:
    """Add the scripts of the site."""
    script = MERMAID.read_text(encoding="utf-8") if MERMAID.exists() else "globalThis.mermaid = {initialize() {}};"
    for name, text in {"mermaid.tiny.js": script, "diagrams.js": START}.items():
        files.append(File.generated(config, f"javascripts/{name}", content=text))
    return files
