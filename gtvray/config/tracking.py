"""Settings of run tracking."""

from __future__ import annotations

from pydantic import Field

from gtvray.config.base import Section


class TrackingConfig(Section):
    """Where MLflow keeps runs and models."""

    uri: str | None = Field(None, description="MLflow tracking URI; SQLite in the working folder if not given")
    experiment: str = Field("gtvray", min_length=1, description="MLflow experiment")
    model_name: str = Field(
        "gtvray-gtv", min_length=1, pattern=r"""^[^/:.%"']+$""", description="name in the model registry"
    )
