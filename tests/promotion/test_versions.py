"""Registered versions on the command line: listed, shown, compared, and moved to another site."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from gtvray.api import find_golden, import_version, load_bundle, plan_promotion, promote
from gtvray.cli.main import app
from gtvray.config import Config, with_dotted
from gtvray.data import open_project
from gtvray.datasets import index_dataset
from gtvray.errors import BundleError, GateRefusedError, GtvrayError, InputError, NotFoundError
from gtvray.io import Workspace, sha256_of
from gtvray.registry import DecisionLog, Registry
from gtvray.tracking import connect_mlflow

from ..bundles import random_bundle
from .conftest import MakeEvidence, Promotions


@pytest.fixture(scope="module")
def site(store: MlflowClient, make_evidence: MakeEvidence, tmp_path_factory: pytest.TempPathFactory) -> Promotions:
    """A workspace with two promoted versions, the second one champion; not to be changed."""
    workspace = Workspace(tmp_path_factory.mktemp("site"))
    shutil.copy(store.tracking_uri.removeprefix("sqlite:///"), workspace.mlflow_database)
    client = connect_mlflow(workspace.mlflow_uri, workspace.artifacts)
    experiment = client.create_experiment("own", artifact_location=workspace.artifacts.as_uri())
    made = Promotions(client, workspace.root, str(client.create_run(experiment).info.run_id), make_evidence)
    made.name = "gtvray-gtv"
    made.registry = Registry(client, made.name, workspace.bundles)
    made.log = DecisionLog(client, made.name, workspace.artifacts, "Ada")
    for seed in range(2):
        golden = workspace.golden_of(made.bundle(seed).digest)
        golden.mkdir(parents=True)
        (golden / "scan-0.nii.gz").write_bytes(b"scan")
        index = {"digest": made.bundle(seed).digest, "files": {"scan-0.nii.gz": sha256_of(golden / "scan-0.nii.gz")}}
        (golden / "golden.json").write_text(json.dumps(index))
        made.promote(seed, keep_golden=True)
    return made


def call(site: Promotions | Path, *words: object) -> str:
    root = site if isinstance(site, Path) else site.root
    result = CliRunner().invoke(app, ["models", *map(str, words), "--workspace", str(root)])
    if isinstance(result.exception, GtvrayError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_versions_are_listed_with_their_last_decision(site: Promotions) -> None:
    rows = json.loads(call(site, "--json"))
    assert [(row["version"], row["aliases"], row["decision"], row["by"]) for row in rows] == [
        ("1", [], "promoted", "Ada"),
        ("2", ["champion"], "promoted", "Ada"),
    ]
    assert json.loads(call(site, "list", "--json")) == rows
    assert [row["licence"] for row in rows] == ["not stated"] * 2
    assert "last decision" in call(site)
    assert "licence of the data" in call(site)


def test_version_is_shown_and_compared(site: Promotions) -> None:
    shown = json.loads(call(site, "show", "champion", "--json"))
    assert (shown["version"], shown["digest"]) == ("2", site.bundle(1).digest)
    assert [decision["kind"] for decision in shown["decisions"]] == ["promoted"]
    assert "licence of the data: not stated" in call(site, "show", 2)
    differences = json.loads(call(site, "diff", 1, 2, "--json"))
    assert differences == {"digest": [site.bundle(0).digest, site.bundle(1).digest]}
    assert call(site, "diff", 2, "champion") == "no difference\n"
    with pytest.raises(NotFoundError):
        call(site, "show", "77")


@pytest.mark.slow
def test_exported_version_is_served_and_imported_at_another_site(site: Promotions, tmp_path: Path) -> None:
    exported, elsewhere = tmp_path / "exported", tmp_path / "elsewhere"
    call(site, "export", "champion", exported)
    with pytest.raises(InputError):
        call(site, "export", "champion", exported)
    (record,) = (exported / "record").glob("*-promoted/decision.json")
    assert json.loads(record.read_text())["digest"] == site.bundle(1).digest
    assert (record.parent / "card.md").read_text().startswith(f"# Model {site.bundle(1).digest[:12]}")
    bundle = load_bundle(str(exported / "bundle"), Workspace(elsewhere))
    assert find_golden(bundle, Workspace(elsewhere)) == exported / "golden"

    assert json.loads(call(elsewhere, "import", exported, "--json"))["version"] == "1"
    assert json.loads(call(elsewhere, "import", exported, "--json"))["version"] == "1", "imported once"
    (row,) = json.loads(call(elsewhere, "--json"))
    assert (row["digest"], row["aliases"], row["decision"]) == (bundle.digest, [], None)
    assert load_bundle("1", Workspace(elsewhere)).digest == bundle.digest


def test_plain_number_is_a_version_even_if_a_folder_has_this_name(
    site: Promotions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases of StructSeg are folders with such names."""
    shutil.copytree(site.bundle(1).folder, tmp_path / "1")
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(site.root)
    assert json.loads(call(site, "show", 1, "--json"))["digest"] == site.bundle(0).digest
    assert load_bundle("1", workspace).digest == site.bundle(0).digest
    assert json.loads(call(site, "show", "./1", "--json"))["digest"] == site.bundle(1).digest
    assert load_bundle("./1", workspace).digest == site.bundle(1).digest


