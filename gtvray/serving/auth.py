"""The bearer token: from the environment or a file, never from YAML, never in a log."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from gtvray.errors import AuthError, ConfigError, InputError
from gtvray.io import read_text

TOKEN_VARIABLE = "GTVRAY_TOKEN"  # noqa: S105  # the variable's name


def read_token(token_file: Path | None) -> str:
    """The token of a file, or of the environment variable GTVRAY_TOKEN.

    Raises:
        ConfigError: neither holds one.
    """
    if token_file is None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
    else:
        try:
            token = read_text(token_file).strip()
        except InputError as error:
            found = error.fields.get("found", error.what)
            raise ConfigError("the token file cannot be read", where=token_file, found=found) from error
    if not token:
        raise ConfigError(
            "no token: the endpoint is never open to everyone",
            where=token_file or TOKEN_VARIABLE,
            do=f"set {TOKEN_VARIABLE}, or name a file in token_file",
        )
    return token


def check_token(authorization: str | None, token: str) -> None:
    """Hold an Authorization header against the token, in a time that tells nothing about it.

    Raises:
        AuthError: it is missing or another.
    """
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise AuthError("a bearer token is needed", do="send the header Authorization: Bearer <token>")
