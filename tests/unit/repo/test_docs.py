"""Tests of the documents: current pages, links, command lines and JSON tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.azure_emu.vault.context import states
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.model.resources import Job, MountedPoint, ProtectedItem, RecoveryPoint, Vm
from siterig.blockfs.contracts.control import DiskInfo
from siterig.cli.app import program
from siterig.manual import roff
from siterig.manual.page import ManualError, page_of, pages
from tests.support.repo import documents, language, reference, testing_pages
from tests.support.repo.rooms import ROOT
from tests.support.samples import sample

PAGES = pages(program())


def test_the_reference_pages_are_those_of_the_program() -> None:
    written = {path.name: path.read_text() for path in reference.FOLDER.glob("*.md")}
    assert written == reference.drawn(), "run: python -m tests.support.repo.reference"


def test_the_pages_of_the_plugin_are_those_of_the_code() -> None:
    remedy = "run python -m tests.support.repo.testing_pages"
    page = testing_pages.PLUGIN_PAGE.read_text()
    assert testing_pages.settings_part() in page, remedy
    assert testing_pages.API_PAGE.read_text() == testing_pages.api_page(), remedy
    fixtures = documents.section(page, "Fixtures")
    rows = dict(re.findall(r"^\| `(siterig_\w+)` \| (\w+) \|", fixtures, re.MULTILINE))
    assert rows == testing_pages.fixture_scopes()


def test_every_link_leads_to_a_page_and_a_heading() -> None:
    assert [link for path in documents.documents() for link in documents.broken_links(path)] == []


def test_every_page_can_be_reached_from_the_index() -> None:
    waiting, reached = [documents.DOCS / "README.md"], set[Path]()
    while waiting:
        path = waiting.pop()
        reached.add(path)
        for target in re.findall(r"\]\(([^)#\s]+)", documents.without_code(path.read_text())):
            to = (path.parent / target).resolve()
            if to.suffix == ".md" and to not in reached and to.exists():
                waiting.append(to)
    assert set(documents.pages()) - reached == set()


def test_every_command_line_in_the_documents_is_one_of_the_program() -> None:
    lines = [line for path in documents.documents() for line in documents.command_lines(path)]
    assert len(lines) > 100
    assert [(line.where, why) for line in lines if (why := documents.problem(line)) is not None] == []


@pytest.mark.parametrize(
    "words",
    [
        "vm create web01",
        "vm create web01 --disk os:1GiB --no-such",
        "vm made web01",
        "points",
        "point export web01 --to x --format x",
    ],
)
def test_a_wrong_command_line_is_found(words: str) -> None:
    assert documents.problem(documents.CommandLine("x", tuple(words.split()), complete=True)) is not None


def test_every_json_example_is_json() -> None:
    for path in documents.documents():
        for block in re.findall(r"^```json\n(.*?)^```", path.read_text(), re.M | re.S):
            for line in [block] if block.startswith("{\n") or block.startswith("[\n") else block.splitlines():
                json.loads(line)


SHARED: dict[str, type[BaseModel]] = {
    "Recovery point": RecoveryPoint,
    "VM": Vm,
    "Mounted point": MountedPoint,
    "Job": Job,
    "Role": RoleStatus,
    "Protected item": ProtectedItem,
    "Disk": DiskInfo,
}


@pytest.mark.parametrize("title", SHARED)
def test_the_table_of_a_shared_object_has_the_keys_of_its_model(title: str) -> None:
    document: Any = sample(SHARED[title]).model_dump(mode="json", by_alias=True)
    if title == "Disk":
        document["side"] = "site"
    text = (documents.REFERENCE / "json.md").read_text()
    table = documents.expanded(documents.keys_of(documents.section(text, title)))
    assert set(table) == set(documents.key_paths(document))


def test_a_page_whose_text_names_an_option_that_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    (page,) = [page for page in PAGES if page.words == ("down",)]
    assert page.options[0].form.startswith("--dir")
    monkeypatch.setattr("siterig.manual.page._sections", lambda _words: ("", {"Options": "### --gone\ntext"}))
    command: Any = typer.main.get_command(program())
    with pytest.raises(ManualError, match="siterig down has no option --gone"):
        page_of(command.commands["down"], ("down",))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_manual_page_has_all_its_parts(page: Any) -> None:
    text = roff.render(page, "1")
    parts = re.findall(r"^\.SH (.+)$", text, re.M)
    assert [part for part in parts if part not in {"ARGUMENTS", "SEE ALSO"}] == [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "EXAMPLES",
        "OPTIONS",
        "JSON",
        "EXIT STATUS",
    ]
    assert text.count(".TS") == text.count(".TE")
    assert not re.search(r"^\.[^A-Zn'f]", text, re.M)
    assert "](" not in text
    assert len(page.summary) > 10 and not page.summary.endswith(".")


def test_the_table_of_states_is_that_of_the_vault() -> None:
    text = (documents.REFERENCE / "jobs-and-states.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (Primary|Recovery) \| ([^|]*) \|$", text, re.M)
    item = {"vm": "web01", "test_failover_state": states.TEST_NONE, "suspended": False}
    allowed = {
        (state, location): states.allowed(ItemRow(protection_state=state, active_location=location, **item))
        for state, location in states.RESTING
    }
    assert {(s, at): words.split(", ") for s, at, words in rows} == {
        (str(state), at): [operation.command for operation in operations] for (state, at), operations in allowed.items()
    }


def test_the_diagram_of_states_has_resting_states_only() -> None:
    text = (documents.REFERENCE / "jobs-and-states.md").read_text()
    named = set(re.findall(r"^    (\w+) -->|--> (\w+):", text, re.M))
    assert {a or b for a, b in named} <= {str(state) for state, _ in states.RESTING}


def test_the_names_in_the_glossary_exist_in_the_code() -> None:
    files = [*language.python_files(), *language.c_files()]
    words = set(re.findall(r"\w+", "".join(path.read_text() for path in files)))
    paths = {
        parent.relative_to(ROOT).as_posix() for path in files for parent in (path, *path.parents) if ROOT in parent.parents
    }
    missing = []
    for row in re.findall(r"^\| .* \|$", (documents.DOCS / "glossary.md").read_text(), re.M):
        term, _, names, *_ = (cell.strip() for cell in row.strip("|").split(" | "))
        for name in re.findall(r"`([^`]+)`", names):
            is_path = "/" in name or name.endswith((".py", ".c", ".h"))
            known = (
                any(f"/{path}".endswith(f"/{name}") for path in paths) if is_path else set(re.findall(r"\w+", name)) <= words
            )
            missing += [] if known else [f"{term}: {name}"]
    assert missing == []


def test_every_file_that_the_documents_name_exists() -> None:
    for path in documents.documents():
        for name in re.findall(
            r"(?<![\w/.])((?:tests|bench|blockfs|azure_emu|replication|scenarios|siterig|cext)/[\w./-]+)", path.read_text()
        ):
            if name.rstrip("./").endswith((".py", ".c", ".h", ".toml", ".md")) or "." not in name:
                found = [folder / name.rstrip(".") for folder in (ROOT, path.parent)]  # an example names files of its own
                assert any(file.exists() for file in found), f"{documents.named(path)}: {name}"


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_the_figures_are_those_of_the_benchmarks(page: str) -> None:
    known = (ROOT / "bench/RESULTS.md").read_text()
    text = documents.section((ROOT / page).read_text(), "Figures") or (ROOT / page).read_text()
    figures = re.findall(r"\b\d{1,3}(?:,\d{3})+\b|\b\d+\.\d (?:s|ms|µs)\b", text)
    assert len(figures) > 5
    assert [figure for figure in figures if figure.split()[0] not in known] == []
