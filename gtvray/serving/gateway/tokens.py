"""The file of the clients' tokens.

The file stores only the SHA-256 of each token. Tokens have 256 random bits, so an unsalted hash cannot be reversed by
guessing.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path

from gtvray.errors import ConfigError, InputError
from gtvray.io import is_printable_name, read_json, write_json
from gtvray.io.locks import exclusive_lock

OPERATOR = "operator"
_MOST_NAME = 64


class Role(IntEnum):
    """What a client may do; each role includes those before it."""

    SEGMENT = 1
    JOBS = 2
    ADMIN = 3


@dataclass(frozen=True)
class Token:
    """A client's token, as the file stores it.

    Attributes:
        name: name of the client.
        role: name of a Role, in lower case.
        sha256: SHA-256 of the token.
        created: UTC time of creation, ISO 8601.
        models: names of the models that the client may use; empty permits every model.
    """

    name: str
    role: str
    sha256: str
    created: str
    models: Sequence[str] = ()


class TokenFile:
    """The file of the clients' tokens.

    Args:
        path: path of the file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Token]:
        """Return the tokens.

        Raises:
            ConfigError: the file is not a token file.
        """
        if not self._path.exists():
            return []
        try:
            tokens = [Token(**each) for each in read_json(self._path)["tokens"]]
            for token in tokens:
                Role[token.role.upper()]
                if isinstance(token.models, str):
                    raise TypeError
        except (InputError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                "not a token file",
                where=self._path,
                found=type(error).__name__,
                do="restore the file, or remove it and add the clients again with `gtvray token add`",
            ) from error
        return tokens

    def add(self, name: str, role: Role, models: Sequence[str] = ()) -> str:
        """Create a token for a client and return it; only its SHA-256 is stored.

        Args:
            name: name of the client.
            role: role of the client.
            models: names of the models that it may use; empty permits every model.

        Raises:
            InputError: the client already has a token, or its name is invalid.
        """
        if not 0 < len(name) <= _MOST_NAME or not is_printable_name(name) or name == OPERATOR:
            expected = f"1 to {_MOST_NAME} printable characters, and not {OPERATOR}"
            raise InputError("not a valid name of a client", expected=expected, found=name)
        token, created = secrets.token_urlsafe(32), datetime.now(UTC).isoformat(timespec="seconds")
        with exclusive_lock(self._lock, self._path):
            tokens = self.read()
            if any(each.name == name for each in tokens):
                raise InputError(
                    "this client already has a token", found=name, do=f"revoke it first: gtvray token revoke {name}"
                )
            self._write([*tokens, Token(name, role.name.lower(), digest_of(token), created, list(models))])
        return token

    def revoke(self, name: str) -> None:
        """Remove a client's token.

        Raises:
            InputError: it has none.
        """
        with exclusive_lock(self._lock, self._path):
            tokens = self.read()
            kept = [each for each in tokens if each.name != name]
            if len(kept) == len(tokens):
                raise InputError("this client has no token", found=name, do="`gtvray token list` lists the clients")
            self._write(kept)

    @property
    def _lock(self) -> Path:
        return self._path.with_name(f"{self._path.name}.lock")

    def _write(self, tokens: list[Token]) -> None:
        write_json(self._path, {"tokens": [asdict(each) for each in tokens]})
        self._path.chmod(0o600)


def digest_of(token: str) -> str:
    """SHA-256 of a token."""
    return hashlib.sha256(token.encode()).hexdigest()
