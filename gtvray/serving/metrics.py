"""Prometheus metrics: a gateway exposes its own at `/metrics`, a replica through Ray's metrics port on its node."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from gtvray.errors import InputError
from gtvray.io import read_text

if TYPE_CHECKING:
    from gtvray.serving.jobs.documents import QueueDocument
    from gtvray.serving.scaling import ReplicaCounts

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_DICE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_SHARES = [0.125, 0.25, 0.5, 0.75, 1.0]
_REGISTRY = CollectorRegistry()

REQUESTS = Counter("gtvray_requests", "HTTP requests", ("route", "method", "status"), registry=_REGISTRY)
SCANS = Counter("gtvray_scans", "Scans by outcome", ("outcome", "model"), registry=_REGISTRY)
SCAN_SECONDS = Histogram(
    "gtvray_scan_seconds", "Time from a complete body to its mask", ("model",), buckets=_SECONDS, registry=_REGISTRY
)
BODY_BYTES = Counter("gtvray_body_bytes", "Bytes of completely received bodies", registry=_REGISTRY)
OUT_OF_DOMAIN = Counter(
    "gtvray_scans_out_of_domain", "Segmented scans flagged as out of domain", ("model",), registry=_REGISTRY
)
PENDING = Gauge("gtvray_scans_in_progress", "Scans received and not yet answered", registry=_REGISTRY)
SPOOL_BYTES = Gauge("gtvray_spool_bytes", "Bytes of bodies in the spool", registry=_REGISTRY)
REPLICAS_LOST = Counter(
    "gtvray_attempts_lost",
    "Attempts lost because the replica died",
    ("scan",),
    registry=_REGISTRY,
)
MODEL = Gauge(
    "gtvray_model_info", "1 for the served version", ("model", "version", "digest", "golden"), registry=_REGISTRY
)
REPLICAS = Gauge("gtvray_model_replicas", "Model replicas", ("model", "state"), registry=_REGISTRY)
VERSIONS_REJECTED = Gauge(
    "gtvray_versions_rejected", "Versions rejected since the endpoint started", ("model",), registry=_REGISTRY
)
JOB_VOLUMES_QUEUED = Gauge("gtvray_job_volumes_queued", "Volumes of jobs that wait", registry=_REGISTRY)
JOB_VOLUMES_RUNNING = Gauge("gtvray_job_volumes_running", "Volumes of jobs in progress", registry=_REGISTRY)
JOB_WAIT_SECONDS = Gauge("gtvray_job_wait_seconds", "Expected wait of a new volume of a job", registry=_REGISTRY)
MEMORY_BYTES = Gauge("gtvray_gateway_memory_bytes", "Resident memory of the gateway's process", registry=_REGISTRY)

SHADOW_SCANS = Counter(
    "gtvray_shadow_scans", "Requests chosen for the shadow version", ("outcome",), registry=_REGISTRY
)
SHADOW_DICE = Histogram("gtvray_shadow_dice", "Dice of served and shadow version", buckets=_DICE, registry=_REGISTRY)


def exposition() -> tuple[bytes, str]:
    """The gateway's metrics as text, and their content type."""
    return generate_latest(_REGISTRY), CONTENT_TYPE_PLAIN_0_0_4


def set_models(described: Mapping[str, Mapping[str, Any]]) -> None:
    """Record which version of each model is served, by the model's name."""
    MODEL.clear()
    for model, version in described.items():
        MODEL.labels(model, *(version[name] for name in ("version", "digest", "golden"))).set(1)


def set_replicas(replicas: Mapping[str, ReplicaCounts]) -> None:
    """Record how many replicas each model has."""
    REPLICAS.clear()
    for model, counts in replicas.items():
        REPLICAS.labels(model, "running").set(counts.running)
        REPLICAS.labels(model, "starting").set(counts.starting)


def set_rejected(rejected: Mapping[str, int]) -> None:
    """Record how many versions of each model were rejected."""
    VERSIONS_REJECTED.clear()
    for model, count in rejected.items():
        VERSIONS_REJECTED.labels(model).set(count)


def set_queue(queue: QueueDocument | None) -> None:
    """Record the queue of jobs; None if the database does not respond."""
    JOB_VOLUMES_QUEUED.set(queue.queued if queue is not None else math.nan)
    JOB_VOLUMES_RUNNING.set(queue.running if queue is not None else math.nan)
    wait_s = queue.expected_wait_s if queue is not None else None
    JOB_WAIT_SECONDS.set(wait_s if wait_s is not None else math.nan)


def _resident_bytes() -> float:
    try:
        pages = int(read_text(Path("/proc/self/statm")).split()[1])
    except InputError:
        return math.nan
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


MEMORY_BYTES.set_function(_resident_bytes)


class ReplicaMetrics:
    """Metrics of a replica; Ray adds the labels of deployment and replica."""

    def __init__(self) -> None:
        from ray.util import metrics

        seconds = list(_SECONDS)
        self._stages = metrics.Histogram(
            "gtvray_stage_seconds", "Duration of a stage of a scan", boundaries=seconds, tag_keys=("stage",)
        )
        self._batches = metrics.Histogram("gtvray_batch_seconds", "Duration of a batch of patches", boundaries=seconds)
        self._fill = metrics.Histogram("gtvray_batch_fill", "Share of a batch's rows in use", boundaries=_SHARES)
        self._patches = metrics.Counter("gtvray_patches", "Patches processed by the network")
        self._queued = metrics.Gauge("gtvray_queued_patch_seconds", "Estimated seconds to process the queued patches")
        self._held = metrics.Gauge("gtvray_scan_memory_bytes", "Estimated memory of the scans in progress")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of a scan."""
        began = time.monotonic()
        yield
        self._stages.observe(time.monotonic() - began, tags={"stage": name})

    def batch(self, rows: int, size: int, batch_s: float, queued_s: float) -> None:
        """Record a batch, and the estimated seconds of queued patches after it."""
        self._batches.observe(batch_s)
        self._fill.observe(rows / size)
        self._patches.inc(rows)
        self._queued.set(queued_s)

    def queued(self, seconds: float) -> None:
        """Record the estimated seconds to process the queued patches."""
        self._queued.set(seconds)

    def held(self, count: int) -> None:
        """Record the estimated memory of the scans in progress, in bytes."""
        self._held.set(count)
