"""Reference pages as manual pages: roff with the macros of man(7), tables for tbl(1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile

from siterig.manual.page import Item, Page

_FENCE = "```"


def render(page: Page, version: str) -> str:
    """Return the page for man(1), section 1."""
    lines = ["'\\\" t", f'.TH "{page.name.upper()}" 1 "" "siterig {version}" "siterig"']
    lines += [".SH NAME", f"{page.name} \\- {inline(page.summary[:1].lower() + page.summary[1:])}"]
    lines += [".SH SYNOPSIS", *blocks(f"{_FENCE}\n{page.synopsis}\n{_FENCE}")]
    lines += [".SH DESCRIPTION", *blocks(page.description)]
    if page.examples:
        lines += [".SH EXAMPLES", *blocks(page.examples)]
    if page.arguments:
        lines += [".SH ARGUMENTS", *_items(page.arguments)]
    lines += [".SH OPTIONS", *_items(page.options)]
    if page.json:
        lines += [".SH JSON", *blocks(page.json)]
    lines += [".SH EXIT STATUS", *blocks(page.exit_status)]
    if page.see_also:
        lines += [".SH SEE ALSO", *blocks(page.see_also)]
    return "\n".join(lines) + "\n"


def _items(items: list[Item]) -> Iterator[str]:
    for item in items:
        yield ".TP"
        yield f"\\fB{_escaped(item.form)}\\fR"
        yield inline(item.help)
        if item.more:
            yield from (".RS", *blocks(item.more), ".RE")


def blocks(text: str) -> list[str]:
    """Return Markdown as roff: paragraphs, lists, tables, code blocks and headings, as the pages use them."""
    output = list[str]()
    paragraph, table = list[str](), list[str]()
    lead = [".PP"]

    def end() -> None:
        if paragraph:
            output.extend((*lead, inline(" ".join(paragraph))))
        if table:
            output.extend(_table(table))
        paragraph.clear()
        table.clear()
        lead[:] = [".PP"]

    lines = iter(text.split("\n"))
    for line in lines:
        if line.startswith("|"):
            if paragraph:
                end()
            table.append(line)
        elif line.startswith(("- ", "#", _FENCE)) or not line.strip():
            end()
            if line.startswith("- "):
                lead[:] = [".IP \\(bu 2"]
                paragraph.append(line[2:])
            elif line.startswith("#"):
                output.append(f".SS {inline(line.lstrip('# '))}")
            elif line.startswith(_FENCE):
                output.extend(_code(lines))
        else:
            paragraph.append(line.strip())
    end()
    return output


def _code(lines: Iterator[str]) -> Iterator[str]:
    yield from (".PP", ".RS 4", ".nf")
    yield from (_escaped(line) or "\\&" for line in takewhile(lambda line: not line.startswith(_FENCE), lines))
    yield from (".fi", ".RE")


def _table(rows: list[str]) -> list[str]:
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows]
    head, body = cells[0], cells[2:]
    lines = [
        ".PP",
        ".TS",
        "tab(\t);",
        "\t".join(["lb"] * (len(head) - 1) + ["lbx"]),
        "\t".join(["l"] * (len(head) - 1) + ["lx"]) + ".",
    ]
    for row in [head, *body]:
        lines.append("\t".join(f"T{{\n{inline(cell.replace(chr(92) + '|', '|')) or chr(92) + '&'}\nT}}" for cell in row))
    return [*lines, ".TE"]


def inline(text: str) -> str:
    """Return code in bold, and links as their text."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    parts = re.split(r"(`[^`]*`|\*\*[^*]*\*\*|(?<!\w)\*[^*\s][^*]*\*)", text)
    done = []
    for part in parts:
        if part.startswith("`"):
            done.append(f"\\fB{_escaped(part.strip('`'))}\\fR")
        elif part.startswith("**"):
            done.append(f"\\fB{_escaped(part.strip('*'))}\\fR")
        elif part.startswith("*") and part.endswith("*") and len(part) > 1:
            done.append(f"\\fI{_escaped(part.strip('*'))}\\fR")
        else:
            done.append(_escaped(part))
    return "".join(done)


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
