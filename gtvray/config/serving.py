"""Settings of the HTTP endpoint."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from gtvray.config.base import Section

# As browsers send it: no path, no slash at the end, and no pattern.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


class ServingConfig(Section):
    """Limits and size of the endpoint."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    model_replicas: int = Field(1, ge=1, le=1024, description="copies of the model")
    cpus_per_replica: float = Field(1.0, gt=0, description="CPUs of a model replica; its thread count")
    gpus_per_replica: float = Field(0.0, ge=0, description="GPUs of a model replica")
    max_upload_mb: int = Field(256, ge=1, le=4096, description="largest request body")
    max_volume_mb: int = Field(1024, ge=1, le=4096, description="largest inflated volume")
    max_pending: int = Field(16, ge=1, le=10_000, description="requests under way before others are sent away")
    scans_in_memory: int = Field(4, ge=1, le=1024, description="decoded scans a replica holds at once")
    timeout_s: float = Field(300.0, gt=0, description="longest time for one request")
    cors_origins: tuple[str, ...] = Field(
        (),
        description="origins of web pages that may call from a browser, each as https://host[:port]",
    )

    @field_validator("cors_origins")
    @classmethod
    def _origins_as_browsers_send_them(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin: scheme://host[:port] in small letters, without a path")
        return value
