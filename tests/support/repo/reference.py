"""The reference pages of all commands, drawn from the program and from ``siterig/manual/commands``.

``python -m tests.support.repo.reference`` writes them into docs/reference/commands.
"""

from __future__ import annotations

from siterig.cli.app import program
from siterig.manual import markdown
from siterig.manual.page import pages
from tests.support.repo.rooms import ROOT

FOLDER = ROOT / "docs" / "reference" / "commands"


def drawn() -> dict[str, str]:
    """Return the text of each page by its file name."""
    known = pages(program())
    return {"README.md": markdown.index(known)} | {
        f"{page.name}.md": f"{markdown.GENERATED}\n\n{markdown.render(page)}" for page in known
    }


def main() -> None:
    """Write all pages; remove those of commands that are gone."""
    FOLDER.mkdir(exist_ok=True)
    texts = drawn()
    for path in FOLDER.glob("*.md"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
