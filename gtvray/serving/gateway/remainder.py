"""The remainder of a request's body after an early response, such as a refusal by the header of a scan.

If a server closes a connection with unread bytes, a client that is still sending sees a reset instead of the response,
and many clients read the response only after they have sent the body. Therefore the response is sent at once, and the
remainder is read and discarded within the limits of an upload (RFC 9112, section 9.6).
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from gtvray.errors import SlowBodyError
from gtvray.serving.transfer.uploads import UploadLimits, body_chunks

# A body of at most this size has usually arrived with the head of its request, and its connection stays open.
_SMALL_BYTES = 64 << 10


class Remainder:
    """Receives a request's body for the application, and what the application leaves of it.

    Args:
        scope: of the request.
        headers: of the request.
        receive: receives the messages of the request.
        limits: limits of the size and rate of what is discarded.
    """

    def __init__(self, scope: Scope, headers: Headers, receive: Receive, limits: UploadLimits) -> None:
        self._scope, self._receive, self._limits = scope, receive, limits
        length = headers.get("content-length", "")
        declared = int(length) if length.isdecimal() else 0
        self._unread = bool(declared) or "transfer-encoding" in headers
        self._large = self._unread and not 0 < declared <= _SMALL_BYTES

    @property
    def unread(self) -> bool:
        """Whether a part of the body has not been read."""
        return self._unread

    @property
    def large(self) -> bool:
        """Whether that part may be large, so that the connection is closed after it."""
        return self._unread and self._large

    async def receive(self) -> Message:
        """Receive the next message."""
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._unread = False
        return message

    async def discard(self) -> bool:
        """Read the remainder; return False if it exceeds a limit, so that the connection must be closed."""
        left = self._limits.most_bytes
        try:
            async for chunk in body_chunks(Request(self._scope, self.receive), self._limits):
                left -= len(chunk)
                if left < 0:
                    return False
        except SlowBodyError:
            return False
        except ClientDisconnect:
            pass
        return True
