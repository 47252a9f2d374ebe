"""The JSON documents of jobs and of the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from gtvray import NOTICE
from gtvray.serving.jobs.records import OPEN, JobStatus, Priority, QueueStatus, VolumeState
from gtvray.serving.problems import Problem

JobState = Literal["queued", "running", "done", "failed", "cancelled"]


class VolumeDocument(BaseModel):
    """One volume of a job."""

    number: int = Field(description="position in the request, from 0")
    state: VolumeState
    percent: float = Field(description="percentage of the patches that were processed")
    result: str | None = Field(None, description="path of the result once the volume is done")
    problem: Problem | None = Field(None, description="why a failed volume has no mask")


class JobDocument(BaseModel):
    """A job."""

    id: str
    client: str = Field("", description="client that submitted it")
    state: JobState = Field(
        description="queued: no volume was started; running: some have not ended; done: all have ended, at least one "
        "with a mask; failed: all have ended without a mask; cancelled: the client cancelled it"
    )
    priority: Priority
    percent: float = Field(description="mean percentage of the volumes, of which those that have ended count as 100")
    created_at: datetime
    ended_at: datetime | None
    expires_at: datetime | None = Field(description="when the results of a job that has ended are deleted")
    volumes: list[VolumeDocument]
    notice: str = NOTICE


class JobList(BaseModel):
    """Jobs of one client, or of all for the role admin, newest first."""

    jobs: list[JobDocument]


class ReplicasDocument(BaseModel):
    """Replicas of a model; requests wait while none runs."""

    model: str = Field(description="name of the registered model")
    running: int = Field(description="replicas that are ready to process scans")
    starting: int = Field(description="replicas that load the model or wait for cluster resources")
    smallest: int = Field(description="minimum number of replicas")
    largest: int = Field(description="maximum number of replicas")


class QueueDocument(BaseModel):
    """The queue of all clients."""

    queued: int = Field(description="volumes of jobs that wait in the queue")
    running: int = Field(description="volumes of jobs in progress")
    expected_wait_s: float | None = Field(
        description="estimated seconds until a new volume of normal priority would start, from the processing time of "
        "recent volumes; null if no volume was processed yet"
    )
    scans: int = Field(0, description="requests and volumes of jobs on this node, in progress or waiting for a slot")
    replicas: list[ReplicasDocument] = Field([], description="replicas of each model; empty if currently unknown")


def job_document(job: JobStatus, keep_s: float, live: Mapping[tuple[str, int], float]) -> JobDocument:
    """Return the document of a job.

    Args:
        job: the job.
        keep_s: how long results are kept.
        live: volume -> percentage, of the volumes processed by this gateway; more recent than the table.
    """
    percents = [
        100.0 if each.state not in OPEN else live.get((job.id, each.number), each.percent) for each in job.volumes
    ]
    shown = [
        VolumeDocument(
            number=each.number,
            state=each.state,
            percent=round(percent if each.state in (*OPEN, "done") else each.percent, 1),
            result=result_path(job.id, each.number) if each.result is not None else None,
            problem=Problem(**each.problem) if each.problem is not None else None,
        )
        for each, percent in zip(job.volumes, percents, strict=True)
    ]
    return JobDocument(
        id=job.id,
        client=job.owner,
        state=_state(job),
        priority=job.priority,
        percent=round(sum(percents) / len(percents), 1),
        created_at=_time(job.created_at),
        ended_at=_time(job.ended_at) if job.ended_at is not None else None,
        expires_at=_time(job.ended_at + keep_s) if job.ended_at is not None else None,
        volumes=shown,
    )


def queue_document(queue: QueueStatus, at_once: int) -> QueueDocument:
    """Return the document of the queue.

    Args:
        queue: the queue.
        at_once: volumes that are processed at the same time.
    """
    before = queue.queued + queue.running - at_once + 1
    wait = queue.mean_s * max(before, 0) / at_once if queue.mean_s is not None else None
    return QueueDocument(
        queued=queue.queued, running=queue.running, expected_wait_s=round(wait, 1) if wait is not None else None
    )


def result_path(job_id: str, number: int) -> str:
    """The address of a result."""
    return f"/v1/jobs/{job_id}/results/{number}"


def _state(job: JobStatus) -> JobState:
    counts: Counter[Any] = Counter(each.state for each in job.volumes)
    if job.cancelled:
        return "cancelled"
    if counts["queued"] == len(job.volumes):
        return "queued"
    if counts["queued"] or counts["running"]:
        return "running"
    return "done" if counts["done"] else "failed"


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
