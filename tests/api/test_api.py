"""The Python API: the README's snippet, and typical calls of a script."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import gtvray
from gtvray.api.arguments import as_config
from gtvray.api.registry import find_bundle
from gtvray.config import Config
from gtvray.errors import ConfigError, InputError, NotFoundError, NotReadyError
from gtvray.io import Workspace, read_volume
from gtvray.tuning.resume import StoredResult, write_result

from ..bundles import random_bundle
from ..stores import open_store

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> gtvray.Model:
    bundle = random_bundle(tmp_path_factory.mktemp("api") / "bundle")
    return gtvray.load_model(str(bundle.folder), threads=1)


def test_predict_writes_the_mask_on_the_grid_of_the_scan(model: gtvray.Model, phantoms: Path, tmp_path: Path) -> None:
    scan = phantoms / "1" / "data.nii.gz"
    result = model.predict(scan, out=tmp_path / "mask.nii.gz")
    mask = read_volume(result.mask)
    assert mask.same_grid(read_volume(scan))
    assert result.volume_ml == pytest.approx(float(np.count_nonzero(mask.array)) * mask.voxel_volume_ml)
    np.testing.assert_array_equal(model.segment(scan).array, mask.array)
    np.testing.assert_array_equal(model.segment(read_volume(scan)).array, mask.array)


def test_predict_never_replaces_the_scan(model: gtvray.Model, phantoms: Path, tmp_path: Path) -> None:
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes((phantoms / "1" / "data.nii.gz").read_bytes())
    before = scan.read_bytes()
    with pytest.raises(InputError):
        model.predict(scan, out=scan, overwrite=True)
    assert scan.read_bytes() == before


def test_the_bundle_of_a_sweep_is_found_by_its_name_and_run(tmp_path: Path) -> None:
    workspace, registry = Workspace(tmp_path), SimpleNamespace(versions=list)
    bundle = random_bundle(workspace.bundles / "one-t2")
    folder = workspace.sweeps / "one"
    folder.mkdir(parents=True)
    with pytest.raises(NotFoundError, match="has not ended"):
        find_bundle("one", workspace, registry)  # type: ignore[arg-type]
    write_result(folder, StoredResult("t2", "one-t2", "r2", "r0", {}, True))
    for name in ("one", "r0"):
        assert find_bundle(name, workspace, registry).digest == bundle.digest  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="no such bundle"):
        find_bundle("two", workspace, registry)  # type: ignore[arg-type]


def test_loading_a_missing_champion_is_an_error(tmp_path: Path) -> None:
    open_store(tmp_path / "runs" / "mlflow.db", tmp_path / "runs" / "mlartifacts")
    with pytest.raises(NotReadyError):
        gtvray.load_model("champion", workspace=tmp_path / "runs")


def test_config_may_be_a_file_or_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optimizer.lr: 0.1\n")
    assert as_config(file) == as_config(str(file)) == as_config({"optimizer.lr": 0.1})
    assert as_config(None) == Config()
    with pytest.raises(ConfigError, match="unknown setting"):
        as_config({"optimizer.learning_rate": 0.1})


def test_a_training_needs_data_or_a_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs data"):
        gtvray.train(workspace=tmp_path)
    with pytest.raises(InputError, match="needs data"):
        gtvray.train("data", resume="train-1", workspace=tmp_path)
    with pytest.raises(InputError, match="has its own settings"):
        gtvray.train(resume="train-1", config=Config(), workspace=tmp_path)


def test_every_public_name_is_documented() -> None:
    for name in gtvray.__all__:
        value = getattr(gtvray, name)
        assert isinstance(value, str) or (value.__doc__ or "").strip(), name


def test_import_loads_nothing_heavy() -> None:
    watched = "[name for name in ('torch', 'ray', 'mlflow', 'monai') if name in sys.modules]"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, gtvray; dir(gtvray); print({watched})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_the_snippet_of_the_readme_uses_names_that_exist() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    used = {node.attr for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Attribute)}
    assert {"load_model", "predict", "volume_ml", "mask", "digest"} == used
    assert hasattr(gtvray, "load_model")
    assert {"predict", "digest"} <= set(dir(gtvray.Model))
