"""Damaged files of trust give one clear error without a secret, or exactly the contents that the format page describes."""

from __future__ import annotations

from tests.fuzz.run import fuzz
from tests.fuzz.trust import trust_damage, trust_targets


def test_damaged_identities_match_the_strict_reader() -> None:
    seen = fuzz(trust_damage.identity, trust_targets.identity, share=0.02)
    assert {"good", "refused by OpenSSL", "BadCertificate"} <= seen.keys()


def test_damaged_registers_of_certificates_match_the_strict_reader() -> None:
    seen = fuzz(trust_damage.register, trust_targets.register, share=0.02)
    assert {"good", "AuthorityUnusable"} <= seen.keys()


def test_damaged_vault_credentials_files_match_the_strict_reader() -> None:
    seen = fuzz(trust_damage.credentials, trust_targets.credentials, share=0.02)
    assert {"good", "BadCredentialsFile"} <= seen.keys()


def test_damaged_files_of_a_users_account_match_the_strict_reader() -> None:
    seen = fuzz(trust_damage.user_account, trust_targets.user_account, share=0.02)
    assert {"good", "BadAccountSecret"} <= seen.keys()
