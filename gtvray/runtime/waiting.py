"""What the connected job waits for: resources that are not free, or nodes that an autoscaler has yet to start."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from gtvray.errors import ResourceError
from gtvray.runtime.groups import placement_groups
from gtvray.runtime.progress import ProgressReporter
from gtvray.runtime.resources import Needs, resources_text

# A wait is shown once two consecutive checks find it; shorter ones are the normal start of a worker.
_LOOK_S = 3.0
_SHOWN = ("CPU", "GPU", "memory")


@contextmanager
def shown_waiting(show: ProgressReporter) -> Iterator[None]:
    """Within a `with` block, report what this job waits for, at most ten seconds after it began to wait."""
    over = threading.Event()

    def look() -> None:
        before: str | None = None
        while not over.wait(_LOOK_S):
            try:
                reason = waiting_reason()
            except (RayError, RuntimeError, OSError):
                # The cluster does not answer, which the operation itself will report.
                continue
            show.waiting(reason if before is not None else None)
            before = reason

    thread = threading.Thread(target=look, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        show.waiting(None)


def waiting_reason() -> str | None:
    """Describe in one line the resources that this job waits for and those that are free; None if it does not wait."""
    wanted = Counter(resources_text(needs) for needs in (*_pending_groups(), *_pending_actors()))
    if not wanted:
        return None
    needs = " and ".join(f"{count} x ({text})" for text, count in sorted(wanted.items()))
    total, free = ray.cluster_resources(), ray.available_resources()
    state = ", ".join(
        f"{free.get(name, 0) / scale:.3g} of {total[name] / scale:.3g} {unit}"
        for name, scale, unit in (("CPU", 1, "CPUs"), ("GPU", 1, "GPUs"), ("memory", 1e9, "GB"))
        if total.get(name)
    )
    return f"waiting for {needs}; free on all nodes together: {state or 'nothing'}"


@contextmanager
def reserved(needs: Needs, workers: int, limit_s: float, report: Callable[[str], None]) -> Iterator[Any]:
    """Reserve the resources of a training run's workers for a `with` block, waiting until they are free.

    Args:
        needs: resources of one worker.
        workers: number of workers.
        limit_s: maximum wait in seconds.
        report: called with the reason while waiting.

    Yields:
        the placement group, with a bundle for each worker.

    Raises:
        ResourceError: they were not free within the limit.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([needs.as_bundle()] * workers, strategy="PACK")
    try:
        deadline = time.monotonic() + limit_s
        while not group.wait(_LOOK_S):
            reason = waiting_reason() or "waiting for resources"
            if time.monotonic() > deadline:
                raise ResourceError(
                    "the cluster had no free resources for a training",
                    expected=f"{workers} x ({needs.as_text()}) within {limit_s:g} s (training.resources_wait_s)",
                    found=reason.partition("; ")[2] or reason,
                    do="see `ray status` for what uses the cluster or blocks its autoscaler, or raise the limit",
                )
            report(f"{reason}; for at most {limit_s:g} s")
        yield group
    finally:
        remove_placement_group(group)


def _pending_groups() -> Iterator[dict[str, float]]:
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData as Row

    job = ray.get_runtime_context().get_job_id()
    for group in placement_groups():
        if group.creator_job_id.hex() == job and group.state in (Row.PENDING, Row.RESCHEDULING):
            for bundle in group.bundles:
                yield _amounts(bundle.unit_resources)


def _pending_actors() -> Iterator[dict[str, float]]:
    """Needs of the actors of this job that have no node yet and are not in a placement group."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    for row in state._connect_and_get_accessor().get_actor_table(job, "PENDING_CREATION"):
        actor = ActorTableData.FromString(row)
        needs = _amounts(actor.required_resources)
        if needs and not actor.HasField("placement_group_id") and not _is_set(actor.address.node_id):
            yield needs


def _amounts(resources: Any) -> dict[str, float]:
    return {name: float(resources[name]) for name in _SHOWN if resources.get(name)}


def _is_set(identifier: bytes) -> bool:
    # Ray writes an unset id as bytes of 255.
    return bool(identifier.strip(b"\xff"))
