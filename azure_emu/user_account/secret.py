"""The text by which a user names a storage account, with the secret in it: parsed here, and never quoted in a message.

Three forms are allowed, each on one line:

- a connection string: ``AccountName=...;AccountKey=...``, or ``BlobEndpoint=...;SharedAccessSignature=...``;
- a SAS URL: ``https://ACCOUNT.blob.core.windows.net[/CONTAINER]?sv=...&sig=...``;
- a URL without a query: the account is used with DefaultAzureCredential of the package azure-identity.

Source: Azure Storage, "Configure connection strings", "Create an account SAS", "Create a service SAS" (Microsoft Learn).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, urlsplit

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.documents.nearest import hint

SecretKind = Literal["key", "sas", "credential"]
"""The ways to prove oneself to an account: its key, a shared access signature, or a token of DefaultAzureCredential."""
TEXT_CHARACTERS_MAX = 8192
ACCOUNT_PATTERN = re.compile(r"[a-z0-9]{3,24}")
CONTAINER_PATTERN = re.compile(r"(?=.{3,63}$)[a-z0-9]+(?:-[a-z0-9]+)*")
KEY_PATTERN = re.compile(r"[A-Za-z0-9+/]{32,}={0,2}")
ALLOWED = "a connection string, a SAS URL, or the URL of the account (for DefaultAzureCredential)"
_IN_STRING = (
    "DefaultEndpointsProtocol",
    "AccountName",
    "AccountKey",
    "BlobEndpoint",
    "EndpointSuffix",
    "SharedAccessSignature",
)
_IGNORED_IN_STRING = (
    "BlobSecondaryEndpoint",
    "QueueEndpoint",
    "QueueSecondaryEndpoint",
    "TableEndpoint",
    "TableSecondaryEndpoint",
    "FileEndpoint",
    "FileSecondaryEndpoint",
)
_SUFFIX = "core.windows.net"
_DATE_FORMATS = ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%MZ", "%Y-%m-%d", "%Y-%m-%dT%H:%M:%S.%fZ")
_PERMISSIONS = {"r": "read", "w": "write", "d": "delete", "l": "list"}
"""The permissions that replication needs.  ``write`` includes create; append blobs (add) are not used."""


@dataclass(frozen=True, slots=True)
class AccountSecret:
    """A storage account with the secret with which the rig uses it; ``repr`` does not show the secret.

    Attributes:
        kind: the way in which the rig proves itself.
        account: the name of the account.
        endpoint: the address of its blob service, without a slash at the end.
        container: the container that the text names; empty if it names none.
        secret: the key, or the SAS without its question mark; empty with a credential.
    """

    kind: SecretKind
    account: str
    endpoint: str
    container: str
    secret: str = field(repr=False)

    @property
    def connection_string(self) -> str:
        """The connection string for the Azure SDK; it holds the secret, so it must not be logged."""
        secret = {"key": f"AccountKey={self.secret};", "sas": f"SharedAccessSignature={self.secret};", "credential": ""}
        return f"AccountName={self.account};BlobEndpoint={self.endpoint};{secret[self.kind]}"

    @property
    def is_https(self) -> bool:
        """True if the account speaks HTTPS; otherwise it is on loopback."""
        return self.endpoint.startswith("https:")

    @property
    def words(self) -> str:
        """The secret in words."""
        return {"key": "the account key", "sas": "the SAS", "credential": "the credential"}[self.kind]

    @property
    def sas(self) -> Mapping[str, str]:
        """The fields of the SAS; empty if the secret is none."""
        return dict(parse_qsl(self.secret, keep_blank_values=True)) if self.kind == "sas" else {}

    @property
    def expiry_ns(self) -> int | None:
        """The time at which the SAS expires, in nanoseconds since the epoch; None if it does not tell."""
        return _time_ns(self.sas["se"], "se") if "se" in self.sas else None

    def is_expired(self, now_ns: int) -> bool:
        """Return True if the SAS has expired."""
        return self.expiry_ns is not None and self.expiry_ns <= now_ns

    @property
    def can_create_container(self) -> bool:
        """False if the secret is a SAS that covers no containers but the one that it is for."""
        return self.kind != "sas" or "c" in self.sas.get("srt", "")

    def missing_permissions(self) -> list[str]:
        """Return the needed permissions that the SAS lacks, in words; those of a stored access policy are unknown."""
        fields = self.sas
        if not fields or "sp" not in fields:
            return []
        return [name for letter, name in _PERMISSIONS.items() if letter not in fields["sp"]]

    def is_same_place(self, other: AccountSecret) -> bool:
        """Return True if another secret is for the same account."""
        return (self.account, self.endpoint) == (other.account, other.endpoint)


def parse_secret(text: str, container: str = "") -> AccountSecret:
    """Parse the text of a user.

    Args:
        text: one of the three forms.
        container: the container that the user names in addition; empty if none.

    Raises:
        RigError: ``BadAccountSecret`` names the part that is wrong; ``HttpsRequired`` for plain HTTP to another host.  No
            message quotes a secret.
    """
    text = text.strip()
    if not text:
        raise bad(f"is empty; allowed: {ALLOWED}")
    if len(text) > TEXT_CHARACTERS_MAX:
        raise bad(f"has {len(text)} characters; allowed: at most {TEXT_CHARACTERS_MAX}")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise bad(f"has a space, a line break, or a character outside ASCII; allowed: one line with {ALLOWED}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        found = _parse_url(text)
    elif "=" in text:
        found = _parse_string(text)
    else:
        raise bad(f"is not recognized; allowed: {ALLOWED}")
    if container:
        check_container(container)
        if found.container not in ("", container):
            raise bad(
                f"names the container {found.container!r}, and --account-container {container!r}; allowed: one of them"
            )
        found = replace(found, container=container)
    if found.kind == "sas":
        _check_sas(found)
    return found


def bad(problem: str) -> RigError:
    """Return the error of a text that names no account."""
    return RigError(Code.BadAccountSecret, f"the secret of the storage account {problem}")


def _parse_string(text: str) -> AccountSecret:
    fields: dict[str, str] = {}
    known = {name.lower(): name for name in (*_IN_STRING, *_IGNORED_IN_STRING)}
    for number, part in enumerate(filter(None, text.split(";")), 1):
        key, mark, value = part.partition("=")
        name = known.get(key.lower())
        if not mark:
            raise bad(f"has no = in part {number} of the connection string; allowed: KEY=VALUE;KEY=VALUE")
        if name is None:
            shown = f"{key!r}{hint(key, known.values())}" if re.fullmatch(r"[A-Za-z]{1,40}", key) else f"of part {number}"
            raise bad(f"has the unknown key {shown} in the connection string; allowed: {', '.join(_IN_STRING)}")
        if name in fields:
            raise bad(f"has {name} twice in the connection string")
        if not value:
            raise bad(f"has no value of {name} in the connection string")
        fields[name] = value
    key, sas = fields.get("AccountKey", ""), fields.get("SharedAccessSignature", "").removeprefix("?")
    if bool(key) == bool(sas):
        which = "both" if key else "neither"
        raise bad(f"has {which} of AccountKey and SharedAccessSignature in the connection string; allowed: one of them")
    if key and not KEY_PATTERN.fullmatch(key):
        raise bad("has an AccountKey that is not Base64 of an account key")
    name = fields.get("AccountName", "")
    if key and not name:
        raise bad("has no AccountName in the connection string; it is needed with AccountKey")
    endpoint = _endpoint_of(fields)
    address, account, container = _place(endpoint, "BlobEndpoint", name)
    if container:
        raise bad("has a BlobEndpoint with a container; allowed: the address of the account, and --account-container NAME")
    return AccountSecret("key" if key else "sas", account, address, "", key or sas)


def _endpoint_of(fields: Mapping[str, str]) -> str:
    if "BlobEndpoint" in fields:
        return fields["BlobEndpoint"]
    if "AccountName" not in fields:
        raise bad("has neither BlobEndpoint nor AccountName in the connection string; allowed: one of them")
    protocol = fields.get("DefaultEndpointsProtocol", "https")
    return f"{protocol}://{fields['AccountName']}.blob.{fields.get('EndpointSuffix', _SUFFIX)}"


def _parse_url(text: str) -> AccountSecret:
    address, _, query = text.partition("?")
    endpoint, account, container = _place(address, "the URL", "")
    if not query:
        if not endpoint.startswith("https:"):
            raise RigError(Code.HttpsRequired, "tokens of DefaultAzureCredential are sent by HTTPS only: name https://...")
        return AccountSecret("credential", account, endpoint, container, "")
    return AccountSecret("sas", account, endpoint, container, query)


def _place(address: str, what: str, account: str) -> tuple[str, str, str]:
    """Return the endpoint, the name of the account, and the container of an address."""
    try:
        found = urlsplit(address)
        host, port = found.hostname or "", found.port
    except ValueError:
        raise bad(f"has no valid address in {what}; allowed: https://HOST[:PORT][/PATH]") from None
    if found.scheme not in ("http", "https"):
        raise bad(f"has the protocol {found.scheme!r} in {what}; allowed: https, and http on loopback")
    if not re.fullmatch(r"[A-Za-z0-9.-]+|[0-9a-f:.]+", host) or port == 0:
        raise bad(f"has no valid host or port in {what}; allowed: https://HOST[:PORT][/PATH]")
    if found.username is not None or found.query or found.fragment:
        raise bad(f"has a user, a query or a fragment in {what}; allowed: https://HOST[:PORT][/PATH]")
    if found.scheme == "http" and not is_loopback(host):
        text = f"plain HTTP to {host} would show the data and the secret: name https://; http is allowed on loopback only"
        raise RigError(Code.HttpsRequired, text)
    parts = [part for part in found.path.split("/") if part]
    name, path = account or host.partition(".")[0], ""
    if _has_account_in_path(host):
        if not parts or account not in ("", parts[0]):
            raise bad(f"has no account as the first name of the path in {what}; allowed: {found.scheme}://{host}/ACCOUNT")
        name = parts.pop(0)
        path = f"/{name}"
    if not ACCOUNT_PATTERN.fullmatch(name):
        raise bad(f"has no valid name of an account in {what}; allowed: 3 to 24 lower-case letters and digits")
    if len(parts) > 1:
        raise bad(f"has a path with {len(parts)} names after the account in {what}; allowed: at most the container")
    container = parts[0] if parts else ""
    if container:
        check_container(container)
    return f"{found.scheme}://{_authority(found)}{path}", name, container


def _authority(address: SplitResult) -> str:
    host = address.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return host if address.port is None else f"{host}:{address.port}"


def _has_account_in_path(host: str) -> bool:
    """Return True for addresses whose first name of the path is the account, as an emulator has them."""
    try:
        ip_address(host)
    except ValueError:
        return "." not in host
    return True


def is_loopback(host: str) -> bool:
    """Return True for a host name or an address of this host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def check_container(name: str) -> None:
    """Check the name of a container.

    Raises:
        RigError: ``BadAccountSecret``.
    """
    if not CONTAINER_PATTERN.fullmatch(name):
        allowed = "3 to 63 lower-case letters, digits and single hyphens between them"
        shown = repr(name) if len(name) <= 80 and name.isprintable() else f"a name of {len(name)} characters"
        raise RigError(Code.BadAccountSecret, f"the container {shown} of the storage account: allowed: {allowed}")


