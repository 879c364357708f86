"""The calling side of :mod:`siterig.rpc_contract`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx

from blockfs.errors import RigError
from siterig.rpc_contract import ErrorBody, Method, method_names

T = TypeVar("T")


class _Proxy:
    """Turns attribute access into remote methods; see :func:`proxy`."""

    def __init__(self, protocol: type, socket: Path, service: str) -> None:
        self._protocol = protocol
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
