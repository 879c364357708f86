"""The calling side of :mod:`siterig.rpc_contract`."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
import trio

from blockfs.errors import RigError
from siterig.rpc_contract import ErrorBody, Method, method_names

T = TypeVar("T")

WAIT_TOLD_S = 5.0
TELL_WAITS: ContextVar[Callable[[str], None] | None] = ContextVar("TELL_WAITS", default=None)
"""Who is told that an answer is waited for, once for each call, after ``WAIT_TOLD_S``; None: nobody."""


class _Proxy:
    """Turns attribute access into remote methods; see :func:`proxy`."""

    def __init__(self, protocol: type, socket: Path, service: str, deadlines: Mapping[str, float]) -> None:
        self._protocol = protocol
        self._deadlines = deadlines
        self._names = method_names(protocol)
        self._methods: dict[str, Method] = {}
        self._socket = socket
        self._service = service
        # A fresh connection for each call: connecting to a Unix socket costs microseconds, and one that is kept
        # could be closed by the server in the moment it is used again.
        limits = httpx.Limits(max_keepalive_connections=0, max_connections=None)
        transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False, limits=limits)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://rig", timeout=None, trust_env=False)  # noqa: S113

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if name not in self._names:
            raise AttributeError(f"{self._service} has no method {name!r}")
        if name not in self._methods:  # made when first called: a command needs one or two of many
            self._methods[name] = Method.of(self._protocol.__name__, getattr(self._protocol, name))
        method = self._methods[name]

        async def remote(**arguments: Any) -> Any:
            return await self._post(method, arguments)

        return remote

    async def _post(self, method: Method, arguments: dict[str, Any]) -> Any:
        body = method.arguments.dump_json(cast(Any, arguments), warnings="error")
        limit_s = self._deadlines.get(method.name, math.inf)
        answer: httpx.Response | httpx.TransportError | None = None
        with trio.move_on_after(limit_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_of_wait)
                try:
                    answer = await self._client.post(f"/{self._service}/{method.name}", content=body)
                except httpx.TransportError as error:
                    answer = error
                nursery.cancel_scope.cancel()
        if answer is None:
            message = f"the {self._role} did not answer within {limit_s:g} s"
            raise RigError("RoleUnavailable", message, recoverable=True)
        if isinstance(answer, httpx.TransportError):
            message = f"the {self._role} does not answer at {self._socket}: {answer or type(answer).__name__}"
            raise RigError("RoleUnavailable", message, recoverable=True) from answer
        if answer.status_code == 200:
            return method.result.validate_json(answer.content)
        failure: ErrorBody = answer.json()["error"]
        raise RigError(failure["code"], failure["message"], recoverable=failure["recoverable"])

    @property
    def _role(self) -> str:
        return self._socket.stem

    async def _tell_of_wait(self) -> None:
        tell = TELL_WAITS.get()
        if tell is not None:
            await trio.sleep(WAIT_TOLD_S)
            tell(f"waiting for the {self._role} ...")


def proxy(protocol: type[T], socket: Path, *, service: str | None = None, deadlines: Mapping[str, float] | None = None) -> T:
    """An object that implements ``protocol`` by calling ``service`` (default: the Protocol's name) on ``socket``.

    A call may take as long as it takes, unless ``deadlines`` has seconds for its method; cancelling it cancels the work at
    the other side.  ``RoleUnavailable`` (recoverable) if nobody listens, the connection is lost or the deadline has passed,
    in which cases the call may or may not have been done.
    """
    return cast(T, _Proxy(protocol, socket, service or protocol.__name__, deadlines or {}))