def _check_sas(secret: AccountSecret) -> None:
    pairs = parse_qsl(secret.secret, keep_blank_values=True)
    fields = dict(pairs)
    if len(fields) != len(pairs) or ";" in secret.secret:
        raise bad("has a field twice, or a semicolon, in the SAS")
    missing = [name for name in ("sv", "sig") if not fields.get(name)]
    if missing:
        raise bad(f"has no {' and no '.join(missing)} in the SAS: copy the whole SAS")
    if "si" not in fields and not {"se", "sp"} <= set(fields):
        raise bad("has neither se and sp, nor the stored access policy si, in the SAS: copy the whole SAS")
    for name in ("st", "se", "ske", "skt"):
        if name in fields:
            _time_ns(fields[name], name)
    if "ss" in fields or "srt" in fields:
        if "b" not in fields.get("ss", ""):
            raise bad("is a SAS without the blob service: create it with ss=b")
        if not {"c", "o"} <= set(fields.get("srt", "")):
            raise bad("is a SAS without the resource types container and object: create it with srt=co")
        return
    if fields.get("sr") != "c":
        kinds = {"b": "one blob", "bs": "one snapshot", "bv": "one version", "d": "one folder"}
        kind = kinds.get(fields.get("sr", ""), "an unknown resource")
        raise bad(f"is a SAS for {kind} (sr); allowed: for an account (ss=b, srt=co) or for a container (sr=c)")
    if not secret.container:
        raise bad(
            "is a SAS for a container that is not named; allowed: https://HOST/CONTAINER?SAS, or --account-container NAME"
        )


def _time_ns(text: str, name: str) -> int:
    for pattern in _DATE_FORMATS:
        try:
            found = datetime.strptime(text, pattern).replace(tzinfo=UTC)
        except ValueError:
            continue
        return int(found.timestamp()) * 1_000_000_000
    raise bad(f"has no valid time in {name} of the SAS; allowed: YYYY-MM-DDTHH:MM:SSZ")
