"""The server of :mod:`siterig.rpc.contract`: it answers calls on a Unix socket."""

from __future__ import annotations

import os
import socket as stdlib_socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio import serve as hypercorn_serve
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.printable import valid_unicode
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.json_text import json_text
from siterig.core.failures import unwrap_rig_error
from siterig.rpc.connections import contain_errors
from siterig.rpc.contract import (
    CALL_HEADER,
    CALLS_PATH,
    ErrorBody,
    Method,
    check_socket_path,
    error_body,
    method_names,
    methods,
)

T = TypeVar("T")

REQUEST_BYTES_MAX = 16 << 20
"""The longest request is a report of damage or tags, of some hundred kilobytes."""
KEPT_S = 3600
"""A connection without a call is kept for so long, longer than any client uses it."""

_log = structlog.get_logger(__name__)
contain_errors()


def _explain(where: str, method: Method, error: ValidationError) -> str:
    """Return one line that names the key, its value and the allowed values."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return f"{where}: unknown argument {key!r}; allowed: {', '.join(method.allowed) or 'none'}"
    if problem["type"] == "missing":
        return f"{where}: argument {key!r} is missing"
    if not key:
        return f"{where}: the body must be a JSON object of arguments: {problem['msg']}"
    return f"{where}: argument {key!r} = {problem['input']!r}: {problem['msg']}"


def refusal(error: RigError) -> Response:
    """Return the answer to a caller who may not call: status 403, with the reason."""
    return _answer(403, error_body(error))


def _refuse(status: int, code: Code, message: str) -> JSONResponse:
    return _answer(status, error_body(RigError(code, message)))


def _answer(status: int, error: ErrorBody) -> JSONResponse:
    # The message may have a file name with bytes that UTF-8 cannot carry.
    error["message"] = valid_unicode(error["message"])
    return JSONResponse({"error": error}, status_code=status)


async def _body(request: Request) -> bytes:
    """Return the whole body of the request.

    Raises:
        RigError: ``BadRequest`` as soon as it is longer than the body of any caller.
    """
    body = bytearray()
    async with aclosing(request.stream()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > REQUEST_BYTES_MAX:
                raise RigError(Code.BadRequest, f"the body is longer than {REQUEST_BYTES_MAX} bytes")
    return bytes(body)


def _result(method: Method, result: object) -> bytes | str:
    """Return a result as JSON; bytes of a text that are not UTF-8 are escaped."""
    try:
        return method.result.dump_json(result)
    except PydanticSerializationError:
        return json_text(method.result.dump_python(result))


async def _call(where: str, method: Method, service: object, body: bytes) -> Response:
    try:
        arguments = method.arguments.validate_json(body or b"{}", strict=True)
    except ValidationError as error:
        return _refuse(400, Code.BadRequest, _explain(where, method, error))
    try:
        result = await getattr(service, method.name)(**arguments)
        return Response(_result(method, result), media_type="application/json")
    except Exception as error:
        failure = unwrap_rig_error(error)
        if failure is None:
            _log.exception("call_crashed", call=where)
            return _refuse(
                500,
                Code.InternalError,
                f"call {method.name}: a bug: {type(error).__name__}; the traceback is in the log of the role",
            )
        return _answer(409, error_body(failure))


def joined(protocol: type[T], parts: Collection[object]) -> T:
    """Return an object that implements a Protocol by the methods of several objects.

    Each of them implements a base of the Protocol, so that the type checker sees its methods.

    Raises:
        TypeError: a method of the Protocol is in none of the objects, or in more than one.
    """
    owners = {name: [part for part in parts if hasattr(part, name)] for name in method_names(protocol)}
    wrong = [f"{name} in {len(found)} of them" for name, found in owners.items() if len(found) != 1]
    if wrong:
        raise TypeError(f"each method of {protocol.__name__} must be in one object: {', '.join(wrong)}")
    return cast(T, SimpleNamespace(**{name: getattr(owner, name) for name, (owner,) in owners.items()}))


def application(services: Mapping[str, tuple[type, object]]) -> Starlette:
    """Return the ASGI application that answers for ``services`` (name -> Protocol, implementation)."""
    running: set[str] = set()
    table = {name: (methods(protocol), service) for name, (protocol, service) in services.items()}

    async def call(request: Request) -> Response:
        name, method_name = request.path_params["service"], request.path_params["method"]
        where = f"{name}.{method_name}"
        if name not in table:
            return _refuse(404, Code.BadRequest, f"unknown service {name!r}; here are: {', '.join(table)}")
        known, service = table[name]
        if method_name not in known:
            return _refuse(404, Code.BadRequest, f"unknown method {where!r}; {name} has: {', '.join(known)}")
        response: Response = Response(status_code=499)
        try:
            body = await _body(request)
        except RigError as error:
            return _refuse(413, error.code, f"{where}: {error.message}")
        except ClientDisconnect:  # the caller was killed: nothing was begun, and no process waits for an answer
            return response

        async def cancel_on_disconnect() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        call_name = request.headers.get(CALL_HEADER)
        if call_name is not None:
            running.add(call_name)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_on_disconnect)
                response = await _call(where, known[method_name], service, body)
                nursery.cancel_scope.cancel()
        finally:
            running.discard(call_name or "")
        return response

    async def is_running(request: Request) -> Response:
        return JSONResponse({"is_running": (await request.body()).decode(errors="replace") in running})

    async def health(_: Request) -> Response:
        return JSONResponse({"services": list(table)})

    return Starlette(
        routes=[
            Route("/health", health),
            Route(CALLS_PATH, is_running, methods=["POST"]),
            Route("/{service}/{method}", call, methods=["POST"]),
        ]
    )


def _make_room(socket: Path) -> None:
    safe_files.make_folder(socket.parent, parents=True)
    socket.parent.chmod(0o700)
    _remove(socket)


def _remove(socket: Path) -> None:
    socket.unlink(missing_ok=True)


async def serve(
    services: Mapping[str, tuple[type, object]],
    socket: Path,
    *,
    until: Callable[[], Awaitable[None]] | None = None,
    listener: stdlib_socket.socket | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer calls on ``socket`` until cancelled, or until ``until`` returns; running calls then finish.

    A socket that a killed process left is replaced.  The caller holds the lock of the rig, so no other process listens.

    Args:
        services: Protocol and implementation by name.
        socket: the path of the socket.
        until: returns when the server has to end.
        listener: a socket that listens on this path already; it stays open, and the path stays.
        task_status: gets the start, when calls are answered.
    """
    config = Config()
    if listener is None:
        check_socket_path(socket)
        _make_room(socket)
        config.bind = [f"unix:{socket}"]
    else:
        config.bind = [f"fd://{os.dup(listener.fileno())}"]
    config.umask = 0o177
    config.keep_alive_timeout = KEPT_S
    try:
        await run_application(application(services), config, until=until, task_status=task_status)
    finally:
        if listener is None:
            _remove(socket)


async def run_application(
    app: ASGIApp,
    config: Config,
    *,
    until: Callable[[], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run an ASGI application until cancelled, or until ``until`` returns; ``task_status`` gets the start."""
    config.loglevel = "WARNING"

    class Started:
        """The receiver of the addresses that hypercorn reports; ours are known."""

        def started(self, _binds: list[str] | None = None) -> None:
            task_status.started()

    await hypercorn_serve(cast(Any, app), config, shutdown_trigger=until, task_status=cast(Any, Started()), mode="asgi")
