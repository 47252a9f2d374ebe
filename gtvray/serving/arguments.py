"""Arguments of the Serve application, its bearer token, and the shipped Serve config file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from gtvray.config import Section, ServingConfig, TrackingConfig, build, nested
from gtvray.errors import ConfigError, InputError
from gtvray.io import decode_text, read_text

TOKEN_VARIABLE = "GTVRAY_TOKEN"  # noqa: S105  # the variable's name


class AppArguments(Section):
    """`args` of the application in a Serve config file."""

    bundle: Path | None = Field(None, description="folder of the bundle to serve; without one, /readyz answers 503")
    digest: str | None = Field(None, description="digest that the bundle must have; any other bundle is rejected")
    golden: Path | None = Field(
        None, description="folder of the golden cases that a replica must reproduce to become ready; default: no check"
    )
    model_name: str = Field(TrackingConfig().model_name, description="name of the registered model")
    version: str = Field("unversioned", description="version of the model in the registry")
    override: str = Field("", description="reason given for overriding the promotion gate for this version, if any")
    versions: Path | None = Field(
        None, description="file that names the served version, written by `gtvray serve`; replaces bundle"
    )
    further_models: dict[str, Path] = Field(
        {}, description="further registered models by name, each with a file like `versions`"
    )
    shadow: Path | None = Field(
        None, description="file that names the shadow version, written by `gtvray serve`; default: no shadow version"
    )
    token_file: Path | None = Field(
        None, description="file with the bearer token; default: the environment variable GTVRAY_TOKEN"
    )
    tokens: Path | None = Field(
        None, description="file of the clients' tokens, written by `gtvray token`, readable from every node"
    )
    audit: Path | None = Field(None, description="folder of the audit log; default: no audit log")
    logs: Path | None = Field(
        None, description="folder of the gateways' logs; default: only the log files of Ray's session"
    )
    spool_dir: Path | None = Field(
        None,
        description="folder of the upload spool; default: the system's temporary folder, or /var/tmp if that is in "
        "memory",
    )
    jobs_dir: Path | None = Field(
        None, description="folder of the job store; without one, the endpoint accepts no jobs"
    )
    serving: ServingConfig = ServingConfig()


def parse_arguments(values: Mapping[str, Any]) -> AppArguments:
    """Validate `args` of a Serve config file, nested or dotted; Serve's own schema lets unknown keys pass.

    Raises:
        ConfigError: an unknown key, a wrong type, or a value out of range.
    """
    where = "args of the Serve application"
    return build(AppArguments, nested(values, where), where)


def read_shipped_config() -> dict[str, Any]:
    """Read `serve/config.yaml`, in the format of `serve deploy`."""
    source = resources.files("gtvray.deploy") / "config.yaml"
    config: dict[str, Any] = yaml.safe_load(decode_text(source.read_bytes(), source))
    return config


def read_token(token_file: Path | None) -> str:
    """Read the bearer token from a file or, without one, from the environment variable GTVRAY_TOKEN.

    Raises:
        ConfigError: the file cannot be read, or there is no token.
    """
    if token_file is None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
    else:
        try:
            token = read_text(token_file).strip()
        except InputError as error:
            found = error.fields.get("found", error.what)
            raise ConfigError(
                "the token file cannot be read",
                where=token_file,
                found=found,
                do="check that the file exists and is readable on every node",
            ) from error
    if not token:
        raise ConfigError(
            "no token is configured, but the endpoint requires one",
            where=token_file or TOKEN_VARIABLE,
            do=f"set {TOKEN_VARIABLE}, or set token_file to a file that contains the token",
        )
    return token
