"""Settings of tracking, promotion and the HTTP endpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from gtvray.config.section import Section

_MODEL_NAME = r"""^[^/:.%"']+$"""
# Without options, which would select another store, and without escapes.
_OBJECT_FOLDER = r"^(s3|gs)://[^/?#%@\\]+(/[^/?#%@\\]+)*/?$"
# As browsers send it: no path, no slash at the end, no pattern.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


class TrackingConfig(Section):
    """MLflow tracking store and model registry."""

    uri: str | None = Field(None, description="MLflow tracking URI; by default SQLite in the workspace")
    experiment: str = Field("gtvray", min_length=1, description="MLflow experiment")
    model_name: str = Field("gtvray-gtv", min_length=1, pattern=_MODEL_NAME, description="registered model name")


class PromotionConfig(Section):
    """Requirements on a candidate's held-out scores."""

    false_promotion_rate: float = Field(
        0.05,
        gt=0,
        le=0.2,
        description="maximum probability that any promotion based on the same held-out cases is of a model that is not "
        "better than its champion",
    )
    noninferiority_margin: float = Field(
        0.02, gt=0, le=0.2, description="loss of mean DSC that must be excluded to promote a model for a named gain"
    )
    max_hd95_increase_mm: float = Field(
        3.0, ge=0, description="increase of the mean HD95 over the champion's above which a candidate is refused"
    )
    min_case_dsc: float = Field(
        0.1, ge=0, le=1, description="DSC that a candidate must reach in every held-out case in which the champion does"
    )
    max_seconds: float | None = Field(None, gt=0, description="maximum time of the largest held-out scan")
    max_peak_mb: float | None = Field(None, gt=0, description="maximum memory of a process that predicts that scan")

    min_difference_low: float = Field(
        0.0, ge=-1, le=1, description="minimum of the lower confidence bound of the paired DSC gain over the baseline"
    )
    min_cases: int = Field(3, ge=3, description="minimum number of held-out cases for a decision")


class JobsConfig(Section):
    """Jobs of the endpoint."""

    at_once: int = Field(2, ge=1, le=1024, description="maximum job volumes that a gateway segments concurrently")
    keep_h: float = Field(
        24.0, gt=0, le=8760, description="hours that results are kept after a job's end; also the longest wait of a job"
    )
    max_gb: float = Field(20.0, gt=0, description="size of all stored inputs and results above which jobs are refused")
    max_volumes: int = Field(200, ge=1, le=10_000, description="maximum number of volumes of a job")
    roots: tuple[Path, ...] = Field((), description="folders whose files a job may name instead of sending them")
    uris: tuple[Annotated[str, Field(pattern=_OBJECT_FOLDER)], ...] = Field(
        (), description="folders in object stores whose objects a job may name by URI, such as s3://BUCKET/FOLDER"
    )

    @field_validator("roots")
    @classmethod
    def _absolute(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for root in value:
            if not root.is_absolute():
                raise ValueError(f"{root} is not an absolute path")
        return value


class ServingConfig(Section):
    """Size and limits of the endpoint."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    further_models: tuple[Annotated[str, Field(min_length=1, pattern=_MODEL_NAME)], ...] = Field(
        (), description="names of further registered models whose champions are served beside tracking.model_name"
    )
    model_replicas: int = Field(
        1,
        ge=0,
        le=1024,
        description="number of model replicas; with max_model_replicas the smallest one, or 0",
    )
    max_model_replicas: int | None = Field(
        None, ge=1, le=1024, description="largest number of model replicas, started by load; none: the number is fixed"
    )
    replica_queue_s: float = Field(
        30.0, gt=0, description="seconds of waiting patches per model replica above which another one is started"
    )
    replica_idle_s: float = Field(
        300.0, gt=0, description="seconds for which fewer model replicas must suffice before some are stopped"
    )
    cpus_per_replica: float = Field(1.0, gt=0, description="CPUs of a model replica, also its thread count")
    gpus_per_replica: float = Field(
        0.0, ge=0, le=1, description="GPUs of a model replica; 0.5 lets two replicas share a GPU"
    )
    memory_gb_per_replica: float = Field(
        1.0, ge=0, description="memory that Ray reserves for a model replica on its node; 0: none"
    )
    follow_s: float = Field(5.0, ge=0.1, description="seconds between checks for a new champion")
    interrupt_to_swap: bool = Field(
        False,
        description="stop the served version first where two versions do not fit; otherwise such a swap is refused",
    )
    shadow_version: int | None = Field(
        None,
        ge=1,
        description="version of tracking.model_name that also processes a share of the requests, after their answers; "
        "its masks are compared with those of the served version",
    )
    shadow_share: float = Field(
        0.1, gt=0, le=1, description="share of the requests for the shadow version, if no scan is in progress"
    )
    max_upload_mb: int = Field(256, ge=1, le=4096, description="maximum size of a request body")
    max_volume_mb: int = Field(1024, ge=1, le=4096, description="maximum size of a decompressed volume")
    max_pending: int = Field(
        16, ge=1, le=10_000, description="requests in progress above which new ones are rejected with 503"
    )
    scan_memory_gb: float = Field(
        2.0,
        ge=0.25,
        le=4096,
        description="memory for the scans that a replica processes at once, as estimated from their headers; a scan "
        "that takes more than three quarters of it is rejected",
    )
    spool_gb: float = Field(16.0, gt=0, description="disk space for request bodies on a node")
    client_spool_gb: float = Field(8.0, gt=0, description="disk space on a node for the request bodies of one client")
    min_upload_kb_per_s: int = Field(
        16, ge=1, description="rate below which a request body is rejected, as a mean over ten seconds"
    )
    client_requests_per_minute: int = Field(600, ge=1, description="requests of one client; further ones get 429")
    timeout_s: float = Field(300.0, gt=0, description="time limit of a request")
    jobs: JobsConfig = JobsConfig()
    tls_certificate: Path | None = Field(None, description="PEM file of the certificate with its chain; enables TLS")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key")
    traces_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="address of a collector for OpenTelemetry traces of requests (OTLP over HTTP), such as "
        "http://127.0.0.1:4318/v1/traces; none: no traces",
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="origins of web pages that may call the endpoint from a browser, each as https://host[:port]"
    )

    @model_validator(mode="after")
    def _valid_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are set together")
        return self

    @model_validator(mode="after")
    def _valid_replicas(self) -> Self:
        if self.max_model_replicas is None:
            if not self.model_replicas:
                raise ValueError("model_replicas is 0 and max_model_replicas is not set")
        elif self.max_model_replicas < self.model_replicas:
            raise ValueError("max_model_replicas is below model_replicas")
        return self

    @property
    def initial_replicas(self) -> int:
        """Model replicas of a version that starts, at least one to reproduce its golden cases."""
        return max(1, self.model_replicas)

    @property
    def drain_s(self) -> float:
        """Time after which requests in progress have ended when the endpoint is stopped."""
        return self.timeout_s + 30.0

    @property
    def spool_limit_bytes(self) -> int:
        """Disk space for request bodies."""
        return int(self.spool_gb * 1e9)

    @property
    def client_spool_limit_bytes(self) -> int:
        """Disk space for the request bodies of one client."""
        return int(self.client_spool_gb * 1e9)

    @field_validator("cors_origins")
    @classmethod
    def _valid_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin: scheme://host[:port] in lower case, without a path")
        return value
