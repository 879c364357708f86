"""The contract of calls between processes: HTTP on a Unix socket, made from the type hints of a Protocol.

The keyword-only coroutine methods of the Protocol become ``POST /{service}/{method}`` with a JSON object of the arguments.
The type hints define which arguments and results are valid.  The folder of the socket (0700) and the socket (0600) protect
it: every process that can open it can call.

Errors cross unchanged: a :class:`RigError` is answered with status 409 and raised again at the caller.  A bad request is
answered with 400 (``BadRequest``), and a bug with 500 (``InternalError``); the traceback stays in the role's log.

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

from siterig.blockfs.core.deadlines import deadline_s
from siterig.blockfs.core.errors import Code, RigError

CALL_HEADER = "x-siterig-call"
"""The header with the name of a call that its caller may ask for."""
CALLS_PATH = "/calls"
"""``POST`` with the name of a call: the answer says whether the server works on it."""
SOCKET_PATH_BYTES_MAX = 107
"""Length of ``sun_path`` without its terminating zero."""


class ErrorBody(TypedDict):
    """The value of ``error`` in the JSON of an answer whose status is not 200."""

    code: str
    message: str
    recoverable: bool
    role: NotRequired[str | None]
    uncertain: NotRequired[bool]


def error_body(error: RigError) -> ErrorBody:
    """Return an expected failure in the form that crosses to the caller; :func:`error_of` reads it."""
    body: ErrorBody = {"code": error.code, "message": error.message, "recoverable": error.recoverable}
    if error.role is not None:
        body |= {"role": error.role}
    if error.uncertain:
        body |= {"uncertain": True}
    return body


def error_of(body: ErrorBody) -> RigError:
    """Return the failure that a service answered with."""
    return RigError(
        Code.of(body["code"]),
        body["message"],
        recoverable=body["recoverable"],
        role=body.get("role"),
        uncertain=body.get("uncertain", False),
    )


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a Protocol: the JSON form of its arguments and its result, and its deadline in seconds."""

    name: str
    allowed: tuple[str, ...]
    arguments: TypeAdapter[dict[str, Any]]
    result: TypeAdapter[Any]
    deadline_s: float

    @classmethod
    def of(cls, service: str, function: Callable[..., object]) -> Method:
        """Read the signature of a function.

        Raises:
            TypeError: an argument could be given by position.
        """
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
        return cls(function.__name__, tuple(fields), TypeAdapter(arguments), TypeAdapter(result), deadline_s(function))


def method_names(protocol: type) -> list[str]:
    """Return the names of the methods of a Protocol that can be called."""
    return [name for name, _ in inspect.getmembers(protocol, inspect.iscoroutinefunction) if not name.startswith("_")]


def methods(protocol: type) -> dict[str, Method]:
    """Return all methods of a Protocol by name."""
    return {name: Method.of(protocol.__name__, getattr(protocol, name)) for name in method_names(protocol)}


def check_socket_path(socket: Path) -> None:
    """Check that the kernel can bind and connect to a socket of this path.

    Raises:
        RigError: ``PathTooLong``.
    """
    used = len(bytes(socket))
    if used > SOCKET_PATH_BYTES_MAX:
        raise RigError(
            Code.PathTooLong,
            f"socket path {socket} is {used} bytes long; the kernel allows {SOCKET_PATH_BYTES_MAX}: use a shorter --dir",
        )
