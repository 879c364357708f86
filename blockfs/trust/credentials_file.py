"""The vault credentials file: with it every host of one site can be registered with the vault, for five days.

It holds a certificate with its private key, so it has mode 0600, and who has the file can register hosts.
"""

from __future__ import annotations

import json
from typing import Any

from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.trust.identity import IDENTITY_BYTES_MAX, check_identity
from siterig.blockfs.trust.peer import NAME_PATTERN, Peer

FORMAT = 1
KIND = "siterig vault credentials"
SUFFIX = ".VaultCredentials"
"""The end of the name, as the service has it."""
CREDENTIALS_BYTES_MAX = 2 * IDENTITY_BYTES_MAX
_KEYS = {"format", "kind", "site", "expires", "identity"}


def credentials_text(peer: Peer, identity: bytes) -> bytes:
    """Return the bytes of a file.

    Args:
        peer: the holder of the certificate; its name is the site.
        identity: the bytes of an identity file.
    """
    fields = {
        "format": FORMAT,
        "kind": KIND,
        "site": peer.name,
        "expires": rfc3339(peer.not_after_ns),
        "identity": identity.decode("ascii"),
    }
    return json.dumps(fields, indent=2).encode() + b"\n"


def read_credentials(text: str, what: str) -> tuple[str, bytes]:
    """Return the site and the bytes of the identity in a file.

    Args:
        text: the contents of the file.
        what: the file, for messages.

    Raises:
        RigError: ``BadCredentialsFile``.
    """
    if len(text) > CREDENTIALS_BYTES_MAX:
        raise _bad(what, f"it has more than {CREDENTIALS_BYTES_MAX} characters")
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise _bad(what, "it is not JSON") from None
    if not isinstance(fields, dict) or set(fields) != _KEYS or fields["kind"] != KIND:
        raise _bad(what, f"it must be an object with the keys {', '.join(sorted(_KEYS))}, and kind {KIND!r}")
    if type(fields["format"]) is not int or fields["format"] != FORMAT:
        raise _bad(what, f"format: {fields['format']!r:.50}; allowed: {FORMAT}")
    site, identity = fields["site"], fields["identity"]
    if not isinstance(site, str) or not NAME_PATTERN.fullmatch(site):
        raise _bad(what, f"site: {site!r:.80} is no name of a site")
    if not isinstance(fields["expires"], str):
        raise _bad(what, "expires: it is no text")
    if not isinstance(identity, str) or not identity.isascii():
        raise _bad(what, "identity: it is no text in ASCII")
    try:
        check_identity(identity.encode("ascii"))
    except ValueError as error:
        raise _bad(what, f"identity: {error}") from None
    return site, identity.encode("ascii")


def _bad(what: str, why: str) -> RigError:
    return RigError(Code.BadCredentialsFile, f"{what} is no vault credentials file: {why}")
