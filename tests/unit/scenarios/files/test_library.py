"""The library of scenarios: every file is allowed, can fail, and shows sentences that exist; its pages are current."""

from __future__ import annotations

import pytest

from siterig.scenarios.files.scenario_files import find_scenario, library, library_names, parse_scenario
from tests.support.repo import library_pages, scenario_page

NUMBERS = [sentence["number"] for sentence in library_pages.sentences()]


@pytest.mark.parametrize("name", library_names())
def test_a_scenario_has_a_proof_and_shows_known_sentences(name: str) -> None:
    scenario = find_scenario(name).scenario
    assert scenario.has_proof
    assert set(scenario.sentences) <= set(NUMBERS)
    assert scenario.expect.model_fields_set or any(entry.do == "wait" for entry in scenario.timeline)


def test_every_sentence_has_a_scenario_or_names_the_missing_behaviour() -> None:
    shown = {number for file in library() for number in file.scenario.sentences}
    missing = {sentence["number"] for sentence in library_pages.sentences() if "missing" in sentence}
    assert set(NUMBERS) - shown - missing == library_pages.PENDING


def test_the_pages_of_the_library_are_those_of_its_files() -> None:
    drawn = library_pages.drawn()
    remedy = "run: python -m tests.support.repo.library_pages"
    written = {path: path.read_text() for path in [*library_pages.FOLDER.glob("*.md"), library_pages.TABLE]}
    assert written == drawn, remedy


def test_the_reference_of_scenario_files_is_that_of_the_program() -> None:
    assert scenario_page.PAGE.read_text() == scenario_page.text(), "run: python -m tests.support.repo.scenario_page"
    parse_scenario("page", scenario_page.EXAMPLE)
