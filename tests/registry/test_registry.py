"""Bundles as versions of a registered model: a fetched bundle is the registered one, or there is an error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from gtvray.errors import BundleError, NotFoundError, NotReadyError, ResourceError
from gtvray.models import Bundle
from gtvray.registry import Registry


@pytest.fixture
def registry(client: MlflowClient, tmp_path: Path) -> Registry:
    return Registry(client, f"model-{tmp_path.name}", tmp_path / "bundles")


@pytest.fixture
def bundle(make_bundle: Callable[[int], Bundle]) -> Bundle:
    return make_bundle(0)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A folder of golden cases, of which the registry reads only the names and bytes."""
    folder = tmp_path / "golden"
    folder.mkdir()
    (folder / "golden.json").write_text("{}\n")
    return folder


def test_fetched_bundle_is_the_registered_one(registry: Registry, bundle: Bundle, run_id: str) -> None:
    version = registry.register(bundle, run_id)
    assert (version.version, version.digest, version.run_id, version.aliases) == ("1", bundle.digest, run_id, ())
    shutil.rmtree(bundle.folder)
    fetched = registry.fetch(version)
    assert fetched.digest == bundle.digest
    assert fetched.folder != bundle.folder
    assert fetched.info == bundle.info
    before = [file.stat().st_mtime_ns for file in fetched.folder.iterdir()]
    assert registry.fetch(version).folder == fetched.folder
    assert [file.stat().st_mtime_ns for file in fetched.folder.iterdir()] == before, "downloaded once"


def test_bundle_is_registered_once(
    registry: Registry, bundle: Bundle, make_bundle: Callable[[int], Bundle], run_id: str, tmp_path: Path
) -> None:
    first = registry.register(bundle, run_id)
    moved = Bundle.load(shutil.copytree(bundle.folder, tmp_path / "moved"))
    assert registry.register(moved, run_id) == first
    second = registry.register(make_bundle(1), run_id)
    assert [version.version for version in registry.versions()] == ["1", "2"]
    assert second.digest != first.digest


def test_tampered_bundle_in_the_store_is_refused(
    registry: Registry, bundle: Bundle, run_id: str, tmp_path: Path
) -> None:
    version = registry.register(bundle, run_id)
    (stored,) = (tmp_path / "artifacts").rglob("weights-0.safetensors")
    content = stored.read_bytes()
    stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for _ in range(2):
        with pytest.raises(BundleError):
            registry.fetch(version)
    stored.write_bytes(content)
    assert registry.fetch(version).digest == bundle.digest


def test_replaced_bundle_in_the_store_is_refused(
    registry: Registry, bundle: Bundle, make_bundle: Callable[[int], Bundle], run_id: str, tmp_path: Path
) -> None:
    version, other = registry.register(bundle, run_id), make_bundle(1)
    (stored,) = (tmp_path / "artifacts").rglob("weights-0.safetensors")
    for file in other.folder.iterdir():
        shutil.copy(file, stored.parent / file.name)
    for _ in range(2):
        with pytest.raises(BundleError, match="not the one registered"):
            registry.fetch(version)


def test_tampered_bundle_in_the_workspace_is_refused(registry: Registry, bundle: Bundle, run_id: str) -> None:
    version = registry.register(bundle, run_id)
    description = registry.fetch(version).folder / "bundle.json"
    description.write_text(description.read_text().replace('"threshold": 0.5', '"threshold": 0.1'))
    with pytest.raises(BundleError):
        registry.fetch(version)


def test_golden_cases_are_stored_with_a_version(
    registry: Registry, bundle: Bundle, run_id: str, golden: Path, tmp_path: Path
) -> None:
    fetched = tmp_path / "fetched"
    version = registry.register(bundle, run_id)
    with pytest.raises(NotFoundError, match="no golden cases"):
        registry.fetch_golden(version, fetched)
    assert not fetched.exists()
    registry.add_golden(version, golden)
    registry.fetch_golden(version, fetched)
    assert [(file.name, file.read_text()) for file in fetched.iterdir()] == [("golden.json", "{}\n")]


