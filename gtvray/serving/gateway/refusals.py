"""Refused requests in the audit log: without a valid token, without permission, or over a limit of the client."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import NamedTuple

from fastapi import FastAPI
from starlette.routing import compile_path
from starlette.types import Scope

from gtvray.errors import GtvrayError
from gtvray.serving.gateway.audit import AuditLog

_RECORDED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS})
# Further refusals of the same kind within this time share a line, so that nobody can fill the disk with them.
_TOGETHER_S = 10.0


class _Kind(NamedTuple):
    client: str | None
    outcome: str
    method: str
    route: str


class Refusals:
    """Records refused requests in the audit log: the first at once, then those of each ten seconds in one line.

    Args:
        audit: the audit log.
    """

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        # Kinds with a line in the last ten seconds -> refusals since, and the id of the latest.
        self._since: dict[_Kind, tuple[int, str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def record(self, scope: Scope, error: Exception) -> None:
        """Record the error of a request, if it is a refusal.

        Args:
            scope: of the request; its state has the request id and, once it is known, the client.
            error: its error.
        """
        if not self._audit.enabled or not isinstance(error, GtvrayError) or error.http_status not in _RECORDED:
            return
        state = scope["state"]
        client = state.get("client")
        name = client.name if client is not None else None
        kind = _Kind(name, type(error).__name__, scope["method"], _template(scope))
        if kind in self._since:
            self._since[kind] = self._since[kind][0] + 1, state["request_id"]
            return
        self._since[kind] = 0, ""
        self._start(kind)
        await self._write(kind, state["request_id"], 1)

    def _start(self, kind: _Kind) -> None:
        task = asyncio.create_task(self._collect(kind))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _collect(self, kind: _Kind) -> None:
        """Write a line for the refusals of each period until there are none."""
        while True:
            await asyncio.sleep(_TOGETHER_S)
            count, request_id = self._since[kind]
            if not count:
                del self._since[kind]
                return
            self._since[kind] = 0, ""
            await self._write(kind, request_id, count)

    async def _write(self, kind: _Kind, request_id: str, count: int) -> None:
        await self._audit.write(request_id, **kind._asdict(), count=count)


def _template(scope: Scope) -> str:
    """The path template of a request that may not have reached its route; never its path, which a client chooses."""
    application, path = scope.get("app"), scope["path"].removeprefix(scope.get("root_path", ""))
    for template in application.openapi()["paths"] if isinstance(application, FastAPI) else ():
        if compile_path(template)[0].match(path):
            return str(template)
    return "none"
