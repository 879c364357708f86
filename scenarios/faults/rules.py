"""Fault rules: one schema for TOML files, for the command line and for Python.

:func:`read_rule` takes a mapping or a line of words; :mod:`siterig.scenarios.faults.rule_files` reads files.
:mod:`siterig.scenarios.faults.catalog` has the faults of each layer; everything else is refused with the key, its value and
the allowed ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.documents.model_problems import DocumentProblem, misfit, problems_of
from siterig.blockfs.documents.nearest import hint
from siterig.scenarios.faults import fitting, recovery
from siterig.scenarios.faults.catalog import IMMEDIATE
from siterig.scenarios.faults.schema import FaultEffect, FaultExpectation, FaultModel, FaultMoment, FaultPlace, Seed
from siterig.scenarios.faults.values import Text
from siterig.scenarios.faults.words import mapping_of_words, words_of_document


class FaultRule(FaultModel):
    """One fault rule."""

    name: Text | None = Field(default=None, description="shown in log, report and timeline; the rule in words if left out")
    seed: Seed | None = Field(default=None, description="seed of this rule's choices; the seed of the run if left out")
    where: FaultPlace
    when: FaultMoment = FaultMoment()
    what: FaultEffect
    expect: FaultExpectation = FaultExpectation()

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, data: object) -> object:
        if isinstance(data, Mapping) and (problems := fitting.unknown_keys(data)):
            raise misfit(*problems)
        return data

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if problems := fitting.problems(self.name, self.where, self.when, self.what, self.expect):
            raise misfit(*problems)
        return self

    @property
    def label(self) -> str:
        """The name, or the rule in words if it has none: it names the rule in messages and selects its random stream."""
        return self.words() if self.name is None else self.name

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that can meet the fault; ``("-",)`` if it acts when its window opens."""
        return fitting.operations_of(self.where, self.what)

    @property
    def is_immediate(self) -> bool:
        """True if the fault acts when its window opens, not on an operation."""
        return self.operations == (IMMEDIATE,)

    @property
    def destroys_nothing(self) -> bool:
        """True if the fault changes no stored bytes: it changes only what its reads return."""
        return recovery.destroys_nothing(self.operations, self.what.keys())

    @property
    def spares_last_copies(self) -> bool:
        """True if each of its faults must ask whether another copy stays; it is limited to recoverable damage."""
        return self.expect.recoverable and not self.destroys_nothing

    def document(self) -> dict[str, Any]:
        """Return the rule as TOML and JSON have it: only keys that differ from their defaults, quantities as text."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)

    def words(self) -> str:
        """Return the rule as a line of words, which :func:`read_rule` reads as the same rule."""
        return words_of_document(self.document())


class FaultRules(FaultModel):
    """The rules of a file, and the seed of their random choices."""

    seed: Seed | None = Field(default=None, description="seed of all random choices; a printed random one if left out")
    fault: tuple[FaultRule, ...] = Field(default=(), description="the rules")

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if problems := set_problems(self.fault):
            raise misfit(*((("fault", *problem.path), problem.text) for problem in problems))
        return self

    def document(self) -> dict[str, Any]:
        """Return the rules as TOML and JSON have them."""
        seed = {} if self.seed is None else {"seed": self.seed}
        return seed | {"fault": [rule.document() for rule in self.fault]}


def mark_words(rule: FaultRule) -> str:
    """Return the injection of a rule that only sets a mark, in words."""
    return f"set the mark {rule.what.mark}"


def set_problems(rules: Sequence[FaultRule], known: Sequence[str] = ()) -> list[DocumentProblem]:
    """Return the problems between rules: names that occur twice, and triggers of rules that do not exist or never fire.

    Args:
        rules: the rules; the paths of problems begin with their numbers.
        known: names of further rules that are armed already.
    """
    names = [rule.label for rule in rules]
    found = [
        DocumentProblem((number, "name"), f"{name!r} is the name of fault[{names.index(name) + 1}], too: write another one")
        for number, name in enumerate(names)
        if names.index(name) != number
    ]
    found += [
        DocumentProblem(
            (number, "name"), f"another rule with the name {name!r} is armed: remove it first, or write another name"
        )
        for number, name in enumerate(names)
        if name in known
    ]
    awaited = {
        name: rule.when.after.name
        for name, rule in zip(names, rules, strict=True)
        if rule.when.after is not None and rule.when.after.kind == "fault"
    }
    for number, rule in enumerate(rules):
        for key in ("after", "until"):
            trigger = getattr(rule.when, key)
            if trigger is None or trigger.kind != "fault":
                continue
            path = (number, "when", key)
            if trigger.name not in (*names, *known):
                there = ", ".join((*names, *known))
                found.append(
                    DocumentProblem(
                        path, f"there is no rule {trigger.name!r}{hint(trigger.name, names)}; there are: {there}"
                    )
                )
            elif key == "after" and _waits_for_itself(names[number], awaited):
                found.append(DocumentProblem(path, f"the rule waits for itself through {trigger.name!r}: it never fires"))
    return found


def _waits_for_itself(name: str, awaited: Mapping[str, str]) -> bool:
    seen, at = set[str](), awaited.get(name)
    while at is not None and at not in seen:
        if at == name:
            return True
        seen.add(at)
        at = awaited.get(at)
    return False


def read_rule(rule: Mapping[str, Any] | str) -> FaultRule:
    """Return a rule that is written as a mapping or as a line of words.

    Args:
        rule: ``{"where": {"layer": "disk"}, "what": {"error": "EIO"}}``, or ``"disk web01/data write error=EIO"``.
    Raises:
        RigError: ``InvalidFault``; the message names the key, its value and the allowed ones.
    """
    mapping = mapping_of_words(rule) if isinstance(rule, str) else rule
    try:
        return FaultRule.model_validate(mapping)
    except ValidationError as error:
        text = "; ".join(str(problem) for problem in problems_of(error, FaultRule))
        raise RigError(Code.InvalidFault, f"fault {rule!r}: {text}" if isinstance(rule, str) else f"fault: {text}") from None