@pytest.mark.slow
def test_imported_version_can_be_a_candidate(
    phantoms: Path, make_evidence: MakeEvidence, store: MlflowClient, tmp_path: Path
) -> None:
    """The run that trained it is in the MLflow of the other site."""
    settings = {"preprocessing.spacing_mm": (4.0, 4.0, 4.0), "split.held_out_share": 0.25}
    elsewhere = Workspace(tmp_path / "elsewhere")
    project = open_project(
        index_dataset(phantoms), with_dotted(Config(), settings), cache=elsewhere.cache, splits=elsewhere.splits
    )
    info = {"training_data": project.provenance(), "config": settings, "mlflow_run": "of another site"}
    bundle = random_bundle(tmp_path / "exported" / "bundle", 0, info)
    shutil.copy(store.tracking_uri.removeprefix("sqlite:///"), elsewhere.mlflow_database)
    version = import_version(tmp_path / "exported", workspace=elsewhere)
    plan = plan_promotion(version.version, phantoms, workspace=elsewhere)
    assert (plan.champion, plan.cases, plan.looks) == (None, len(project.held_out), 1)
    assert version.digest == bundle.digest
    with pytest.raises(GateRefusedError, match="too few held-out cases"):
        promote(version.version, phantoms, workspace=elsewhere, config={"promotion.min_cases": plan.cases + 1})
    assert not elsewhere.ledger.exists(), "no look is spent on a comparison that cannot succeed"


def test_import_of_a_changed_export_is_refused(site: Promotions, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    call(site, "export", 1, exported)
    (exported / "golden" / "scan-0.nii.gz").write_bytes(b"another scan")
    with pytest.raises(BundleError, match="golden cases are damaged"):
        import_version(exported, workspace=tmp_path / "elsewhere")
    shutil.rmtree(exported / "golden")
    shutil.copytree(site.root / "golden" / site.bundle(1).digest[:16], exported / "golden")
    with pytest.raises(BundleError, match="belong to another model"):
        import_version(exported, workspace=tmp_path / "elsewhere")
    (exported / "bundle" / "bundle.json").write_text("{}")
    with pytest.raises(BundleError):
        import_version(exported, workspace=tmp_path / "elsewhere")


def test_version_is_exported_in_monais_format_with_its_last_decision(site: Promotions, tmp_path: Path) -> None:
    call(site, "export", "champion", tmp_path / "gtv", "--format", "monai")
    card = (tmp_path / "gtv" / "docs" / "README.md").read_text()
    assert "promoted by Ada" in card
    assert "clinician" in card
    assert {path.name for path in (tmp_path / "gtv" / "configs").iterdir()} == {"metadata.json", "inference.json"}
    with pytest.raises(InputError):
        call(site, "export", "champion", tmp_path / "gtv", "--format", "monai")
