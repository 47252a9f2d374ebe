"""A champion changed in MLflow is refused before held-out cases are scored, and restored to the last decision."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from gtvray.cli.main import app
from gtvray.errors import InputError, NotFoundError, NotReadyError
from gtvray.io import Workspace
from gtvray.promotion import Evidence, require_champion
from gtvray.tracking import connect_mlflow

from ..bundles import random_bundle
from .conftest import Promotions


def test_moved_or_removed_alias_is_restored(promotions: Promotions, client: MlflowClient) -> None:
    promotions.promote(0)
    promotions.promote(1)
    client.set_registered_model_alias(promotions.name, "champion", "1")
    error = promotions.refused()
    assert error.fields["found"] == "the alias champion points to version 1"
    command = shlex.split(error.fields["do"].partition("restore it: ")[2])
    assert command == ["gtvray", "rollback", "--restore", "--workspace", str(promotions.root)]
    assert promotions.restore() == "2"
    client.delete_registered_model_alias(promotions.name, "champion")
    assert promotions.refused().fields["found"] == "the alias champion was removed"
    assert promotions.restore() == "2"
    champion = require_champion(promotions.registry, promotions.log)
    assert champion is not None
    assert champion.version == "2"
    assert promotions.restore() == "2", "a second restore changes nothing"
    kinds = [decision.kind for decision in promotions.log.decisions()]
    assert kinds == ["promoted", "promoted", "restored", "restored"]
    assert promotions.rollback() == "1"


def test_deleted_champion_is_registered_again_with_its_golden_cases(
    promotions: Promotions, client: MlflowClient, tmp_path: Path
) -> None:
    promotions.promote(0)
    promotions.promote(1)
    bundle = promotions.bundle(1)
    client.delete_model_version(promotions.name, "2")
    assert "the version was deleted in MLflow" in promotions.refused().fields["found"]
    version = promotions.restore()
    assert version == "3"
    champion = require_champion(promotions.registry, promotions.log)
    assert champion is not None
    assert champion.version == "3"
    assert promotions.registry.champion().digest == bundle.digest
    promotions.registry.fetch_golden(promotions.registry.champion(), tmp_path / "fetched")
    assert bundle.digest in (tmp_path / "fetched" / "golden.json").read_text()
    assert promotions.rollback() == "1"


def test_deleted_model_is_registered_again_and_reused_numbers_are_not_trusted(
    promotions: Promotions, client: MlflowClient
) -> None:
    """MLflow reuses the version numbers of a deleted model."""
    promotions.promote(0)
    promotions.promote(1)
    bundle = promotions.bundle(1)
    client.delete_registered_model(promotions.name)
    assert "its registered model was deleted as well" in promotions.refused().fields["found"]
    assert promotions.restore() == "1"
    assert promotions.registry.champion().digest == bundle.digest
    with pytest.raises(NotFoundError, match="was deleted in MLflow"):
        promotions.rollback()


def test_another_bundle_under_the_champions_number_is_detected(promotions: Promotions, client: MlflowClient) -> None:
    promotions.promote(0)
    client.delete_registered_model(promotions.name)
    other = random_bundle(promotions.root / "other", 7, {"mlflow_run": promotions.run_id})
    version = promotions.registry.register(other, promotions.run_id)
    promotions.registry.point_champion(version.version)
    assert version.version == "1"
    promotions.refused()
    assert promotions.restore() == "2"


def test_rollback_to_a_deleted_version_is_refused(promotions: Promotions, client: MlflowClient) -> None:
    promotions.promote(0)
    promotions.promote(1)
    client.delete_model_version(promotions.name, "1")
    with pytest.raises(NotFoundError, match="was deleted in MLflow"):
        promotions.rollback()
    assert promotions.registry.champion().version == "2"


def test_missing_or_deleted_training_run_is_refused(promotions: Promotions, client: MlflowClient) -> None:
    promotions.registry.require_run(promotions.run_id)
    with pytest.raises(NotFoundError, match="not in this MLflow"):
        promotions.registry.require_run("0" * 32)
    client.delete_run(promotions.run_id)
    with pytest.raises(InputError, match="run was deleted") as caught:
        promotions.registry.require_run(promotions.run_id)
    assert f"runs restore --run-id {promotions.run_id}" in caught.value.fields["do"]


def test_deleted_lease_keeps_the_order_of_decisions(promotions: Promotions, client: MlflowClient) -> None:
    """In MLflow's list of models a lease looks like an unused model."""
    promotions.promote(0)
    promotions.promote(1)
    client.delete_registered_model(f"{promotions.name}.lease.2")
    assert promotions.promote(2) == "3"
    assert [decision.number for decision in promotions.log.decisions()] == [1, 2, 3]
    assert promotions.rollback() == "2"
    assert promotions.rollback() == "1"


def test_restore_without_a_promotion_is_refused(promotions: Promotions) -> None:
    assert require_champion(promotions.registry, promotions.log) is None
    with pytest.raises(NotReadyError, match="nothing was promoted"):
        promotions.restore()


def test_changed_champion_is_refused_before_held_out_cases_are_scored(
    client: MlflowClient, tmp_path: Path, make_evidence: Callable[..., Evidence]
) -> None:
    """No scan is prepared either: the dataset is not even opened."""
    workspace = Workspace(tmp_path / "o'neill runs")
    workspace.root.mkdir()
    shutil.copy(client.tracking_uri.removeprefix("sqlite:///"), workspace.mlflow_database)
    own = connect_mlflow(workspace.mlflow_uri, workspace.artifacts)
    experiment = own.create_experiment("own", artifact_location=workspace.artifacts.as_uri())
    promotions = Promotions(own, workspace.root, str(own.create_run(experiment).info.run_id), make_evidence)
    promotions.promote(0)
    bundle = promotions.bundle(1)
    own.delete_model_version(promotions.name, "1")
    settings = ["--workspace", str(workspace.root), "-s", f"tracking.model_name={promotions.name}"]

    def call(*arguments: str) -> BaseException | None:
        return CliRunner().invoke(app, [*arguments, *settings]).exception

    promote_again = ["promote", str(bundle.folder), "--data", str(tmp_path / "missing dataset")]
    error = call(*promote_again)
    assert isinstance(error, InputError)
    assert "changed outside the gate" in error.what
    assert not workspace.ledger.exists()
    command = shlex.split(error.fields["do"].partition("restore it: ")[2])
    assert call(*command[1:3]) is None
    error = call(*promote_again)
    assert isinstance(error, InputError)
    assert "missing dataset" in error.fields["where"]
    assert promotions.registry.champion().version == "2"