def test_unreadable_golden_cases_are_an_error(
    registry: Registry, bundle: Bundle, run_id: str, golden: Path, tmp_path: Path
) -> None:
    version = registry.register(bundle, run_id)
    registry.add_golden(version, golden)
    (stored,) = (tmp_path / "artifacts").rglob("golden.json")
    stored.unlink()
    stored.symlink_to(tmp_path / "lost")
    with pytest.raises(ResourceError, match="cannot be reached"):
        registry.fetch_golden(version, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("lost", ["golden", "all artifacts"])
def test_missing_files_of_golden_cases_are_an_error(
    registry: Registry, bundle: Bundle, run_id: str, golden: Path, tmp_path: Path, lost: str
) -> None:
    """As in a workspace copied without them: an endpoint must not start without verifying its model."""
    version = registry.register(bundle, run_id)
    registry.add_golden(version, golden)
    (stored,) = (tmp_path / "artifacts").rglob("golden")
    shutil.rmtree(stored if lost == "golden" else tmp_path / "artifacts")
    with pytest.raises(ResourceError, match="cannot be reached"):
        registry.fetch_golden(version, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_missing_artifact_folder_is_an_error_for_versions_without_a_golden_tag(
    registry: Registry, client: MlflowClient, bundle: Bundle, run_id: str, golden: Path, tmp_path: Path
) -> None:
    version = registry.register(bundle, run_id)
    registry.add_golden(version, golden)
    client.delete_model_version_tag(f"model-{tmp_path.name}", version.version, "gtvray.golden")
    shutil.rmtree(tmp_path / "artifacts")
    with pytest.raises(ResourceError, match="cannot be reached"):
        registry.fetch_golden(version, tmp_path / "fetched")


def test_replaced_golden_cases_are_refused(
    registry: Registry, bundle: Bundle, run_id: str, golden: Path, tmp_path: Path
) -> None:
    version = registry.register(bundle, run_id)
    registry.add_golden(version, golden)
    (stored,) = (tmp_path / "artifacts").rglob("golden.json")
    stored.write_text('{"easier": true}\n')
    with pytest.raises(BundleError, match="not those of the promotion"):
        registry.fetch_golden(version, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_missing_files_of_a_bundle_are_an_error(
    registry: Registry, bundle: Bundle, run_id: str, tmp_path: Path
) -> None:
    version = registry.register(bundle, run_id)
    shutil.rmtree(tmp_path / "artifacts")
    with pytest.raises(ResourceError, match="cannot be reached"):
        registry.fetch(version)


@pytest.mark.parametrize("name", ["back\\slash", "a_b", "what?#", "größe 日本"])
def test_model_can_have_any_name_that_the_settings_accept(
    name: str, client: MlflowClient, bundle: Bundle, run_id: str, tmp_path: Path
) -> None:
    registry = Registry(client, f"{name} {tmp_path.name}", tmp_path / "bundles")
    version = registry.register(bundle, run_id)
    assert [known.digest for known in registry.versions()] == [bundle.digest]
    assert registry.fetch(version).digest == bundle.digest


def test_champion_is_not_ready_before_the_first_promotion(registry: Registry, bundle: Bundle, run_id: str) -> None:
    with pytest.raises(NotReadyError, match="nothing has been promoted"):
        registry.champion()
    version = registry.register(bundle, run_id)
    with pytest.raises(NotReadyError, match="nothing has been promoted"):
        registry.champion()
    registry.point_champion(version.version)
    assert registry.champion().digest == bundle.digest
    assert registry.get("1").aliases == ("champion",)


def test_failing_store_is_not_reported_as_an_empty_one(
    registry: Registry, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MlflowException("database is locked")

    monkeypatch.setattr(client, "get_model_version_by_alias", fail)
    with pytest.raises(MlflowException, match="locked"):
        registry.champion()


def test_unknown_version_is_reported_with_the_known_ones(registry: Registry, bundle: Bundle, run_id: str) -> None:
    registry.register(bundle, run_id)
    with pytest.raises(NotFoundError) as caught:
        registry.get("7")
    assert caught.value.fields["expected"] == "a registered version: 1"


def test_version_registered_outside_gtvray_does_not_affect_others(
    registry: Registry, client: MlflowClient, bundle: Bundle, run_id: str, tmp_path: Path
) -> None:
    registry.register(bundle, run_id)
    client.create_model_version(f"model-{tmp_path.name}", source=bundle.folder.as_uri(), run_id=run_id)
    assert [version.digest for version in registry.versions()] == [bundle.digest, ""]
    with pytest.raises(BundleError):
        registry.fetch(registry.get("2"))
