"""A pool of actors that predict scans on the connected cluster.

Each actor loads the model once and holds a few scans at a time. An actor that dies is replaced. The scans that it held
are retried, each alone in an actor, so that a scan whose process dies a second time is identified as the cause. It is
reported as failed, and the others continue. Scans that were lost with a node are retried without this restriction.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from gtvray.batch.planning import IN_FLIGHT, PoolPlan
from gtvray.batch.steps import Result, Scan
from gtvray.errors import DeviceLostError, FailureError, GtvrayError, ResourceError, first_line
from gtvray.io import remove_partial
from gtvray.runtime import waiting_reason

_POLL_S = 1.0
# Number of consecutive processes that die while loading the model after which their slot is dropped.
_START_DEATHS = 3
# A scan is not retried after this many deaths of its process.
_SCAN_DEATHS = 2
# Nor after it was lost with this many nodes, which is unlikely to be a coincidence.
_SCAN_LOSSES = 5
_CLOSE_S = 60.0


@dataclass
class _Held:
    """A scan that is assigned to an actor or waits for one.

    Attributes:
        scan: the scan.
        deaths: number of processes that crashed while they held it.
        losses: number of processes that were lost with their node or its connection while they held it.
    """

    scan: Scan
    deaths: int = 0
    losses: int = 0


@dataclass
class _Slot:
    """An actor and what it holds; the actor is replaced when it dies.

    Attributes:
        actor: handle of the actor.
        opening: object ref of the call of `open`, while the model is being loaded; None afterwards.
        node: id of its node; empty until it is known.
        held: object ref of the call of `predict` -> scan.
        alone: whether it holds a suspected scan, beside which no other may run.
        start_deaths: deaths in a row before the model was loaded.
    """

    actor: Any
    opening: Any
    node: str = ""
    held: dict[Any, _Held] = field(default_factory=dict)
    alone: bool = False
    start_deaths: int = 0


class ActorPool:
    """Actors that predict scans.

    Args:
        opener: called in each actor to load the model; returns an object with the steps of `ScanSteps`.
        plan: number and resources of the actors.
        wait_s: maximum time in seconds without any actor that has loaded the model.
        started: called before a scan is given to an actor.
        ended: called with each result.
    """

    def __init__(
        self,
        opener: Callable[[], Any],
        plan: PoolPlan,
        *,
        wait_s: float,
        started: Callable[[Scan], None],
        ended: Callable[[Result], None],
    ) -> None:
        self._opener, self._plan, self._wait_s = opener, plan, wait_s
        self._started, self._ended = started, ended
        self._waiting: deque[_Held] = deque()
        self._suspects: deque[_Held] = deque()
        self._slots: list[_Slot] = []
        self._failure: GtvrayError | None = None
        self._alive_at = 0.0

    def run(self, scans: Sequence[Scan]) -> None:
        """Predict scans; each ends with a call of `ended`.

        If it is interrupted, masks that are being written are completed, and no further scan is started.

        Raises:
            GtvrayError: no actor could load the model; the error of the last one.
            ResourceError: actors die while they load the model, or none got its resources in time.
        """
        self._waiting.extend(_Held(scan) for scan in scans)
        self._alive_at = time.monotonic()
        try:
            self._slots = [self._new_slot() for _ in range(min(self._plan.actors, len(scans)))]
            while self._waiting or self._suspects or any(slot.held for slot in self._slots):
                self._feed()
                answers = [answer for slot in self._slots for answer in (slot.opening, *slot.held) if answer]
                ready, _ = ray.wait(answers, timeout=_POLL_S)
                for answer in ready:
                    self._handle(answer)
                self._require_actors()
        finally:
            self._close()

    def _feed(self) -> None:
        for slot in self._slots:
            while slot.opening is None and not slot.alone and len(slot.held) < IN_FLIGHT:
                if self._suspects and not slot.held:
                    slot.alone = True
                    self._give(slot, self._suspects.popleft())
                elif self._waiting:
                    self._give(slot, self._waiting.popleft())
                else:
                    break

    def _give(self, slot: _Slot, held: _Held) -> None:
        self._started(held.scan)
        slot.held[slot.actor.predict.remote(held.scan)] = held

    def _handle(self, answer: Any) -> None:
        slot = next((slot for slot in self._slots if answer == slot.opening or answer in slot.held), None)
        if slot is None:
            # Its actor has died, which was already handled with another of its calls.
            return
        try:
            value = ray.get(answer)
        except RayActorError as error:
            self._lost(slot, first_line(error), is_crash=_is_crash(error, slot.node))
            return
        except RayError as error:
            value = error.cause if isinstance(error, RayTaskError) else error
        if answer == slot.opening:
            self._opened(slot, value)
        else:
            held, slot.alone = slot.held.pop(answer), False
            self._ended(value if isinstance(value, Result) else Result.failed(held.scan, _failure(held.scan, value)))

    def _opened(self, slot: _Slot, node: str | BaseException) -> None:
        slot.opening = None
        if isinstance(node, str):
            slot.node, slot.start_deaths, self._alive_at = node, 0, time.monotonic()
        else:
            self._drop(slot, node if isinstance(node, GtvrayError) else _failure(None, node))

    def _lost(self, slot: _Slot, reason: str, *, is_crash: bool) -> None:
        """Replace an actor that died, and retry its scans."""
        lost, slot.held, slot.alone = list(slot.held.values()), {}, False
        # Two processes must never write one mask: an actor that is only unreachable is killed first.
        ray.kill(slot.actor)
        for held in lost:
            remove_partial(held.scan.mask)
            # The mask may have been written already.
            held.scan = replace(held.scan, overwrite=True)
            held.deaths += is_crash
            held.losses += not is_crash
            if held.deaths >= _SCAN_DEATHS or held.losses >= _SCAN_LOSSES:
                self._ended(Result.failed(held.scan, _deadly(held, reason)))
            elif held.deaths:
                self._suspects.append(held)
            else:
                self._waiting.appendleft(held)
        slot.start_deaths += slot.opening is not None and is_crash
        if slot.start_deaths >= _START_DEATHS:
            what = f"the process died {_START_DEATHS} times while it loaded the model"
            self._drop(slot, ResourceError(what, found=reason, do="see Ray's logs; it may need more --memory-gb"))
            return
        fresh = self._new_slot()
        slot.actor, slot.opening, slot.node = fresh.actor, fresh.opening, ""

    def _drop(self, slot: _Slot, error: GtvrayError) -> None:
        """Remove an actor that cannot load the model."""
        self._failure = error
        self._slots.remove(slot)
        ray.kill(slot.actor)

    def _new_slot(self) -> _Slot:
        needs = self._plan.needs
        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "memory": needs.memory_bytes or None}
        # One more than the number of scans, so that `close` does not queue behind them.
        kind = ray.remote(**options, max_restarts=0, max_concurrency=IN_FLIGHT + 1, scheduling_strategy="SPREAD")
        actor = kind(_Actor).remote(self._opener)
        return _Slot(actor, actor.open.remote())

    def _require_actors(self) -> None:
        if not self._slots:
            assert self._failure is not None, "a slot is dropped with an error"
            raise self._failure
        if any(slot.opening is None for slot in self._slots):
            self._alive_at = time.monotonic()
        elif time.monotonic() - self._alive_at > self._wait_s:
            reason = waiting_reason() or "the model is still being loaded"
            raise ResourceError(
                "no prediction process could be started on the cluster",
                expected=f"{self._plan.needs.as_text()} within {self._wait_s:g} s (training.resources_wait_s)",
                found=reason,
                do="see `ray status` for what uses the cluster, then run the same command again",
            )

    def _close(self) -> None:
        """Stop the actors once no mask is being written, and record the scans that they have completed."""
        held = {each.scan.name for slot in self._slots for each in slot.held.values()}
        try:
            if held:
                closing = [slot.actor.close.remote() for slot in self._slots if slot.held]
                for answer in ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)[0]:
                    for result in _stored(answer):
                        if result.scan in held:
                            self._ended(result)
        finally:
            for slot in self._slots:
                ray.kill(slot.actor)


class _Actor:
    """A process of the pool; each step is run by one thread at a time."""

    def __init__(self, opener: Callable[[], Any]) -> None:
        # `open` loads the model, as its errors reach the driver unchanged, unlike those of a constructor.
        self._opener = opener
        self._steps: Any = None
        self._loading, self._running, self._storing = Lock(), Lock(), Lock()
        # Results that may not have reached the driver yet.
        self._last: deque[Result] = deque(maxlen=2 * IN_FLIGHT)

    def open(self) -> str:
        """Load the model; return the id of the node."""
        self._steps = self._opener()
        return str(ray.get_runtime_context().get_node_id())

    def predict(self, scan: Scan) -> Result:
        """Predict a scan; exit if the GPU has failed."""
        try:
            with self._loading:
                loaded = self._steps.load(scan)
            with self._running:
                ran = self._steps.run(scan, loaded)
            with self._storing:
                result: Result = self._steps.store(scan, ran)
                self._last.append(result)
                return result
        except DeviceLostError:
            # Only another process can use the GPU again. The pool treats it as any process that died with a scan.
            os._exit(1)
        except GtvrayError as error:
            return Result.failed(scan, error)

    def close(self) -> list[Result]:
        """Wait until no mask is being written, prevent further writes, and return the last results."""
        self._storing.acquire()
        return list(self._last)


def _stored(answer: Any) -> list[Result]:
    """The results that an actor returned when it was closed; none if it died."""
    try:
        return list(ray.get(answer))
    except RayError:
        return []


def _is_crash(error: RayActorError, node: str) -> bool:
    """Whether a process died while its node stayed alive.

    Ray reports the death of a process within a second. If the whole node was lost, Ray reports only that the actor does
    not respond (ActorUnavailableError), as it takes longer to detect the death of a node.
    """
    if not isinstance(error, ActorDiedError) or error.preempted:
        return False
    return not node or any(row["NodeID"] == node and row["Alive"] for row in ray.nodes())


def _deadly(held: _Held, reason: str) -> GtvrayError:
    if held.deaths < _SCAN_DEATHS:
        return ResourceError(
            f"the process that predicted this scan was lost {_SCAN_LOSSES} times, with its node or its connection",
            where=held.scan.path,
            found=reason,
            do="see `ray status` for the nodes, then run the same command again",
        )
    return FailureError(
        f"the process that predicted this scan died {_SCAN_DEATHS} times",
        where=held.scan.path,
        found=reason,
        do="check the scan; if it is only very large, predict it with more --memory-gb",
    )


def _failure(scan: Scan | None, error: BaseException) -> GtvrayError:
    if isinstance(error, GtvrayError):
        return error
    what = "the model could not be loaded on a node" if scan is None else "unexpected error while predicting a scan"
    where = None if scan is None else scan.path
    return FailureError(what, where=where, found=f"{type(error).__name__}: {first_line(error)}")
