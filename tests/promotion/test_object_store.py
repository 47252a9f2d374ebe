"""Promotions through `mlflow server` whose artifacts lie in an S3-compatible object store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gtvray import failpoints
from gtvray.api import export_version, import_version, load_bundle
from gtvray.errors import BundleError, InputError, NotFoundError, ResourceError
from gtvray.io import Workspace
from gtvray.promotion import require_champion
from gtvray.registry import DecisionLog
from gtvray.tracking import connect_mlflow

from ..object_store import BUCKET, ObjectStore, object_store
from ..stores import MlflowServer, open_store
from .conftest import MakeEvidence, Promotions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OPTIONS = {
    # The server reads and writes the objects; clients need no access to the store.
    "proxied": ("--artifacts-destination", f"s3://{BUCKET}/proxied"),
    # Clients read and write the objects themselves.
    "direct": ("--default-artifact-root", f"s3://{BUCKET}/direct", "--no-serve-artifacts"),
}


@pytest.fixture(scope="module")
def objects() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture(scope="module", params=list(OPTIONS))
def server(
    request: pytest.FixtureRequest, objects: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    server = MlflowServer(folder / "mlflow.db", folder, OPTIONS[request.param], objects.environment)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "direct":
            for name, value in objects.environment.items():
                patch.setenv(name, value)
        yield server
    server.kill()


class Site:
    """Two workspaces on one server, with a registered model of their own."""

    def __init__(self, server: MlflowServer, root: Path, make_evidence: MakeEvidence) -> None:
        self.one, self.two = (self._workspace(server, root / by, make_evidence, by) for by in ("ada", "grace"))

    def _workspace(self, server: MlflowServer, root: Path, make_evidence: MakeEvidence, by: str) -> Promotions:
        client = connect_mlflow(server.uri, root / "artifacts")
        found = client.get_experiment_by_name("training")
        experiment = found.experiment_id if found is not None else client.create_experiment("training")
        made = Promotions(client, root, str(client.create_run(experiment).info.run_id), make_evidence)
        made.name = made.registry._name = root.parent.name
        made.log = DecisionLog(client, made.name, None, by)
        return made


@pytest.fixture
def site(server: MlflowServer, tmp_path: Path, make_evidence: MakeEvidence) -> Site:
    return Site(server, tmp_path, make_evidence)


def _objects_named(objects: ObjectStore, name: str) -> list[tuple[str, bytes]]:
    client = objects.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", []) if entry["Key"].endswith(name)]
    return [(key, client.get_object(Bucket=BUCKET, Key=key)["Body"].read()) for key in keys]


def test_champion_is_promoted_fetched_elsewhere_and_rolled_back(
    site: Site, objects: ObjectStore, tmp_path: Path
) -> None:
    assert site.one.promote(0) == "1"
    assert site.one.promote(1) == "2"
    fetched = site.two.registry.fetch(site.two.registry.champion())
    assert fetched.digest == site.one.bundle(1).digest
    assert fetched.folder.is_relative_to(site.two.root)
    site.two.registry.fetch_golden(site.two.registry.champion(), tmp_path / "golden")
    assert (tmp_path / "golden" / "golden.json").is_file()
    record = site.two.log.download_record(site.two.log.decisions()[0], tmp_path / "record")
    assert record.with_name("card.md").is_file()
    assert site.two.rollback() == "1" == site.one.champion
    weights = (site.one.bundle(0).folder / "weights-0.safetensors").read_bytes()
    assert weights in [content for _, content in _objects_named(objects, "weights-0.safetensors")]


def test_byte_changed_in_the_bucket_is_detected(site: Site, objects: ObjectStore, tmp_path: Path) -> None:
    site.one.promote(0)
    weights = (site.one.bundle(0).folder / "weights-0.safetensors").read_bytes()
    client = objects.client()
    for key, content in _objects_named(objects, "weights-0.safetensors"):
        if content == weights:
            client.put_object(Bucket=BUCKET, Key=key, Body=content[:-1] + bytes([content[-1] ^ 1]))
    champion = require_champion(site.two.registry, site.two.log)
    assert champion is not None
    with pytest.raises(BundleError):
        site.two.registry.fetch(champion)
    for key, content in _objects_named(objects, "decision.json"):
        client.put_object(Bucket=BUCKET, Key=key, Body=content + b" ")
    with pytest.raises(ResourceError, match="record of this decision cannot be used"):
        site.two.log.download_record(site.two.log.decisions()[0], tmp_path / "record")


@pytest.mark.parametrize("step", ["before", "promotion.registered", "decision.recorded", "promotion.recorded"])
def test_store_that_goes_away_in_a_promotion_leaves_one_champion(
    site: Site, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    assert site.one.promote(0) == "1"
    evidence = site.one.evidence(1)
    try:
        if step == "before":
            objects.stop()
        else:
            monkeypatch.setitem(failpoints._ACTIONS, "down", objects.stop)
            failpoints.arm(f"{step}=down")
        if step == "promotion.recorded":
            assert site.one.promote(1, evidence) == "2", "nothing is read or written after this step"
        else:
            with pytest.raises(ResourceError, match="artifact store"):
                site.one.promote(1, evidence)
        # What the endpoint and the gate ask for does not need the store.
        assert require_champion(site.two.registry, site.two.log) == site.one.registry.champion()
        assert site.one.champion == ("2" if step == "promotion.recorded" else "1")
    finally:
        failpoints.arm("")
        objects.start()
    if step != "promotion.recorded":
        # Its own evidence is still valid: the champion has not changed.
        assert site.one.promote(1, evidence) == "2"
    assert site.two.registry.fetch(site.two.registry.champion()).digest == site.one.bundle(1).digest
    decisions = site.two.log.decisions()
    assert [d.version for d in decisions if d.state == "completed"] == ["1", "2"]
    assert {d.state for d in decisions} <= {"completed", "undone"}
    assert site.two.rollback() == "1"


@pytest.fixture
def exporting(
    objects: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_evidence: MakeEvidence
) -> Promotions:
    """A workspace with a champion, and the variables with which its commands find the store."""
    for name, value in objects.environment.items():
        monkeypatch.setenv(name, value)
    workspace = Workspace(tmp_path / "site-a")
    client = open_store(workspace.mlflow_database, workspace.artifacts)
    experiment = client.create_experiment("own", artifact_location=workspace.artifacts.as_uri())
    made = Promotions(client, workspace.root, str(client.create_run(experiment).info.run_id), make_evidence)
    made.registry._name = made.log._model = made.name = "gtvray-gtv"
    golden = workspace.golden_of(made.bundle(0).digest)
    golden.mkdir(parents=True)
    (golden / "golden.json").write_text(json.dumps({"digest": made.bundle(0).digest, "files": {}}))
    made.promote(0, keep_golden=True)
    return made


def test_model_is_exported_to_the_store_and_imported_by_another_site(
    exporting: Promotions, objects: ObjectStore, tmp_path: Path
) -> None:
    uri, digest = f"s3://{BUCKET}/site-a/model", exporting.bundle(0).digest
    assert export_version("champion", uri, workspace=exporting.root) == uri
    with pytest.raises(InputError, match="not empty"):
        export_version("champion", uri, workspace=exporting.root)
    imported = import_version(uri, workspace=tmp_path / "site-b")
    assert imported.digest == digest
    assert load_bundle("1", Workspace(tmp_path / "site-b")).digest == digest

    client = objects.client()
    weights = client.get_object(Bucket=BUCKET, Key="site-a/model/bundle/weights-0.safetensors")["Body"].read()
    damaged = bytes([weights[-1] ^ 1])
    client.put_object(Bucket=BUCKET, Key="site-a/model/bundle/weights-0.safetensors", Body=weights[:-1] + damaged)
    with pytest.raises(BundleError):
        import_version(uri, workspace=tmp_path / "site-c")
    client.delete_object(Bucket=BUCKET, Key="site-a/model/bundle/manifest.json")
    with pytest.raises(BundleError, match="incomplete"):
        import_version(uri, workspace=tmp_path / "site-c")
    with pytest.raises(NotFoundError):
        import_version(f"s3://{BUCKET}/site-a/none", workspace=tmp_path / "site-c")
    objects.stop()
    try:
        with pytest.raises(ResourceError, match="object store failed"):
            import_version(uri, workspace=tmp_path / "site-c")
    finally:
        objects.start()


def test_store_that_is_away_is_reported_by_a_rollback(site: Site, objects: ObjectStore) -> None:
    site.one.promote(0)
    site.one.promote(1)
    objects.stop()
    try:
        with pytest.raises(ResourceError, match="cannot be reached"):
            # This workspace has no copy of the previous champion's files.
            site.two.rollback()
        assert site.two.champion == "2"
    finally:
        objects.start()
    assert site.two.rollback() == "1"
