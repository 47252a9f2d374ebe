"""Arguments that the functions of the API share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gtvray.config import Config, load_config, with_dotted
from gtvray.errors import InputError
from gtvray.io import Workspace

ConfigLike = Config | Mapping[str, Any] | str | os.PathLike[str] | None
PathLike = str | os.PathLike[str]
WORKSPACE = Path("gtvray-runs")


def as_config(config: ConfigLike) -> Config:
    """Return a config: itself, the defaults with dotted keys changed, a YAML file, or the defaults.

    Raises:
        NotFoundError: no such file.
        ConfigError: an unknown key, a wrong type, or a value out of range.
    """
    if isinstance(config, Config):
        return config
    if isinstance(config, Mapping):
        return with_dotted(Config(), config, "config")
    return load_config(Path(config) if config is not None else None)


def as_changes(config: ConfigLike) -> Mapping[str, Any]:
    """Return the settings of a resumed training that are changed, by dotted key.

    Raises:
        InputError: a whole config, which the training has itself.
    """
    if config is None or isinstance(config, Mapping):
        return config or {}
    raise InputError(
        "a resumed training has its own settings",
        where="config",
        expected="a mapping of the settings to change",
        found=type(config).__name__,
        do="pass a mapping, such as {'tracking.uri': 'http://mlflow:5000'}, or omit it",
    )


def as_workspace(workspace: Workspace | PathLike) -> Workspace:
    """Return a workspace, given itself or its folder."""
    return workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
