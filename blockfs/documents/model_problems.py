"""Problems of a document that a pydantic model refuses, in plain English: the key, the value, and what is allowed.

An unknown key is reported with the nearest known one.  A model that checks more than single values raises
:func:`misfit`; its problems are reported with the keys that it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from siterig.blockfs.documents.nearest import unknown_key

KeyPath = tuple[str | int, ...]
"""Keys and numbers of items, from the root of a document."""
_MISFIT = "misfit"
_TAG = "<"
"""Tags of unions begin with it, which no key does: pydantic puts them into the path."""
_VALUE_CHARS = 60


@dataclass(frozen=True, slots=True)
class DocumentProblem:
    """One problem: the path of its key, from the root of the document, and a text without the key."""

    path: KeyPath
    text: str

    def __str__(self) -> str:
        return f"{key_text(self.path)}: {self.text}" if self.path else self.text


def key_text(path: KeyPath) -> str:
    """Return a path as text: ``fault[2].what.error``; items are counted from 1."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def misfit(*problems: tuple[KeyPath, str]) -> PydanticCustomError:
    """Return the error that a validator of a model raises for keys that do not fit together.

    Args:
        problems: for each the path, from the model that raises, and the text.
    """
    return PydanticCustomError(_MISFIT, "keys do not fit together", {"problems": list(problems)})


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[DocumentProblem]:
    """Return all problems that a model found in a document.

    Args:
        error: the exception of ``model.model_validate``.
        model: the model of the whole document.
    """
    found: list[DocumentProblem] = []
    for item in error.errors(include_url=False):
        path = tuple(part for part in item["loc"] if not str(part).startswith(_TAG))
        context: dict[str, Any] = item.get("ctx", {})
        if item["type"] == _MISFIT:
            found += [DocumentProblem((*path, *below), text) for below, text in context["problems"]]
        elif item["type"] == "extra_forbidden":
            found.append(DocumentProblem(path, unknown_key(str(path[-1]), _keys(model, path[:-1]))))
        elif item["type"] == "missing":
            found.append(DocumentProblem(path, "is missing"))
        elif item["type"] == "value_error":
            found.append(DocumentProblem(path, str(context["error"])))
        elif item["type"] == "literal_error":
            found.append(DocumentProblem(path, f"{_shown(item['input'])} is not one of {context['expected']}"))
        else:
            found.append(DocumentProblem(path, f"{_shown(item['input'])} is not allowed: {_lowered(item['msg'])}"))
    return found


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}..."


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _keys(model: type[BaseModel], path: KeyPath) -> Sequence[str]:
    """Return the keys of the model at a path."""
    models = [model]
    for part in path:
        if isinstance(part, str):
            models = [inner for each in models for inner in _models_at(each, part)]
    return [field.alias or name for each in models for name, field in each.model_fields.items()]


def _models_at(model: type[BaseModel], key: str) -> Iterator[type[BaseModel]]:
    for name, field in model.model_fields.items():
        if key in (name, field.alias):
            yield from _models_in(field.annotation)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
