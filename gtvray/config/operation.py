"""Settings of tracking, promotion and the HTTP endpoint."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from gtvray.config.section import Section

# As browsers send it: no path, no slash at the end, no pattern.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


class TrackingConfig(Section):
    """MLflow tracking store and model registry."""

    uri: str | None = Field(None, description="MLflow tracking URI; by default SQLite in the workspace")
    experiment: str = Field("gtvray", min_length=1, description="MLflow experiment")
    model_name: str = Field(
        "gtvray-gtv", min_length=1, pattern=r"""^[^/:.%"']+$""", description="registered model name"
    )


class PromotionConfig(Section):
    """Requirements on a candidate's held-out scores."""

    min_difference_low: float = Field(
        0.0, ge=-1, le=1, description="minimum of the lower confidence bound of the paired DSC gain over the baseline"
    )
    min_cases: int = Field(3, ge=3, description="minimum number of held-out cases for a decision")


class ServingConfig(Section):
    """Size and limits of the endpoint."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    model_replicas: int = Field(1, ge=1, le=1024, description="number of model replicas")
    cpus_per_replica: float = Field(1.0, gt=0, description="CPUs of a model replica, also its thread count")
    gpus_per_replica: float = Field(0.0, ge=0, description="GPUs of a model replica")
    memory_gb_per_replica: float = Field(
        1.0, ge=0, description="memory that Ray reserves for a model replica on its node; 0: none"
    )
    max_upload_mb: int = Field(256, ge=1, le=4096, description="maximum size of a request body")
    max_volume_mb: int = Field(1024, ge=1, le=4096, description="maximum size of a decompressed volume")
    max_pending: int = Field(
        16, ge=1, le=10_000, description="requests in progress above which new ones are rejected with 503"
    )
    scans_in_memory: int = Field(4, ge=1, le=1024, description="decoded scans that a replica holds at once")
    timeout_s: float = Field(300.0, gt=0, description="time limit of a request")
    cors_origins: tuple[str, ...] = Field(
        (), description="origins of web pages that may call the endpoint from a browser, each as https://host[:port]"
    )

    @field_validator("cors_origins")
    @classmethod
    def _valid_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin: scheme://host[:port] in lower case, without a path")
        return value
