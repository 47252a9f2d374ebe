"""Authentication, authorization and rate limits of clients."""

from __future__ import annotations

import hmac
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gtvray.errors import AuthError, ClientLimitError, ConfigError, ForbiddenError
from gtvray.serving.gateway.tokens import OPERATOR, Role, TokenFile, digest_of
from gtvray.serving.request_log import log_event

_MINUTE_S = 60.0
# Minimum interval between checks of the token file for changes, since every request needs it.
_LOOK_S = 0.5


@contextmanager
def counted(counts: Counter[str], name: str) -> Iterator[None]:
    """Count a client's request within a `with` block; a name without requests takes no memory."""
    counts[name] += 1
    try:
        yield
    finally:
        counts[name] -= 1
        if not counts[name]:
            del counts[name]


@dataclass(frozen=True)
class Client:
    """An authenticated client.

    Attributes:
        name: name of the client.
        role: role, which determines the permitted requests.
        models: names of the models that it may use; empty permits every model.
    """

    name: str
    role: Role
    models: tuple[str, ...] = ()

    def require_model(self, name: str) -> None:
        """Check that the client may use a model.

        Raises:
            ForbiddenError: it may not.
        """
        if self.models and name not in self.models:
            raise ForbiddenError(
                "the token does not permit this model",
                expected=", ".join(self.models),
                found=name,
                do="select one of these models, or ask the operator for another token",
            )

    def require(self, role: Role) -> None:
        """Check that the client has a role.

        Raises:
            ForbiddenError: it does not.
        """
        if self.role < role:
            raise ForbiddenError(
                "the token does not permit this request",
                expected=f"the role {role.name.lower()}",
                found=self.role.name.lower(),
                do="ask the operator for a token with that role",
            )


class Access:
    """Access control by the endpoint's own token, which has the role admin, and the tokens of clients.

    Args:
        token: the endpoint's own token.
        file: file of the clients' tokens, reloaded when it changes; None if there are none.
        requests_per_minute: rate limit of one client.
    """

    def __init__(self, token: str, file: Path | None, requests_per_minute: int) -> None:
        self._own = digest_of(token)
        self._file = file
        self._per_minute = requests_per_minute
        self._clients: dict[str, Client] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked_at = -_LOOK_S
        # Token bucket: client -> requests left, and the time at which they were counted.
        self._left: dict[str, tuple[float, float]] = {}

    def identify(self, authorization: str | None) -> Client:
        """Return the client that an Authorization header identifies.

        Raises:
            AuthError: the token is missing or wrong.
        """
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            # Comparing digests keeps the timing of the comparison from revealing anything about a token.
            digest = digest_of(given.strip())
            if hmac.compare_digest(digest, self._own):
                return Client(OPERATOR, Role.ADMIN)
            self._look()
            if digest in self._clients:
                return self._clients[digest]
        raise AuthError("a valid bearer token is required", do="send the header Authorization: Bearer <token>")

    def count(self, client: Client) -> None:
        """Count a request against the rate limit of a client.

        Raises:
            ClientLimitError: the limit is exceeded.
        """
        now = time.monotonic()
        left, at = self._left.get(client.name, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - at) * self._per_minute / _MINUTE_S)
        if left < 1:
            raise ClientLimitError(
                "this client sends too many requests",
                expected=f"at most {self._per_minute} per minute",
                do="retry later",
            )
        self._left[client.name] = left - 1, now

    def _look(self) -> None:
        """Reload the token file if it has changed. If it cannot be read, all client tokens are rejected."""
        if self._file is None or time.monotonic() - self._looked_at < _LOOK_S:
            return
        self._looked_at = time.monotonic()
        try:
            stat = self._file.stat()
            stamp = stat.st_mtime_ns, stat.st_ino
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return
        self._stamp, self._clients = stamp, {}
        try:
            tokens = TokenFile(self._file).read()
        except ConfigError as error:
            log_event("tokens_unreadable", "access", logging.ERROR, kind=type(error).__name__)
            return
        self._clients = {each.sha256: Client(each.name, Role[each.role.upper()], tuple(each.models)) for each in tokens}
