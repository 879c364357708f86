"""Files of fault rules: TOML with ``seed`` and ``[[fault]]`` tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.documents.model_problems import problems_of
from siterig.blockfs.documents.toml_document import TomlDocument, toml_text
from siterig.scenarios.faults.rules import FaultRule, FaultRules


def read_rules(path: Path) -> FaultRules:
    """Read a file of fault rules; a relative ``while_file`` is relative to the folder of the file.

    Raises:
        RigError: ``InvalidFault``; the message names file, line, key, value and the allowed ones.
    """
    document = TomlDocument.read(path, Code.InvalidFault)
    rules = _validated(document)
    if not rules.fault:
        raise RigError(Code.InvalidFault, f"{path}: there is no [[fault]] table: a file of rules has at least one")
    return rules.model_copy(update={"fault": tuple(with_file_in(rule, path.absolute().parent) for rule in rules.fault)})


def parse_rules(name: str, text: str) -> FaultRules:
    """Return the rules of a TOML text; ``name`` stands for the file in messages."""
    return _validated(TomlDocument(name, text, Code.InvalidFault))


def _validated(document: TomlDocument) -> FaultRules:
    try:
        return FaultRules.model_validate(document.data)
    except ValidationError as error:
        raise document.error(problems_of(error, FaultRules)) from None


def with_file_in(rule: FaultRule, folder: Path) -> FaultRule:
    """Return a rule whose ``while_file``, if it is relative, is in this folder: another process watches the file."""
    if rule.when.while_file is None:
        return rule
    when = rule.when.model_copy(update={"while_file": str(folder / rule.when.while_file)})
    return rule.model_copy(update={"when": when})


def rules_text(rules: FaultRules, notes: Sequence[str] = ()) -> str:
    """Return rules as the text of a TOML file, which reads as the same rules; ``notes`` become comments at its top."""
    return "".join(f"# {note}\n" for note in notes) + toml_text(rules.document())
