"""What a Serve config file tells us, held strictly: Serve's own schema lets unknown keys pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gtvray.config import Section, ServingConfig


class AppArguments(Section):
    """`args` of the application."""

    bundle: Path | None = Field(None, description="folder of the bundle to serve; none: not ready yet")
    digest: str | None = Field(None, description="refuse to serve any other bundle than this one")
    golden: Path | None = Field(None, description="golden cases to reproduce before it is ready; none: ready without")
    version: str = Field("unversioned", description="the model's version as the registry counts it")
    token_file: Path | None = Field(None, description="file that holds the bearer token; else GTVRAY_TOKEN")
    spool_dir: Path | None = Field(None, description="where uploads wait; default: the system's temporary folder")
    serving: ServingConfig = ServingConfig()


class HttpOptions(Section):
    """Where Serve listens."""

    host: str
    port: int
    request_timeout_s: float


class Application(Section):
    """The one application of the file."""

    name: Literal["gtvray"]
    route_prefix: str
    import_path: Literal["gtvray.deploy.app:build"]
    logging_config: dict[str, Any]
    args: AppArguments


class DeployFile(Section):
    """A file for `serve deploy`, as far as gtvray uses it."""

    proxy_location: Literal["EveryNode", "HeadOnly"]
    http_options: HttpOptions
    logging_config: dict[str, Any]
    applications: tuple[Application]
