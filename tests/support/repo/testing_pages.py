"""The generated parts of the pages on tests with siterig: the table of settings, and the page of the testing API.

``python -m tests.support.repo.testing_pages`` writes them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from _pytest.fixtures import FixtureFunctionDefinition

from siterig import testing
from siterig.testing import plugin
from siterig.testing.settings import SETTINGS
from tests.support.repo.rooms import ROOT

PLUGIN_PAGE = ROOT / "docs" / "reference" / "pytest.md"
API_PAGE = ROOT / "docs" / "reference" / "testing-api.md"
BEGIN, END = "<!-- settings: written by python -m tests.support.repo.testing_pages -->", "<!-- end of settings -->"
_HEAD = """\
<!-- Written by python -m tests.support.repo.testing_pages from siterig/testing; do not edit. -->
# The testing API

The public names of `siterig.testing`. [The pytest plugin](pytest.md) has fixtures that give these objects; [how to test with
pytest](../how-to/pytest.md) has examples. Errors are `RigError` (`siterig.blockfs.core.errors`); each has a `code` of [the
list](errors.md). `siterig.testing` can be imported without pytest; only the factories need it.
"""
_SECTIONS = ("Args", "Returns", "Yields", "Raises", "Attributes", "Example")


def settings_part() -> str:
    """Return the part of the page of the plugin between the two marks."""
    rows = ["| argument | option | ini key | default | meaning | values |", "| --- | --- | --- | --- | --- | --- |"]
    for each in SETTINGS:
        default = f"`{each.default}`" if each.default else "none"
        rows.append(f"| `{each.name}=` | `{each.option}` | `{each.ini}` | {default} | {each.text} | {each.values} |")
    return "\n".join([BEGIN, "", *rows, "", END])


def fixture_scopes() -> dict[str, str]:
    """Return the scope of each fixture of the plugin."""
    found = {name: value for name, value in vars(plugin).items() if isinstance(value, FixtureFunctionDefinition)}
    return {name: str(value._fixture_function_marker.scope) for name, value in found.items()}  # noqa: SLF001 (no public way)


def api_page() -> str:
    """Return the page of the testing API."""
    factories = [getattr(testing, name) for name in testing.__all__ if name.islower()]
    classes = [getattr(testing, name) for name in testing.__all__ if not name.islower()]
    parts = [
        _HEAD,
        "## Factories\n",
        "Each returns a fixture; assign it to a variable of `conftest.py` or of a test module.\n",
    ]
    parts += [_function(each, "###") for each in factories]
    for each in classes:
        parts.append(f"## {each.__name__}\n\n{_markdown(inspect.getdoc(each) or '')}\n")
        parts += [_member(name, value) for name, value in vars(each).items() if _is_public(name, value)]
    return "\n".join(parts).rstrip() + "\n"


def _is_public(name: str, value: object) -> bool:
    return not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | classmethod))


def _member(name: str, value: Any) -> str:
    if isinstance(value, property):
        return f"### {name} (property)\n\n{_markdown(inspect.getdoc(value) or '')}\n"
    return _function(value.__func__ if isinstance(value, classmethod) else value, "###")


def _function(function: Callable[..., object], level: str) -> str:
    signature = inspect.signature(function)
    shown = signature.replace(
        parameters=[each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    )
    text = _typed(f"{function.__name__}{shown}")
    return f"{level} {function.__name__}\n\n```text\n{text}\n```\n\n{_markdown(inspect.getdoc(function) or '')}\n"


def _typed(text: str) -> str:
    """Return a signature without the quotes of its annotations, one parameter a line if it is long."""
    text = text.replace("'", "") if "= '" not in text else re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    if len(text) <= 100:
        return text
    head, rest = text.split("(", 1)
    inside, tail = rest.rsplit(") -> ", 1)
    parameters = re.split(r", (?=\w+: |\*)", inside)
    return f"{head}(\n" + "".join(f"    {each},\n" for each in parameters).replace("    *,\n", "    *,\n") + f") -> {tail}"


def _markdown(docstring: str) -> str:
    """Return a docstring in the form of this project as Markdown."""
    text = re.sub(
        r":(?:class|meth|func|attr|mod):`[~.]?([^`]+)`", lambda found: f"`{found[1].rpartition('.')[2]}`", docstring
    )
    text = text.replace("``", "`")
    return "\n".join(_sections(text.splitlines())).strip()


def _sections(lines: list[str]) -> Iterator[str]:
    section = ""
    for line in lines:
        if line.rstrip(":") in _SECTIONS and line.endswith(":"):
            section = line.rstrip(":")
            yield f"**{section}**\n"
        elif section and line.startswith("    "):
            inner = line[4:]
            item = re.match(r"(\w+): (.*)", inner) if section in ("Args", "Raises", "Attributes") else None
            if item and not inner.startswith(" "):
                yield f"- `{item[1]}`: {item[2]}"
            else:
                yield f"  {inner.strip()}" if section in ("Args", "Raises", "Attributes") else inner.strip()
        else:
            yield line


def main() -> None:
    """Write the generated parts."""
    text = PLUGIN_PAGE.read_text()
    before, rest = text.split(BEGIN)
    PLUGIN_PAGE.write_text(before + settings_part() + rest.split(END)[1])
    API_PAGE.write_text(api_page())


if __name__ == "__main__":
    main()
