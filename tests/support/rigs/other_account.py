"""A storage account that is not the rig's: an Azurite of its own, over HTTPS, with keys and an authority of its own."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from azure.storage.blob import (
    AccountSasPermissions,
    ContainerSasPermissions,
    ResourceTypes,
    generate_account_sas,
    generate_container_sas,
)

from siterig.azure_emu.authority.authority import Authority
from siterig.azure_emu.storage.azurite import IDENTITY, AzuriteProcess, start_azurite
from siterig.azure_emu.user_account.secret import parse_secret
from siterig.azure_emu.user_account.stored_account import UserAccount, new_place
from siterig.blockfs.core.clock import SYSTEM_CLOCK


@dataclass(frozen=True)
class OtherAccount:
    """The account, and the secrets that it accepts."""

    azurite: AzuriteProcess
    authority: Path
    """The certificate of its authority, as PEM."""

    @property
    def endpoint(self) -> str:
        """The address of the account."""
        return f"https://127.0.0.1:{self.azurite.port}/{self.azurite.account.name}"

    @property
    def by_key(self) -> str:
        """The connection string with the key."""
        return self.azurite.connection_string

    def by_sas(
        self, permissions: str = "rwdl", *, life_s: float = 3600.0, types: str = "co", protocol: str = "https"
    ) -> str:
        """Return the URL with an account SAS."""
        sas = generate_account_sas(
            self.azurite.account.name,
            self.azurite.account.key,
            ResourceTypes(container="c" in types, object="o" in types),
            AccountSasPermissions(
                **{word: word[0] in permissions for word in ("read", "write", "delete", "list", "create")}
            ),
            datetime.now(UTC) + timedelta(seconds=life_s),
            start=datetime.now(UTC) - timedelta(days=2),
            protocol=protocol,
        )
        return f"{self.endpoint}?{sas}"

    def by_container_sas(self, container: str, permissions: str = "rwdl") -> str:
        """Return the URL with a SAS for a container."""
        sas = generate_container_sas(
            self.azurite.account.name,
            container,
            account_key=self.azurite.account.key,
            permission=ContainerSasPermissions.from_string(permissions),
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )
        return f"{self.endpoint}/{container}?{sas}"

    def place(self, text: str) -> UserAccount:
        """Return a rig's place in the account, by this secret."""
        return new_place(parse_secret(text), self.authority.read_text())


class _Token(NamedTuple):
    token: str
    expires_on: int


class UnsignedCredential:
    """A credential whose tokens Azurite accepts; it stands for DefaultAzureCredential, which needs Entra ID."""

    def __init__(self, audience: str = "https://storage.azure.com") -> None:
        """Name the audience of its tokens."""
        self._audience = audience

    def get_token(self, *_scopes: str, **_options: object) -> _Token:
        """Return a token that is valid for an hour."""
        now = int(datetime.now(UTC).timestamp())
        claims = {
            "aud": self._audience,
            "iss": "https://sts.windows.net/siterig/",
            "iat": now,
            "nbf": now - 60,
            "exp": now + 3600,
        }
        parts = ({"alg": "none", "typ": "JWT"}, claims)
        texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        return _Token(".".join((*texts, "unsigned")), now + 3600)


@asynccontextmanager
async def other_account(folder: Path) -> AsyncIterator[OtherAccount]:
    """Run the account for the duration of the block."""
    authority = Authority(folder / "authority", SYSTEM_CLOCK)
    authority.replace_identity(folder / "keys" / IDENTITY, "storage", "cache")
    certificate = folder / "authority.pem"
    certificate.write_text(authority.certificate)
    azurite = await start_azurite(folder / "azurite", folder / "keys", takes_any_token=True)
    try:
        yield OtherAccount(azurite, certificate)
    finally:
        await azurite.stop()
