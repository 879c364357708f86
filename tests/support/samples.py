"""Values of any wire type with nothing left out, and services that answer with them."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

from pydantic import BaseModel


def sample(kind: Any, name: str = "") -> Any:
    """Return a value of a type: one element in each list, no None where a value is allowed, a job that has ended well."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        result = sample(arguments[0], name)
    elif origin is Literal:
        result = next((value for value in ("Succeeded", "ready") if value in arguments), arguments[0])
    elif origin in (typing.Union, types.UnionType):
        result = sample(next(each for each in arguments if each is not type(None)), name)
    elif origin is list:
        result = [sample(arguments[0], name)]
    elif origin is tuple:
        result = tuple(sample(each, name) for each in arguments if each is not Ellipsis)
    elif origin is dict:
        result = {"read": sample(arguments[1], name)}
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        hints = typing.get_type_hints(kind, include_extras=True)
        result = kind.model_construct(**{field: sample(hints[field], field) for field in kind.model_fields})
    else:
        result = {str: f"a {name}", int: 1, float: 1.5, bool: True, bytes: b"x", type(None): None}[kind]
    return result


class Canned:
    """Answers every method of a Protocol with a sample; ``answers`` replaces some of them."""

    def __init__(self, protocol: type, answers: dict[str, Any] | None = None) -> None:
        self._protocol = protocol
        self._answers = answers or {}

    def __getattr__(self, name: str) -> Any:
        hints = typing.get_type_hints(getattr(self._protocol, name), include_extras=True)

        async def call(**_arguments: Any) -> Any:
            return self._answers[name] if name in self._answers else sample(hints["return"], name)

        return call
