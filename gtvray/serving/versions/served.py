"""The served version of a model and its state, refreshed in the background so that probes do not call replicas."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from gtvray.errors import GtvrayError, NotReadyError, NotReproducedError
from gtvray.serving.arguments import AppArguments
from gtvray.serving.scaling import ReplicaCounts, count_replicas
from gtvray.serving.versions.pointer import Pointer, Versions

REPLICA_LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)
_REFRESH_S = 1.0
_TIMEOUT_S = 5.0
# A model that has answered stays ready for this long without an answer: busy, or its replica is being replaced.
_VALID_S = 30.0
# Separates the fields of an error in the reason of a rejected version, which is one line.
_FIELD = ";  "


@dataclass(frozen=True)
class _State:
    """The last description returned by a version, or the error for which there is none."""

    app: str
    answer: dict[str, Any] | GtvrayError
    at: float


class Served:
    """A served model: its current version, its state, and the requests in progress on each version.

    Args:
        args: the application's arguments.
        model: handle of the Model deployment, if the endpoint does not follow versions and has a model.
        app: Serve application of that deployment.

    Attributes:
        name: name of the registered model.
        looked_at: monotonic time of the last background check.
    """

    def __init__(self, args: AppArguments, model: Any, app: str = "") -> None:
        self.name = args.model_name
        self._sleeps = args.serving.model_replicas == 0
        self._pointer = Pointer(args.versions) if args.versions is not None else None
        # Serve application of a version -> requests that were admitted while it was served.
        self._pinned: Counter[str] = Counter()
        self._state: _State | None = None
        self.looked_at = time.monotonic()
        self._handle: tuple[str, Any] = (app, near(model) if model is not None else None)
        self._replicas: tuple[float, str, ReplicaCounts | None] = (-math.inf, "", None)

    def in_use(self, app: str) -> int:
        """Number of requests in progress that belong to a version."""
        return self._pinned[app]

    def versions(self) -> Versions:
        """The served version, the one being loaded, and those that were rejected."""
        return self._pointer.read() if self._pointer is not None else Versions()

    def identity(self) -> dict[str, str]:
        """Digest (`model`) and `version` of the version that new requests go to; empty if they are not known."""
        current = self.versions().current
        if current is not None:
            return {"model": current.digest, "version": current.version}
        if self.follows or self._state is None or isinstance(self._state.answer, GtvrayError):
            return {}
        return {"model": self._state.answer["digest"], "version": self._state.answer["version"]}

    @property
    def follows(self) -> bool:
        """Whether the version changes while the endpoint runs."""
        return self._pointer is not None

    @contextmanager
    def pinned(self) -> Iterator[tuple[str, Any]]:
        """Pin the current version for a `with` block; yields its Serve application and handle.

        Raises:
            NotReadyError: there is none.
            NotReproducedError: the champion cannot be served.
        """
        app, model = self._current()
        self._pinned[app] += 1
        try:
            yield app, model
        finally:
            self._pinned[app] -= 1

    async def describe(self) -> dict[str, Any]:
        """Describe the served model, as it last answered.

        Raises:
            NotReadyError: no model has answered for a while.
            NotReproducedError: the model does not reproduce its golden cases.
        """
        app, _ = self._current()
        if self._state is None or self._state.app != app:
            await self.refresh()
        assert self._state is not None
        if isinstance(self._state.answer, GtvrayError):
            raise self._state.answer
        return self._state.answer

    @property
    def last_description(self) -> dict[str, Any] | None:
        """The description of the served version, if it is known without asking a replica."""
        state = self._state
        if state is None or isinstance(state.answer, GtvrayError) or state.app != self._current()[0]:
            return None
        return state.answer

    async def replicas(self) -> ReplicaCounts | None:
        """Return replica counts, at most a second old; None if there is no model, or Serve does not respond."""
        try:
            app, _ = self._current()
        except GtvrayError:
            return None
        at, counted, replicas = self._replicas
        if counted != app or time.monotonic() - at > _REFRESH_S:
            replicas = await asyncio.to_thread(count_replicas, app)
            self._replicas = time.monotonic(), app, replicas
        return replicas

    async def refresh_forever(self) -> None:
        """Refresh the state until cancelled."""
        while True:
            self.looked_at = time.monotonic()
            await self.refresh()
            await asyncio.sleep(_REFRESH_S)

    async def refresh(self) -> None:
        """Ask the served model for its description."""
        try:
            app, model = self._current()
        except GtvrayError as error:
            self._state = _State("", error, time.monotonic())
            return
        if await self._is_asleep(app):
            return
        response = model.describe.remote()
        answer: dict[str, Any] | GtvrayError
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer = await response
        except (TimeoutError, DeploymentUnavailableError, *REPLICA_LOST):
            response.cancel()
            if self._is_valid(app):
                return
            answer = loading()
        except RayTaskError as error:
            cause = cause_of(error)
            answer = cause if isinstance(cause, GtvrayError) else loading()
        if not isinstance(answer, GtvrayError) and self._has_failed(app):
            return
        self._state = _State(app, answer, time.monotonic())

    async def _is_asleep(self, app: str) -> bool:
        """Whether the model was ready and is now scaled to zero, in which case a call would start a replica."""
        state = self._state
        if not self._sleeps or state is None or state.app != app or isinstance(state.answer, GtvrayError):
            return False
        replicas = await self.replicas()
        if replicas is None or replicas.running:
            return False
        self._state = replace(state, at=time.monotonic())
        return True

    def _has_failed(self, app: str) -> bool:
        """Whether a replica was not able to reproduce the golden cases a short time ago; each call asks any of them."""
        state = self._state
        if state is None or state.app != app or not isinstance(state.answer, NotReproducedError):
            return False
        return time.monotonic() - state.at < _VALID_S

    def _is_valid(self, app: str) -> bool:
        state = self._state
        if state is None or state.app != app or isinstance(state.answer, GtvrayError):
            return False
        return time.monotonic() - state.at < _VALID_S

    def _current(self) -> tuple[str, Any]:
        if self._pointer is None:
            if self._handle[1] is None:
                raise _not_promoted()
            return self._handle
        versions = self._pointer.read()
        if versions.current is not None:
            app = versions.current.app
            if self._handle[0] != app:
                self._handle = app, near(serve.get_deployment_handle("Model", app_name=app))
            return self._handle
        if versions.loading is not None:
            raise loading()
        if versions.rejected:
            found = versions.rejected[-1]
            # /readyz needs no token; the further fields of the reason, which /v1/models shows, may name server paths.
            reason = found.reason.partition(_FIELD)[0]
            raise NotReproducedError(
                "the champion cannot be served here",
                found=f"version {found.version}: {reason}",
                do="solve this problem, whose details are in GET /v1/models, and restart the endpoint, or promote "
                "another version",
            )
        if versions.problem:
            raise NotReadyError("no model is served", found=versions.problem, do="see the server's log")
        raise _not_promoted()


def near(handle: Any) -> Any:
    """Make a handle prefer replicas on this node, which can read scans from its disk; return it."""
    if isinstance(handle, DeploymentHandle) and not handle.is_initialized:
        handle._init(_prefer_local_routing=True)
    return handle


def cause_of(error: RayTaskError) -> Exception:
    """The exception that a replica raised, unwrapped if it is a GtvrayError."""
    return error.cause if isinstance(error.cause, GtvrayError) else error


def loading() -> NotReadyError:
    """The error while the model is being loaded."""
    return NotReadyError("the model is still loading", do="retry in a few seconds")


def _not_promoted() -> NotReadyError:
    return NotReadyError("no model has been promoted yet", do="promote a model with `gtvray promote`")
