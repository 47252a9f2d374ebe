"""The settings files in `serve/` are valid, and name the hardware that they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gtvray.config import JobsConfig, ServingConfig, load_config
from gtvray.errors import ConfigError
from gtvray.serving import AppArguments

FOLDER = Path(__file__).parents[2] / "serve"


@pytest.mark.parametrize("name", ["laptop", "gpu", "cluster"])
def test_settings_file_is_valid(name: str, tmp_path: Path) -> None:
    file = FOLDER / f"{name}.yaml"
    text = file.read_text()
    before = text.partition("serving:")[0]
    assert all(line.startswith("#") for line in before.splitlines())
    assert [word for word in ("Purpose:", "Hardware:") if word not in before] == []
    serving = load_config(file).serving
    assert serving != ServingConfig()
    assert name == "laptop" or serving.memory_gb_per_replica > serving.scan_memory_gb, "the model needs memory too"
    assert (serving.max_model_replicas is not None, serving.host == "0.0.0.0") == (name == "cluster",) * 2
    assert (serving.gpus_per_replica > 0) == (name != "laptop")
    (tmp_path / "wrong.yaml").write_text(text + "  max_uplaod_mb: 5\n")
    with pytest.raises(ConfigError, match="unknown setting"):
        load_config(tmp_path / "wrong.yaml")


def test_every_file_is_known() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == {"config", "laptop", "gpu", "cluster"}


def test_config_for_serve_deploy_shows_every_setting() -> None:
    (application,) = yaml.safe_load((FOLDER / "config.yaml").read_text())["applications"]
    args = application["args"]
    assert set(args) == set(AppArguments.model_fields)
    assert set(args["serving"]) == set(ServingConfig.model_fields)
    assert set(args["serving"]["jobs"]) == set(JobsConfig.model_fields)
