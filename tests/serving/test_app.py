"""What the application and its config file refuse before anything runs."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gtvray.config import ServingConfig, build
from gtvray.errors import AuthError, BundleError, BusyError, ConfigError, DeadlineError, ResourceError, VolumeError
from gtvray.models import Bundle
from gtvray.serving import AppArguments, build_app, predict_remote
from gtvray.serving.arguments import DeployFile
from gtvray.serving.auth import TOKEN_VARIABLE, check_token, read_token
from gtvray.serving.model import Model
from gtvray.serving.problems import error_of, problem_response
from gtvray.serving.server import read_deploy_file

from .conftest import TOKEN, free_port, make_scan

CONFIG = Path(__file__).parents[2] / "serve" / "config.yaml"


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)


def shipped() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    return values


def test_shipped_file_is_sound_for_serve_and_for_us() -> None:
    from ray.serve.schema import ServeDeploySchema

    theirs = ServeDeploySchema.model_validate(shipped())
    ours = read_deploy_file()
    assert theirs.http_options.port == ours.http_options.port == ServingConfig().port
    assert ours.applications[0].args.serving == ServingConfig(), "the file shows the defaults"
    assert ours.http_options.request_timeout_s > ours.applications[0].args.serving.timeout_s
    from gtvray.deploy.app import build as target

    assert target is build_app


@pytest.mark.parametrize("path", [[], ["http_options"], ["applications", 0], ["applications", 0, "args"]])
def test_unknown_key_in_the_file_is_refused(path: list[Any]) -> None:
    values = shipped()
    place: Any = values
    for step in path:
        place = place[step]
    place["max_uplaod_mb"] = 5
    with pytest.raises(ConfigError, match="unknown config key"):
        build(DeployFile, values, "test")


def test_app_says_what_is_wrong_with_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown config key") as unknown:
        build_app({"serving": {"max_uplaod_mb": 5}})
    assert "max_upload_mb" in str(unknown.value)
    with pytest.raises(BundleError, match="no bundle here"):
        build_app({"bundle": str(tmp_path)})
    monkeypatch.delenv(TOKEN_VARIABLE)
    with pytest.raises(ConfigError, match="no token"):
        build_app({})
    (tmp_path / "token").write_text(" \n")
    with pytest.raises(ConfigError, match="no token"):
        build_app({"token_file": tmp_path / "token"})
    with pytest.raises(ConfigError, match="cannot be read"):
        build_app({"token_file": tmp_path / "other"})


def test_token_file_comes_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    assert read_token(tmp_path / "token") == "from-file"
    check_token("bearer from-file", "from-file")
    for header in (None, "", "Bearer", "Bearer from-fil", "Bearer from-filé", "from-file"):
        with pytest.raises(AuthError):
            check_token(header, "from-file")


def test_model_refuses_another_bundle(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="another bundle than asked for"):
        Model(AppArguments(bundle=bundle.folder, digest="0" * 64))


def test_front_loads_no_torch_and_client_no_ray() -> None:
    probe = (
        "import sys, gtvray.serving.{0}; print([m for m in ('torch', 'monai', 'mlflow', 'ray') if m in sys.modules])"
    )
    for module, loaded in (("app", "['ray']"), ("client", "[]")):
        done = subprocess.run([sys.executable, "-c", probe.format(module)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == loaded


def test_unforeseen_error_is_told_without_its_insides(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("ray.serve").propagate = True
    with caplog.at_level("ERROR"):
        answer = problem_response(RuntimeError("/secret/path"), "id-1")
    assert answer.status_code == 500
    assert b"secret" not in answer.body
    assert b"id-1" in answer.body
    assert "request=id-1" in caplog.text


@pytest.mark.parametrize("error", [VolumeError("v", found="x"), BusyError("b"), DeadlineError("d"), AuthError("a")])
def test_problem_leads_back_to_its_error(error: Any) -> None:
    back = error_of(error.problem("id-1"), "http://server")
    assert type(back) is type(error)
    assert back.what == error.what
    assert "id-1" in str(back)
    assert back.fields.items() >= error.fields.items()


def test_nobody_listening_is_told() -> None:
    with pytest.raises(ResourceError, match="no server answers"):
        predict_remote(f"http://127.0.0.1:{free_port()}", TOKEN, make_scan((20, 20, 20)))
