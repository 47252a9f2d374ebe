"""Validation of the application's arguments, tokens, problem documents, and what each process imports."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gtvray.errors import AuthError, BundleError, BusyError, ConfigError, DeadlineError, ResourceError, VolumeError
from gtvray.models import Bundle
from gtvray.serving import AppArguments, Client, build_app
from gtvray.serving.app import build_model_app
from gtvray.serving.arguments import TOKEN_VARIABLE, parse_arguments, read_shipped_config, read_token
from gtvray.serving.problems import error_of, problem_response
from gtvray.serving.replica.deployment import Model

from ..ports import free_port
from .conftest import TOKEN, make_scan, predict_remote

CONFIG = Path(__file__).parents[2] / "serve" / "config.yaml"


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)


def test_shipped_config_is_valid_for_serve_and_shows_the_defaults() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = read_shipped_config()
    assert config == yaml.safe_load(CONFIG.read_text())
    assert ServeDeploySchema.model_validate(config).proxy_location == "Disabled"
    (application,) = config["applications"]
    assert parse_arguments(application["args"]) == AppArguments(), "the file shows the defaults"
    assert application["import_path"] == "gtvray.deploy.app:build"
    from gtvray.deploy.app import build as target

    assert target is build_app


@pytest.mark.parametrize(
    "unknown",
    [{"max_uplaod_mb": 5}, {"serving": {"max_uplaod_mb": 5}}, {"serving.max_uplaod_mb": 5}, {"sreving.max_pending": 5}],
)
def test_unknown_argument_is_rejected(unknown: dict[str, Any]) -> None:
    (application,) = read_shipped_config()["applications"]
    with pytest.raises(ConfigError, match="unknown setting"):
        build_app({**application["args"], **unknown})


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_replica_requests_its_share_of_a_gpu(share: float, bundle: Bundle) -> None:
    arguments = parse_arguments({"bundle": str(bundle.folder), "serving.gpus_per_replica": share})
    options = build_model_app(arguments)._bound_deployment.ray_actor_options
    assert options["num_gpus"] == share
    with pytest.raises(ConfigError, match="gpus_per_replica"):
        parse_arguments({"serving.gpus_per_replica": 1.5})


def test_nested_and_dotted_arguments_are_equal() -> None:
    assert parse_arguments({"serving.max_pending": 3}) == parse_arguments({"serving": {"max_pending": 3}})
    with pytest.raises(ConfigError, match="set twice"):
        parse_arguments({"serving.max_pending": 3, "serving": {"max_pending": 3}})


def test_invalid_arguments_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown setting") as unknown:
        build_app({"serving": {"max_uplaod_mb": 5}})
    assert "max_upload_mb" in str(unknown.value)
    with pytest.raises(BundleError, match="no bundle in this folder"):
        build_app({"bundle": str(tmp_path)})
    with pytest.raises(ConfigError, match="needs the process of `gtvray serve`"):
        build_app({"serving.shadow_version": 8})
    monkeypatch.delenv(TOKEN_VARIABLE)
    with pytest.raises(ConfigError, match="no token"):
        build_app({})
    (tmp_path / "token").write_text(" \n")
    with pytest.raises(ConfigError, match="no token"):
        build_app({"token_file": tmp_path / "token"})
    with pytest.raises(ConfigError, match="cannot be read"):
        build_app({"token_file": tmp_path / "other"})


def test_token_file_takes_precedence_over_the_environment(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    assert read_token(tmp_path / "token") == "from-file"


def test_model_rejects_a_bundle_with_another_digest(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="another digest"):
        Model(AppArguments(bundle=bundle.folder, digest="0" * 64))


@pytest.mark.parametrize(
    ("module", "loaded"), [("gtvray.serving.app", ["ray"]), ("gtvray.serving.client.client", []), ("gtvray.client", [])]
)
def test_api_loads_no_torch_and_client_neither_torch_nor_ray(module: str, loaded: list[str]) -> None:
    probe = f"import sys, {module}; print([m for m in ('torch', 'monai', 'mlflow', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(loaded)


def test_gtvray_client_exports_the_serving_client() -> None:
    from gtvray import client

    assert client.Client is Client
    assert {"AsyncClient", "Client", "RemoteResult", "Retry", "Timeouts"} <= set(client.__all__)


def test_unexpected_error_is_logged_and_not_sent_to_the_client(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("ray.serve").propagate = True
    with caplog.at_level("ERROR"):
        response = problem_response(RuntimeError("/secret/path"), "id-1")
    assert response.status_code == 500
    assert b"secret" not in response.body
    assert b"id-1" in response.body
    assert "request=id-1" in caplog.text


@pytest.mark.parametrize("error", [VolumeError("v", found="x"), BusyError("b"), DeadlineError("d"), AuthError("a")])
def test_problem_document_converts_back_to_its_error(error: Any) -> None:
    converted = error_of(error.problem("id-1"), "http://server")
    assert type(converted) is type(error)
    assert converted.what == error.what
    assert "id-1" in str(converted)
    assert converted.fields.items() >= error.fields.items()


def test_unreachable_server_is_reported() -> None:
    with pytest.raises(ResourceError, match="no server responds"):
        predict_remote(f"http://127.0.0.1:{free_port()}", TOKEN, make_scan((20, 20, 20)))
