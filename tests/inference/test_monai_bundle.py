"""A bundle in MONAI's format: MONAI loads its network, and its workflow writes the same masks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, load

from gtvray.datasets import index_dataset
from gtvray.errors import InputError
from gtvray.inference import Predictor
from gtvray.inference.monai_bundle import write_monai_bundle
from gtvray.io import read_volume
from gtvray.models import Bundle

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def ensemble(make: Callable[..., Bundle]) -> Bundle:
    return make((24, 24, 24), 2)


@pytest.fixture(scope="module")
def exported(ensemble: Bundle, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("monai") / "gtv"
    write_monai_bundle(ensemble, root, "# a model\n")
    (root / "scans").mkdir()
    for case in index_dataset(phantoms).cases[:2]:
        shutil.copy(case.image, root / "scans" / f"{case.case_id}.nii.gz")
    return root


@pytest.mark.slow
def test_workflow_writes_the_masks_of_the_predictor(exported: Path, ensemble: Bundle, tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        config_file=str(exported / "configs" / "inference.json"),
        meta_file=str(exported / "configs" / "metadata.json"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(exported),
        output_dir=str(tmp_path / "masks"),
    )
    workflow.initialize()
    assert workflow.check_properties() in (None, [])
    workflow.run()
    masks = sorted((tmp_path / "masks").iterdir())
    assert len(masks) == 2
    predictor = Predictor(ensemble)
    for file in masks:
        expected, mask = predictor.predict(read_volume(exported / "scans" / file.name)), read_volume(file)
        assert mask.same_grid(expected)
        assert np.array_equal(mask.array, expected.array)
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert isinstance(caught.value.__cause__, InputError), "masks are not replaced"


def test_monai_loads_the_network_with_its_weights(exported: Path, ensemble: Bundle) -> None:
    network = load("gtv", bundle_dir=exported.parent, workflow_type="inference", device="cpu")
    patch = torch.rand((1, ensemble.preprocessing.channels, *ensemble.patch_ijk))
    members = [ensemble.build_network(member) for member in range(ensemble.members)]
    with torch.inference_mode():
        expected = torch.stack([member(patch) for member in members]).mean(dim=0)
        assert torch.equal(network.eval()(patch), expected)


def test_metadata_state_version_licence_and_intended_use(exported: Path) -> None:
    stored = json.loads((exported / "configs" / "metadata.json").read_text())
    assert {"version", "monai_version", "pytorch_version", "numpy_version", "network_data_format"} <= set(stored)
    assert "clinician" in stored["intended_use"]
    assert Bundle.load(exported / "models" / "gtvray").digest in stored["description"]
