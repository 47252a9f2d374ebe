"""The table of jobs: accepting, claiming with leases, fenced results, cancelling, expiry. Torch-free, synchronous.

A volume is claimed by one gateway at a time, under a lease that the gateway renews. Each claim has an attempt number,
and a write is valid only with the number of the latest claim, so a gateway that was unreachable cannot complete a
volume that another one has taken over.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, and_, func, or_, select, true
from sqlalchemy.exc import IntegrityError

from gtvray.errors import FailureError, GtvrayError, NotFoundError
from gtvray.serving.jobs.records import (
    OPEN,
    Accepted,
    Claim,
    JobStatus,
    NewJob,
    NewVolume,
    Priority,
    QueueStatus,
    StoredVolume,
    VolumeState,
    VolumeStatus,
)
from gtvray.serving.jobs.table import jobs, transaction, volumes

LEASE_S = 15.0
MOST_INTERRUPTIONS = 20
# Each further volume of a job is queued as if it had arrived this much later, so that large jobs do not block others.
_BEHIND_S = 10.0
_AHEAD_S: dict[Priority, float] = {"low": -3600.0, "normal": 0.0, "high": 3600.0}
_RECENT = 50


def due_at(created_at: float, number: int, priority: Priority) -> float:
    """Return the position of a volume in the queue: its time of arrival, shifted by number and priority.

    As the position never changes, a volume of low priority cannot be overtaken indefinitely.
    """
    return created_at + _BEHIND_S * number - _AHEAD_S[priority]


class JobStore:
    """The tables of jobs and their volumes.

    Every method raises ResourceError if the database is not available, and StorageFullError if its disk is full.

    Args:
        engine: database engine, from `open_database`.
        keep_s: time after its end for which a job is kept; later it is not found, even before `expire` removes it.
    """

    def __init__(self, engine: Engine, keep_s: float) -> None:
        self._engine, self._keep_s = engine, keep_s

    def accept(self, new: NewJob) -> Accepted:
        """Add a job whose inputs are durable.

        Returns:
            the job, or the earlier one of the same owner with the same idempotency key.
        """
        now = time.time()
        job = {
            "id": new.id,
            "owner": new.owner,
            "key_digest": new.key_digest,
            "input_digest": new.input_digest,
            "priority": new.priority,
            "model": new.model,
            "created_at": now,
            "cancelled": False,
        }
        rows = [
            _new_row(new.id, number, each, due_at(now, number, new.priority)) for number, each in enumerate(new.volumes)
        ]
        try:
            with transaction(self._engine) as connection:
                # The key of a job that is no longer kept may be used again.
                same_key = and_(jobs.c.owner == new.owner, jobs.c.key_digest == new.key_digest)
                _remove(connection, and_(same_key, jobs.c.ended_at < time.time() - self._keep_s))
                connection.execute(jobs.insert(), job)
                connection.execute(volumes.insert(), rows)
        except IntegrityError:
            earlier = self._find_key(new.owner, new.key_digest)
            if earlier is None:
                raise
            return earlier
        return Accepted(new.id, new.input_digest)

    def claim(self) -> Claim | None:
        """Claim the next volume; None if there is none, or if the next one has failed after too many interruptions."""
        now = time.time()
        ready = or_(
            and_(volumes.c.state == "queued", volumes.c.not_before <= now),
            and_(volumes.c.state == "running", volumes.c.lease_until < now),
        )
        with transaction(self._engine) as connection:
            row = connection.execute(
                select(volumes, jobs.c.owner, jobs.c.model)
                .join(jobs)
                .where(ready)
                .order_by(volumes.c.due)
                .limit(1)
                .with_for_update(skip_locked=True, of=volumes)
            ).first()
            if row is None:
                return None
            interruptions = row.interruptions + (row.state == "running")
            if interruptions > MOST_INTERRUPTIONS:
                self._end(connection, row.job_id, row.number, "failed", problem=_interrupted(interruptions).problem())
                return None
            connection.execute(
                volumes.update().where(_is(row.job_id, row.number)),
                {
                    "state": "running",
                    "attempt": row.attempt + 1,
                    "interruptions": interruptions,
                    "lease_until": now + LEASE_S,
                    "percent": 0.0,
                    "started_at": now,
                },
            )
        return Claim(row.job_id, row.number, row.owner, row.attempt + 1, row.reference, row.input, row.model)

    def renew(self, claims: Mapping[Claim, float]) -> set[Claim]:
        """Renew leases and record percentages.

        Returns:
            the claims that are no longer valid: cancelled, or taken over.
        """
        lost: set[Claim] = set()
        with transaction(self._engine) as connection:
            for claim, percent in claims.items():
                changed = connection.execute(
                    volumes.update().where(_held(claim)),
                    {"lease_until": time.time() + LEASE_S, "percent": percent},
                )
                if not changed.rowcount:
                    lost.add(claim)
        return lost

    def finish(self, claim: Claim, result: bytes, stored_bytes: int) -> bool:
        """Record the result of a volume; False if the claim is no longer valid."""
        return self._end_claim(claim, "done", result=result, stored_bytes=stored_bytes, percent=100.0)

    def fail(self, claim: Claim, error: GtvrayError) -> bool:
        """Record why a volume has no mask; False if the claim is no longer valid."""
        return self._end_claim(claim, "failed", problem=error.problem(claim.job_id))

    def release(self, claim: Claim, delay_s: float = 0.0) -> None:
        """Return a claimed volume to the queue.

        Args:
            claim: the claim.
            delay_s: time before it can be claimed again.
        """
        with transaction(self._engine) as connection:
            connection.execute(
                volumes.update().where(_held(claim)),
                {"state": "queued", "not_before": time.time() + delay_s, "percent": 0.0},
            )

    def cancel(self, owner: str | None, job_id: str) -> JobStatus:
        """Cancel the volumes of a job that have not ended, and remove all its results.

        The state of a job that has already ended does not change.

        Raises:
            NotFoundError: no such job of this owner; None stands for all owners.
        """
        with transaction(self._engine) as connection:
            self._require(connection, owner, job_id, lock=True)
            ended = connection.execute(
                volumes.update().where(volumes.c.job_id == job_id, volumes.c.state.in_(OPEN)),
                {"state": "cancelled", "ended_at": time.time(), "input": None},
            )
            if ended.rowcount:
                connection.execute(
                    jobs.update().where(jobs.c.id == job_id), {"cancelled": True, "ended_at": time.time()}
                )
            connection.execute(volumes.update().where(volumes.c.job_id == job_id), {"result": None, "stored_bytes": 0})
            return _status(connection, [self._require(connection, owner, job_id)])[0]

    def status(self, owner: str | None, job_id: str) -> JobStatus:
        """Return a job.

        Raises:
            NotFoundError: no such job of this owner; None stands for all owners.
        """
        with transaction(self._engine) as connection:
            return _status(connection, [self._require(connection, owner, job_id)])[0]

    def listing(self, owner: str | None, limit: int, before: str | None = None) -> list[JobStatus]:
        """Return jobs of an owner, newest first.

        Args:
            owner: the owner; None for all.
            limit: most jobs returned.
            before: only jobs older than this one.

        Raises:
            NotFoundError: no job `before` of this owner.
        """
        with transaction(self._engine) as connection:
            found = select(jobs).where(_is_of(owner), self._is_kept())
            if before is not None:
                last = self._require(connection, owner, before)
                found = found.where(
                    or_(
                        jobs.c.created_at < last.created_at,
                        and_(jobs.c.created_at == last.created_at, jobs.c.id < last.id),
                    )
                )
            rows = connection.execute(found.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)).all()
            return _status(connection, rows)

    def queue(self) -> QueueStatus:
        """Return the length of the queue and the mean processing time of recent volumes."""
        with transaction(self._engine) as connection:
            grouped = select(volumes.c.state, func.count().label("number_of")).where(volumes.c.state.in_(OPEN))
            counts = {row.state: row.number_of for row in connection.execute(grouped.group_by(volumes.c.state))}
            recent = connection.execute(
                select(volumes.c.started_at, volumes.c.ended_at)
                .where(volumes.c.state == "done")
                .order_by(volumes.c.ended_at.desc())
                .limit(_RECENT)
            ).all()
        seconds = [row.ended_at - row.started_at for row in recent]
        return QueueStatus(
            counts.get("queued", 0), counts.get("running", 0), sum(seconds) / len(seconds) if seconds else None
        )

    def stored_bytes(self) -> int:
        """Return the size of all stored inputs and results."""
        with transaction(self._engine) as connection:
            return int(connection.execute(select(func.coalesce(func.sum(volumes.c.stored_bytes), 0))).scalar_one())

    def expire(self) -> list[StoredVolume]:
        """Remove jobs that are no longer kept, and fail volumes that have been queued for as long.

        Returns:
            the remaining volumes.
        """
        limit = time.time() - self._keep_s
        late = FailureError(
            "the volume was not processed in time",
            expected=f"within {self._keep_s / 3600:g} h (serving.jobs.keep_h)",
            do="send the job again when the queue is shorter (GET /v1/queue)",
        )
        with transaction(self._engine) as connection:
            waiting = select(volumes.c.job_id, volumes.c.number).join(jobs)
            for row in connection.execute(waiting.where(volumes.c.state == "queued", jobs.c.created_at < limit)).all():
                self._end(connection, row.job_id, row.number, "failed", problem=late.problem(row.job_id))
            _remove(connection, jobs.c.ended_at < limit)
            left = select(volumes.c.job_id, volumes.c.number, volumes.c.attempt, volumes.c.state)
            return [
                StoredVolume(row.job_id, row.number, row.attempt, row.state) for row in connection.execute(left).all()
            ]

    def _end_claim(self, claim: Claim, state: VolumeState, **values: Any) -> bool:
        with transaction(self._engine) as connection:
            return self._end(connection, *claim.volume, state, _held(claim), **values)

    def _end(
        self,
        connection: Connection,
        job_id: str,
        number: int,
        state: VolumeState,
        condition: ColumnElement[bool] | None = None,
        **values: Any,
    ) -> bool:
        """End a volume, and its job if that was the last one."""
        now = time.time()
        if "problem" in values:
            values["problem"] = json.dumps(values["problem"])
        # Two gateways that end the last two volumes concurrently must not each see the other's volume as open.
        connection.execute(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update())
        ended = connection.execute(
            volumes.update().where(_is(job_id, number) if condition is None else condition),
            {"stored_bytes": 0, "input": None, **values, "state": state, "ended_at": now},
        )
        still_open = select(volumes.c.number).where(volumes.c.job_id == job_id, volumes.c.state.in_(OPEN)).exists()
        connection.execute(
            jobs.update().where(jobs.c.id == job_id, jobs.c.ended_at.is_(None), ~still_open), {"ended_at": now}
        )
        return bool(ended.rowcount)

    def _find_key(self, owner: str, key_digest: str | None) -> Accepted | None:
        with transaction(self._engine) as connection:
            row = connection.execute(
                select(jobs.c.id, jobs.c.input_digest).where(jobs.c.owner == owner, jobs.c.key_digest == key_digest)
            ).first()
        return Accepted(row.id, row.input_digest) if row is not None else None

    def _is_kept(self) -> ColumnElement[bool]:
        """Whether a job has not expired."""
        return or_(jobs.c.ended_at.is_(None), jobs.c.ended_at >= time.time() - self._keep_s)

    def _require(self, connection: Connection, owner: str | None, job_id: str, *, lock: bool = False) -> Row[Any]:
        found = select(jobs).where(jobs.c.id == job_id, _is_of(owner), self._is_kept())
        row = connection.execute(found.with_for_update() if lock else found).first()
        if row is None:
            raise NotFoundError(
                "no such job", expected="a job of this client that has not expired", do="list them: GET /v1/jobs"
            )
        return row


def new_job_id() -> str:
    """A random id, in the form of a request id."""
    return uuid.uuid4().hex


def _new_row(job_id: str, number: int, new: NewVolume, due: float) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "number": number,
        "reference": new.reference,
        "stored_bytes": new.stored_bytes,
        "input": new.input,
        "state": "queued",
        "due": due,
        "not_before": 0.0,
        "attempt": 0,
        "lease_until": 0.0,
        "interruptions": 0,
        "percent": 0.0,
    }


def _remove(connection: Connection, condition: ColumnElement[bool]) -> None:
    """Remove jobs and their volumes."""
    removed = select(jobs.c.id).where(condition)
    connection.execute(volumes.delete().where(volumes.c.job_id.in_(removed)))
    connection.execute(jobs.delete().where(condition))


def _is_of(owner: str | None) -> ColumnElement[bool]:
    return true() if owner is None else jobs.c.owner == owner


def _is(job_id: str, number: int) -> ColumnElement[bool]:
    return and_(volumes.c.job_id == job_id, volumes.c.number == number)


def _held(claim: Claim) -> ColumnElement[bool]:
    """Whether a claim is the latest one of a volume that is still being processed."""
    return and_(_is(*claim.volume), volumes.c.attempt == claim.attempt, volumes.c.state == "running")


def _interrupted(times: int) -> FailureError:
    return FailureError(
        "the endpoint was interrupted each time it processed this volume",
        found=f"{times} times",
        do="check the scan; report the id of the job to the server's operator",
    )


def _status(connection: Connection, rows: Sequence[Row[Any]]) -> list[JobStatus]:
    ids = [row.id for row in rows]
    of_job: dict[str, list[VolumeStatus]] = {each: [] for each in ids}
    found = select(volumes).where(volumes.c.job_id.in_(ids)).order_by(volumes.c.job_id, volumes.c.number)
    for row in connection.execute(found):
        problem = json.loads(row.problem) if row.problem is not None else None
        of_job[row.job_id].append(VolumeStatus(row.number, row.state, row.attempt, row.percent, problem, row.result))
    return [
        JobStatus(row.id, row.owner, row.priority, row.created_at, row.ended_at, row.cancelled, tuple(of_job[row.id]))
        for row in rows
    ]
