"""How any Protocol crosses to another process: HTTP on a Unix socket, by reflection on its type hints.

The Protocol is the contract.  Its keyword-only coroutine methods become ``POST /{service}/{method}`` with a JSON
object of the arguments; their type hints say what is valid and what comes back.  Rights are those of the socket's
folder (0700) and of the socket (0600): whoever may open it may call.

Errors cross unchanged: a :class:`RigError` answers 409 and is raised again at the caller.  A bad request is 400
(``BadRequest``); a bug is 500 (``InternalError``) and its traceback stays in the role's log.

:mod:`siterig.rpc.server` answers, :mod:`siterig.rpc.client` calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, get_type_hints

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from siterig.blockfs.core.errors import Code, RigError

SOCKET_PATH_BYTES_MAX = 107
"""Length of ``sun_path`` without its terminating zero."""


class ErrorBody(TypedDict):
    """``{"error": ...}`` of an answer that is not 200."""

    code: str
    message: str
    recoverable: bool
    role: NotRequired[str | None]
    uncertain: NotRequired[bool]


def error_body(error: RigError) -> ErrorBody:
    """An expected failure as it crosses to the caller; :func:`error_of` reads it."""
    body: ErrorBody = {"code": error.code, "message": error.message, "recoverable": error.recoverable}
    if error.role is not None:
        body |= {"role": error.role}
    if error.uncertain:
        body |= {"uncertain": True}
    return body


def error_of(body: ErrorBody) -> RigError:
    """The failure that a service answered with."""
    return RigError(
        Code.of(body["code"]),
        body["message"],
        recoverable=body["recoverable"],
        role=body.get("role"),
        uncertain=body.get("uncertain", False),
    )


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a Protocol: how its arguments and its result look as JSON."""

    name: str
    allowed: tuple[str, ...]
    arguments: TypeAdapter[dict[str, Any]]
    result: TypeAdapter[Any]

    @classmethod
    def of(cls, service: str, function: Callable[..., object]) -> Method:
        """From the function's signature; ``TypeError`` if an argument could be given by position."""
        hints = get_type_hints(function)
        result = hints.pop("return")
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if name == "self":
                continue
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                raise TypeError(f"{service}.{function.__name__}: parameter {name!r} must be keyword-only")
            optional = parameter.default is not inspect.Parameter.empty
            fields[name] = NotRequired[hints[name]] if optional else hints[name]
        make_typed_dict: Any = TypedDict  # made at run time from the hints, which a type checker cannot follow
        arguments = make_typed_dict(f"{service}_{function.__name__}", fields)
        arguments.__pydantic_config__ = ConfigDict(extra="forbid")
        return cls(function.__name__, tuple(fields), TypeAdapter(arguments), TypeAdapter(result))


def method_names(protocol: type) -> list[str]:
    """The methods of a Protocol that can be called."""
    return [name for name, _ in inspect.getmembers(protocol, inspect.iscoroutinefunction) if not name.startswith("_")]


def methods(protocol: type) -> dict[str, Method]:
    """All methods of a Protocol."""
    return {name: Method.of(protocol.__name__, getattr(protocol, name)) for name in method_names(protocol)}


def check_socket_path(socket: Path) -> None:
    """``RigError('PathTooLong')`` if the kernel could not bind or connect to it."""
    used = len(bytes(socket))
    if used > SOCKET_PATH_BYTES_MAX:
        raise RigError(
            Code.PathTooLong,
            f"socket path {socket} is {used} bytes long; the kernel allows {SOCKET_PATH_BYTES_MAX}: use a shorter --dir",
        )
