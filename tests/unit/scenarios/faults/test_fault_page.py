"""The pages about faults are those of the program, and their examples are rules that it accepts."""

from __future__ import annotations

import ast
import re

import pytest

from siterig.core.fault_contract import INJECTOR_LAYERS, FaultPlan
from siterig.faults.disk_mapping import map_rule
from siterig.host_faults.host_rules import HostRule
from siterig.scenarios.faults.rule_files import parse_rules
from siterig.scenarios.faults.rules import read_rule
from siterig.scenarios.faults.schedule import FaultSchedule
from tests.support.clocks import SettableClock
from tests.support.repo import fault_page
from tests.support.repo.documents import DOCS, pages

HOW_TO = DOCS / "how-to" / "faults.md"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_the_reference_page_is_that_of_the_program() -> None:
    assert fault_page.PAGE.read_text() == fault_page.text(), "run: python -m tests.support.repo.fault_page"


def test_the_three_forms_on_the_page_are_one_rule() -> None:
    text = fault_page.text()
    (toml,), (words,), (python,) = (blocks(text, language) for language in ("toml", "text", "python"))
    (rule,) = parse_rules("page", toml).fault
    (call,) = [node for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Call)]
    assert rule == read_rule(words.strip()) == read_rule(ast.literal_eval(call.args[0]))


@pytest.mark.parametrize("text", blocks(HOW_TO.read_text(), "toml"))
def test_the_examples_can_be_armed(text: str) -> None:
    rules = parse_rules(str(HOW_TO), text)
    schedule = FaultSchedule(rules.seed, clock=SettableClock())
    schedule.add(rules.fault)
    assert len(schedule.status()) == len(rules.fault) >= 1
    for rule in rules.fault:
        if rule.where.layer == "disk":
            map_rule(rule.label, rule, 1)
        elif rule.where.layer in INJECTOR_LAYERS:
            plan = FaultPlan(name=rule.label, rule=rule.document(), seed=1, is_open=True)
            HostRule(plan).check(("log", "store"))


def test_the_rules_of_command_lines_on_all_pages_are_rules() -> None:
    lines = [line for page in pages() for line in re.findall(r"^siterig fault add (.*)", page.read_text(), re.M)]
    rules = [re.sub(r"--(mnt|seed|file) \S+|--json", "", line.partition("#")[0]).strip() for line in lines]
    assert len([read_rule(rule) for rule in rules if rule and not rule.startswith("[RULE]")]) > 30


def test_there_are_five_examples() -> None:
    assert len(blocks(HOW_TO.read_text(), "toml")) == 5
