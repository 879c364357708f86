"""A class name stands for one class in the whole code base; a log event is a short key."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache

from tests.support.repo.rooms import ROOT, modules

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
LOGGERS = {"log", "_log", "logger", "_logger"}
EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@cache
def trees() -> list[tuple[str, ast.Module]]:
    """Return the path in the repository and the syntax tree of every module of the rooms and of bench."""
    paths = [*modules().values(), *sorted((ROOT / "bench").rglob("*.py"))]
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in paths]


def is_logger(node: ast.expr) -> bool:
    """Return True for ``log``, ``self._log`` and ``structlog.get_logger(...)``, and for these with ``.bind(...)``."""
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in ("bind", "new"):
            return is_logger(function.value)
        return ast.unparse(function) == "structlog.get_logger"
    return (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")) in LOGGERS


def log_calls(tree: ast.AST) -> list[ast.Call]:
    """Return the calls that log an event."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LEVELS
        and is_logger(node.func.value)
    ]


def is_event(call: ast.Call) -> bool:
    """Return True if the call has one positional argument, a literal in snake_case."""
    match call.args:
        case [ast.Constant(value=str(event))]:
            return EVENT.fullmatch(event) is not None
    return False


def test_a_class_name_is_unique() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path}:{node.lineno}")
    assert {name: at for name, at in places.items() if len(at) > 1} == {}
    assert len(places) > 300


ALIAS = re.compile(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*")


def aliases(tree: ast.Module) -> list[tuple[str, int]]:
    """Return the names in CamelCase that a module assigns, with their lines: type aliases and enumerations."""
    return [
        (target.id, node.lineno)
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and "TypeVar(" not in ast.unparse(node)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and ALIAS.fullmatch(target.id)
    ]


def test_a_type_alias_is_unique() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path, tree in trees():
        for name, line in aliases(tree):
            places[name].append(f"{path}:{line}")
    assert {name: at for name, at in places.items() if len(at) > 1} == {}
    assert len(places) > 30


PARTICIPLES = {"each", "found", "given", "gone", "kept", "left", "lent", "made", "said", "taken", "there", "told", "wanted"}
"""Words that do not name a value: a parameter has a noun."""


def test_a_parameter_has_a_noun() -> None:
    wrong = [
        f"{path}:{node.lineno} {node.name}({argument.arg})"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if argument.arg in PARTICIPLES
    ]
    assert wrong == []


def test_a_log_event_is_a_snake_case_literal() -> None:
    calls = [(path, call) for path, tree in trees() for call in log_calls(tree)]
    assert [f"{path}:{call.lineno} {ast.unparse(call)}" for path, call in calls if not is_event(call)] == []
    assert len(calls) > 50


def test_a_logger_has_a_name_that_the_rule_knows() -> None:
    unknown = [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "get_logger(" in ast.unparse(node.value)
        if not all(is_logger(target) for target in node.targets)
    ]
    assert unknown == []


def test_the_rule_sees_a_text_as_an_event() -> None:
    source = (
        "self._log.info('two words')\nlog.warning(f'disk_{name}')\nstructlog.get_logger('a').error('Ended')\nlog.info(event)"
    )
    calls = log_calls(ast.parse(source))
    assert (len(calls), [call for call in calls if is_event(call)]) == (4, [])
    assert all(is_event(call) for call in log_calls(ast.parse("_log.info('log_abandoned', disk=disk)")))
