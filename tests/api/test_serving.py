"""The model of an endpoint while the registry is away."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gtvray.api import Endpoint
from gtvray.errors import BundleError, ResourceError
from gtvray.io import Workspace
from gtvray.serving import Candidate
from gtvray.serving.versions.last import last_file, write_last

from ..bundles import random_bundle
from ..ports import free_port


@pytest.fixture
def settings() -> dict[str, object]:
    return {"tracking.uri": f"http://127.0.0.1:{free_port()}", "serving.port": 8123}


def test_without_the_registry_the_version_served_last_is_taken(settings: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ResourceError):
        Endpoint(workspace=tmp_path, config=settings)

    bundle = random_bundle(tmp_path / "bundle", 1)
    (tmp_path / "golden").mkdir()
    file = last_file(Workspace(tmp_path).serving / "8123.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_last(file, Candidate("7", bundle.digest, bundle.folder, tmp_path / "golden", "a reason"))
    endpoint = Endpoint(workspace=tmp_path, config=settings)
    assert (endpoint.version, endpoint.golden, endpoint.follows) == ("7", tmp_path / "golden", True)
    assert "MLflow" in endpoint.away

    # A version that is named is not replaced by another one.
    with pytest.raises(ResourceError):
        Endpoint("6", workspace=tmp_path, config=settings)
    (bundle.folder / "weights-0.safetensors").write_bytes(b"")
    with pytest.raises(BundleError):
        Endpoint(workspace=tmp_path, config=settings)
    shutil.rmtree(bundle.folder)
    with pytest.raises(ResourceError):
        Endpoint(workspace=tmp_path, config=settings)
