"""Records that the job store accepts and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Priority = Literal["low", "normal", "high"]
VolumeState = Literal["queued", "running", "done", "failed", "cancelled"]
OPEN = ("queued", "running")


@dataclass(frozen=True)
class Requester:
    """The client of a request for jobs.

    Attributes:
        name: name of the client.
        sees_all: whether it may list, read and cancel the jobs of other clients.
    """

    name: str
    sees_all: bool = False

    @property
    def owner(self) -> str | None:
        """The client whose jobs it may read and cancel; None for all clients."""
        return None if self.sees_all else self.name


@dataclass(frozen=True)
class NewVolume:
    """A volume of a job to be accepted.

    Attributes:
        reference: whether the volume is a referenced file instead of a stored input.
        stored_bytes: size of the stored input, or of the reference.
        digest: sha256 of the content, or of the reference.
        input: encrypted data needed to read the input: its size, digest and key, or the reference.
    """

    reference: bool
    stored_bytes: int
    digest: str
    input: bytes = field(repr=False)


@dataclass(frozen=True)
class NewJob:
    """A job to be accepted.

    Attributes:
        id: its id.
        owner: the client.
        key_digest: digest of the idempotency key; None without one.
        input_digest: digest of volumes, priority and model, which a repeated request must match.
        priority: its priority.
        volumes: its volumes.
        model: name of the model; None for the default.
    """

    id: str
    owner: str
    key_digest: str | None
    input_digest: str
    priority: Priority
    volumes: tuple[NewVolume, ...]
    model: str | None = None


@dataclass(frozen=True)
class Accepted:
    """A job in the table, and the digest of what it was accepted with."""

    id: str
    input_digest: str


@dataclass(frozen=True)
class Claim:
    """A volume to be processed, under a lease.

    Attributes:
        job_id, number: the volume.
        owner: the client that the job belongs to.
        attempt: number of this claim.
        reference: as in `NewVolume`.
        input: as in `NewVolume`.
        model: as in `NewJob`.
    """

    job_id: str
    number: int
    owner: str
    attempt: int
    reference: bool
    input: bytes = field(repr=False)
    model: str | None = None

    @property
    def volume(self) -> tuple[str, int]:
        """Job and number."""
        return self.job_id, self.number


@dataclass(frozen=True)
class StoredVolume:
    """A volume whose files may be in the job store; fields as in the table."""

    job_id: str
    number: int
    attempt: int
    state: VolumeState


@dataclass(frozen=True)
class VolumeStatus:
    """A volume of a job; fields as in the table."""

    number: int
    state: VolumeState
    attempt: int
    percent: float
    problem: dict[str, Any] | None
    result: bytes | None


@dataclass(frozen=True)
class JobStatus:
    """A job; times in seconds since 1970."""

    id: str
    owner: str
    priority: Priority
    created_at: float
    ended_at: float | None
    cancelled: bool
    volumes: tuple[VolumeStatus, ...]


@dataclass(frozen=True)
class QueueStatus:
    """The queue of all clients.

    Attributes:
        queued, running: number of volumes.
        mean_s: mean processing time of the volumes completed most recently; None if there are none.
    """

    queued: int
    running: int
    mean_s: float | None
