"""The way of the blob SDK's requests to the account: directly, or through the proxy of a link while a fault rule is armed.

The proxy listens on a Unix socket in a folder that only this user can open, so no other program can take its place.
Requests keep their URL and headers, so signatures stay valid.

Fault contract: the socket appears and vanishes at any time.  Each request uses the way that is there when it begins; kept
connections of another way are closed, not used.  A socket that refuses connections was left by a killed process, or does
not listen yet, and the request goes to the account directly; that connection is not kept, so the proxy of the next process
has all requests.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import requests
from azure.core.pipeline.transport import HttpRequest, HttpResponse, RequestsTransport
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Retry
from urllib3.connection import HTTPConnection, HTTPSConnection

_Way = tuple[int, ...] | None
"""Device, inode and time of change of the socket of a link; None without one.  A file system gives the number of an inode
that was removed to the next file."""
_REFUSED: _Way = ()
"""The way past a socket that refuses connections; it differs from all others."""


class LinkTransport(RequestsTransport):  # type: ignore[misc]
    """Sends requests over HTTP, or over HTTPS with the settings that it is given; other HTTPS goes directly."""

    def __init__(
        self,
        link: Path | None,
        tls: ssl.SSLContext | None = None,
        link_tls: ssl.SSLContext | None = None,
        **options: Any,
    ) -> None:
        """Begin without a connection.

        Args:
            link: the socket of the link's proxy; it need not exist.
            tls: settings for an account whose certificate is not of an authority that the system trusts.
            link_tls: settings for the proxy, which has a certificate of the rig, if they are others; they check its holder.
            options: the options of ``RequestsTransport``.
        """
        super().__init__(**options)
        self._link, self._tls, self._link_tls = link, tls, link_tls
        self._way: _Way = None
        self._changing = threading.Lock()

    def _init_session(self, session: requests.Session) -> None:
        super()._init_session(session)
        session.mount("http://", _LinkAdapter(self._link, self._was_refused))
        if self._tls is not None:
            session.mount("https://", _LinkAdapter(self._link, self._was_refused, self._tls, self._link_tls))

    def send(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
        """Send a request by the way that is there now, and return the answer."""
        self.open()
        self._follow_way()
        return cast(HttpResponse, super().send(request, *args, **options))

    def _follow_way(self) -> None:
        """Close kept connections if the way has changed; those in use end with their request."""
        way = _way(self._link)
        if way == self._way:
            return
        with self._changing:
            if way != self._way and self.session is not None:
                for adapter in self.session.adapters.values():
                    adapter.close()
                self._way = way

    def _was_refused(self) -> None:
        with self._changing:
            self._way = _REFUSED


def _way(link: Path | None) -> _Way:
    if link is None:
        return None
    try:
        found = os.lstat(link)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


class _LinkAdapter(HTTPAdapter):
    """Connects by the link; it never repeats a request."""

    def __init__(
        self,
        link: Path | None,
        was_refused: Callable[[], None],
        tls: ssl.SSLContext | None = None,
        link_tls: ssl.SSLContext | None = None,
    ) -> None:
        self._link, self._was_refused, self._tls, self._link_tls = link, was_refused, tls, link_tls
        super().__init__(max_retries=Retry(total=False, redirect=False, raise_on_status=False))

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        if self._tls is not None:
            options["ssl_context"] = self._tls
        super().init_poolmanager(*args, **options)
        link, was_refused, tls, link_tls = self._link, self._was_refused, self._tls, self._link_tls

        class Connection(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return _connected(link, self.timeout, was_refused) or super()._new_conn()

        class SecureConnection(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                linked = _connected(link, self.timeout, was_refused)
                if link_tls is not None:  # urllib3 reads these after this call, for every connection
                    self.ssl_context = tls if linked is None else link_tls
                    self.assert_hostname = None if linked is None else False
                return linked or super()._new_conn()

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = SecureConnection

        self.poolmanager.pool_classes_by_scheme = {"http": Pool, "https": SecurePool}

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Return the connections through a proxy of the environment, with the settings of TLS."""
        if self._tls is not None:
            options["ssl_context"] = self._tls
        return super().proxy_manager_for(proxy, **options)

    def cert_verify(self, conn: Any, url: str, verify: bool | str, cert: Any) -> None:
        """Trust the authority of the settings alone, and none of those that the system or requests brings."""
        if self._tls is None:
            super().cert_verify(conn, url, verify, cert)


def _connected(link: Path | None, timeout: object, was_refused: Callable[[], None]) -> socket.socket | None:
    """Return a connection to the proxy; None if there is none, and ``was_refused`` is called if only its socket is there."""
    if link is None or not os.path.lexists(link):
        return None
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.settimeout(timeout if isinstance(timeout, int | float) else None)
        stream.connect(str(link))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        stream.close()
        if isinstance(error, ConnectionRefusedError):
            was_refused()
        return None
    except BaseException:
        stream.close()
        raise
    return stream
