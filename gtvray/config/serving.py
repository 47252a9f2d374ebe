"""Settings of the HTTP endpoint."""

from __future__ import annotations

from pydantic import Field

from gtvray.config.base import Section


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
