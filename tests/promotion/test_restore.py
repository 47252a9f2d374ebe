"""A champion that was changed in MLflow: told of before a look is spent, and put back as it was decided."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from gtvray.cli.main import app
from gtvray.config import PromotionConfig
from gtvray.errors import InputError, NotFoundError, NotReadyError
from gtvray.io import Workspace
from gtvray.models import Bundle
from gtvray.promotion import DecisionLog, Evidence, promote, require_champion, restore, rollback
from gtvray.registry import Registry
from gtvray.tracking import connect_mlflow

from ..bundles import random_bundle


class Place:
    """A workspace's registry and decisions."""

    def __init__(self, client: MlflowClient, root: Path, run_id: str, evidence: Callable[..., Evidence]) -> None:
        self.name = f"model-{root.name}".replace("'", "")
        self.root, self.run_id, self._evidence = root, run_id, evidence
        self.registry = Registry(client, self.name, root / "bundles")
        self.log = DecisionLog(root / "decisions.jsonl")

    def promote(self, seed: int) -> Bundle:
        bundle = random_bundle(self.root / f"made-{seed}", seed, {"mlflow_run": self.run_id, "config": {}})
        golden = self.root / "golden" / bundle.digest[:16]
        golden.mkdir(parents=True)
        (golden / "golden.json").write_text(f'{{"digest": "{bundle.digest}"}}')
        settings = PromotionConfig()
        evidence = self._evidence(bundle.digest)
        promote(bundle, self.run_id, evidence, config=settings, registry=self.registry, log=self.log, golden=golden)
        return bundle

    def restore(self) -> str:
        return restore(self.registry, self.log, self.root / "bundles", self.root / "golden").version

    def refused(self) -> InputError:
        with pytest.raises(InputError, match="changed from outside") as caught:
            require_champion(self.registry, self.log)
        return caught.value


@pytest.fixture
def place(client: MlflowClient, tmp_path: Path, run_id: str, make_evidence: Callable[..., Evidence]) -> Place:
    return Place(client, tmp_path, run_id, make_evidence)


def test_an_alias_that_was_moved_or_removed_is_set_back(place: Place, client: MlflowClient) -> None:
    place.promote(0)
    place.promote(1)
    client.set_registered_model_alias(place.name, "champion", "1")
    error = place.refused()
    assert error.fields["found"] == "the alias champion points to version 1"
    advice = shlex.split(error.fields["do"].partition("restore it: ")[2])
    assert advice == ["gtvray", "rollback", "--restore", "--workspace", str(place.root)]
    assert place.restore() == "2"
    client.delete_registered_model_alias(place.name, "champion")
    assert place.refused().fields["found"] == "the alias champion was removed"
    assert place.restore() == "2"
    assert require_champion(place.registry, place.log) == "2"
    assert place.restore() == "2", "nothing is left to restore"
    kinds = [decision.kind for decision in place.log.decisions()]
    assert kinds == ["promoted", "promoted", "restored", "restored"]
    assert rollback(place.registry, place.log).version == "1"


def test_a_deleted_champion_is_registered_again_with_its_golden_cases(
    place: Place, client: MlflowClient, tmp_path: Path
) -> None:
    place.promote(0)
    bundle = place.promote(1)
    client.delete_model_version(place.name, "2")
    assert "the version was deleted in MLflow" in place.refused().fields["found"]
    version = place.restore()
    assert version == "3"
    assert require_champion(place.registry, place.log) == "3"
    assert place.registry.champion().digest == bundle.digest
    place.registry.fetch_golden(place.registry.champion(), tmp_path / "fetched")
    assert bundle.digest in (tmp_path / "fetched" / "golden.json").read_text()
    assert rollback(place.registry, place.log).version == "1"


def test_a_deleted_model_is_registered_again_and_its_numbers_are_not_mixed_up(
    place: Place, client: MlflowClient
) -> None:
    """MLflow gives the numbers of a deleted model out again, for other bundles."""
    place.promote(0)
    bundle = place.promote(1)
    client.delete_registered_model(place.name)
    assert "its registered model was deleted, too" in place.refused().fields["found"]
    assert place.restore() == "1"
    assert place.registry.champion().digest == bundle.digest
    with pytest.raises(NotReadyError, match="no champion to go back to"):
        rollback(place.registry, place.log)


def test_another_bundle_under_the_champions_number_is_noticed(place: Place, client: MlflowClient) -> None:
    place.promote(0)
    client.delete_registered_model(place.name)
    other = random_bundle(place.root / "other", 7, {"mlflow_run": place.run_id})
    version = place.registry.register(other, place.run_id)
    place.registry.point_champion(version.version)
    assert version.version == "1"
    place.refused()
    assert place.restore() == "2"


def test_a_deleted_version_to_go_back_to_is_told_of(place: Place, client: MlflowClient) -> None:
    place.promote(0)
    place.promote(1)
    client.delete_model_version(place.name, "1")
    with pytest.raises(NotFoundError, match="was deleted in MLflow"):
        rollback(place.registry, place.log)
    assert place.registry.champion().version == "2"


def test_a_run_that_is_not_there_or_was_deleted_is_told_of(place: Place, client: MlflowClient) -> None:
    place.registry.require_run(place.run_id)
    with pytest.raises(NotFoundError, match="not in this MLflow"):
        place.registry.require_run("0" * 32)
    client.delete_run(place.run_id)
    with pytest.raises(InputError, match="run was deleted") as caught:
        place.registry.require_run(place.run_id)
    assert f"runs restore --run-id {place.run_id}" in caught.value.fields["do"]


def test_nothing_is_restored_where_nothing_was_decided(place: Place) -> None:
    assert require_champion(place.registry, place.log) is None
    with pytest.raises(NotReadyError, match="nothing was decided here"):
        place.restore()


def test_no_look_is_spent_where_the_champion_was_changed(
    client: MlflowClient, tmp_path: Path, make_evidence: Callable[..., Evidence]
) -> None:
    """Neither are scans prepared: the data are not even looked for."""
    workspace = Workspace(tmp_path / "o'neill runs")
    workspace.root.mkdir()
    shutil.copy(client.tracking_uri.removeprefix("sqlite:///"), workspace.mlflow_database)
    own = connect_mlflow(workspace.mlflow_uri, workspace.artifacts)
    experiment = own.create_experiment("own", artifact_location=workspace.artifacts.as_uri())
    place = Place(own, workspace.root, str(own.create_run(experiment).info.run_id), make_evidence)
    bundle = place.promote(0)
    own.delete_model_version(place.name, "1")
    settings = ["--workspace", str(workspace.root), "-s", f"tracking.model_name={place.name}"]

    def call(*arguments: str) -> BaseException | None:
        return CliRunner().invoke(app, [*arguments, *settings]).exception

    promote_again = ["promote", str(bundle.folder), "--data", str(tmp_path / "not looked for")]
    error = call(*promote_again)
    assert isinstance(error, InputError)
    assert "changed from outside" in error.what
    assert not workspace.ledger.exists()
    advice = shlex.split(error.fields["do"].partition("restore it: ")[2])
    assert call(*advice[1:3]) is None
    error = call(*promote_again)
    assert isinstance(error, InputError)
    assert "not looked for" in error.fields["where"]
    assert place.registry.champion().version == "2"
