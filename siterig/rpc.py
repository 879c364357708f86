"""Calling a service in another process as if it were here: any Protocol over HTTP on a Unix socket.

The Protocol is the contract.  Its keyword-only coroutine methods become ``POST /{service}/{method}`` with a JSON
object of the arguments; their type hints say what is valid and what comes back.  Rights are those of the socket's
folder (0700) and of the socket (0600): whoever may open it may call.

Errors cross unchanged: a :class:`RigError` answers 409 and is raised again at the caller.  A bad request is 400
(``BadRequest``); a bug is 500 (``InternalError``) and its traceback stays in the role's log.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypeVar, cast, get_type_hints

import httpx
import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio import serve as hypercorn_serve
from pydantic import ConfigDict, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import TypedDict

from blockfs.errors import RigError
from siterig.failures import expected

T = TypeVar("T")

SOCKET_PATH_BYTES_MAX = 107
"""Length of ``sun_path`` without its terminating zero."""

_log = structlog.get_logger(__name__)


class ErrorBody(TypedDict):
    """``{"error": ...}`` of an answer that is not 200."""

    code: str
    message: str
    recoverable: bool


@dataclass(frozen=True, slots=True)
class _Method:
    """A method of a Protocol: how its arguments and its result look as JSON."""

    name: str
    allowed: tuple[str, ...]
    arguments: TypeAdapter[dict[str, Any]]
    result: TypeAdapter[Any]

    @classmethod
    def of(cls, service: str, function: Callable[..., object]) -> _Method:
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


def _methods(protocol: type) -> dict[str, _Method]:
    functions = inspect.getmembers(protocol, inspect.iscoroutinefunction)
    return {name: _Method.of(protocol.__name__, function) for name, function in functions if not name.startswith("_")}


def _explain(where: str, method: _Method, error: ValidationError) -> str:
    """One line that names the key, its value and what is allowed."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return f"{where}: unknown argument {key!r}; allowed: {', '.join(method.allowed) or 'none'}"
    if problem["type"] == "missing":
        return f"{where}: argument {key!r} is missing"
    if not key:
        return f"{where}: the body must be a JSON object of arguments: {problem['msg']}"
    return f"{where}: argument {key!r} = {problem['input']!r}: {problem['msg']}"


def _refuse(status: int, code: str, message: str, *, recoverable: bool = False) -> JSONResponse:
    error: ErrorBody = {"code": code, "message": message, "recoverable": recoverable}
    return JSONResponse({"error": error}, status_code=status)


async def _call(where: str, method: _Method, service: object, body: bytes) -> Response:
    try:
        arguments = method.arguments.validate_json(body or b"{}", strict=True)
    except ValidationError as error:
        return _refuse(400, "BadRequest", _explain(where, method, error))
    try:
        result = await getattr(service, method.name)(**arguments)
        return Response(method.result.dump_json(result), media_type="application/json")
    except Exception as error:
        failure = expected(error)
        if failure is None:
            _log.exception("a call failed by a bug", call=where)
            return _refuse(500, "InternalError", f"{where}: {type(error).__name__}; the traceback is in the role's log")
        return _refuse(409, failure.code, failure.message, recoverable=failure.recoverable)


def application(services: Mapping[str, tuple[type, object]]) -> Starlette:
    """The ASGI application that answers for ``services`` (name -> Protocol, implementation)."""
    table = {name: (_methods(protocol), service) for name, (protocol, service) in services.items()}

    async def call(request: Request) -> Response:
        name, wanted = request.path_params["service"], request.path_params["method"]
        where = f"{name}.{wanted}"
        if name not in table:
            return _refuse(404, "BadRequest", f"unknown service {name!r}; here are: {', '.join(table)}")
        methods, service = table[name]
        if wanted not in methods:
            return _refuse(404, "BadRequest", f"unknown method {where!r}; {name} has: {', '.join(methods)}")
        body = await request.body()
        response: Response = Response(status_code=499)

        async def cancel_when_the_client_goes() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_the_client_goes)
            response = await _call(where, methods[wanted], service, body)
            nursery.cancel_scope.cancel()
        return response

    async def health(_: Request) -> Response:
        return JSONResponse({"services": list(table)})

    return Starlette(routes=[Route("/health", health), Route("/{service}/{method}", call, methods=["POST"])])


def check_socket_path(socket: Path) -> None:
    """``RigError('PathTooLong')`` if the kernel could not bind or connect to it."""
    used = len(bytes(socket))
    if used > SOCKET_PATH_BYTES_MAX:
        raise RigError(
            "PathTooLong",
            f"socket path {socket} is {used} bytes long; the kernel allows {SOCKET_PATH_BYTES_MAX}: use a shorter --dir",
        )


def _make_room(socket: Path) -> None:
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket.parent.chmod(0o700)
    _remove(socket)


def _remove(socket: Path) -> None:
    socket.unlink(missing_ok=True)


async def serve(
    services: Mapping[str, tuple[type, object]],
    socket: Path,
    *,
    until: Callable[[], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer calls on ``socket`` until cancelled, or until ``until`` returns (running calls are then finished).

    A socket left there by a killed process is replaced; the caller holds the lock that says nobody else listens.
    """
    check_socket_path(socket)
    _make_room(socket)
    config = Config()
    config.bind = [f"unix:{socket}"]
    config.umask = 0o177
    config.loglevel = "WARNING"

    class Started:
        """hypercorn tells the addresses; ours are known."""

        def started(self, _binds: list[str] | None = None) -> None:
            task_status.started()

    try:
        await hypercorn_serve(
            cast(Any, application(services)), config, shutdown_trigger=until, task_status=cast(Any, Started()), mode="asgi"
        )
    finally:
        _remove(socket)


class _Proxy:
    """Turns attribute access into remote methods; see :func:`proxy`."""

    def __init__(self, protocol: type, socket: Path, service: str) -> None:
        self._methods = _methods(protocol)
        self._socket = socket
        self._service = service
        # A fresh connection for each call: connecting to a Unix socket costs microseconds, and one that is kept
        # could be closed by the server in the moment it is used again.
        limits = httpx.Limits(max_keepalive_connections=0, max_connections=None)
        transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False, limits=limits)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://rig", timeout=None, trust_env=False)  # noqa: S113

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = self._methods.get(name)
        if method is None:
            raise AttributeError(f"{self._service} has no method {name!r}")

        async def remote(**arguments: Any) -> Any:
            return await self._post(method, arguments)

        return remote

    async def _post(self, method: _Method, arguments: dict[str, Any]) -> Any:
        body = method.arguments.dump_json(cast(Any, arguments), warnings="error")
        try:
            answer = await self._client.post(f"/{self._service}/{method.name}", content=body)
        except httpx.TransportError as error:
            raise RigError(
                "RoleUnavailable",
                f"{self._service}.{method.name}: nobody answers at {self._socket}: {error or type(error).__name__}",
                recoverable=True,
            ) from error
        if answer.status_code == 200:
            return method.result.validate_json(answer.content)
        failure: ErrorBody = answer.json()["error"]
        raise RigError(failure["code"], failure["message"], recoverable=failure["recoverable"])


def proxy(protocol: type[T], socket: Path, *, service: str | None = None) -> T:
    """An object that implements ``protocol`` by calling ``service`` (default: the Protocol's name) on ``socket``.

    A call may take as long as it takes; cancelling it cancels the work at the other side.  ``RoleUnavailable``
    (recoverable) if nobody listens or the connection is lost, in which case the call may or may not have been done.
    """
    return cast(T, _Proxy(protocol, socket, service or protocol.__name__))
