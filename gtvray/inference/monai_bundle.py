"""A bundle in MONAI's bundle format, and the components that its configuration names.

The network is also stored as MONAI expects it (`models/model.pt`, weights only), for programs that bring their own
pipeline. The configured workflow uses gtvray's reading, preprocessing and inference, so its masks equal those of
`gtvray predict` voxel for voxel; it needs gtvray installed.

Format: https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gtvray import NOTICE, __version__
from gtvray.config import NetworkConfig, build
from gtvray.geometry import Volume
from gtvray.inference.predictor import Predictor
from gtvray.io import atomic_dir, read_volume, write_json, write_output_volume
from gtvray.models import Bundle, build_network

_MODEL = "models/gtvray"
_COMPONENTS = "gtvray.inference.monai_bundle"
_VERSION = "1.0.0"


class EnsembleNetwork(torch.nn.Module):
    """The networks of a bundle as one: the mean of their logits.

    Args:
        network: settings of the networks.
        channels: input channels.
        spacing_mm: of the patches.
        patch_ijk: size of the patches in voxels.
        members: number of networks.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        channels: int,
        spacing_mm: Sequence[float],
        patch_ijk: Sequence[int],
        members: int,
    ) -> None:
        super().__init__()
        settings = build(NetworkConfig, dict(network), "network")
        shape, spacing = (int(patch_ijk[0]), int(patch_ijk[1]), int(patch_ijk[2])), tuple(map(float, spacing_mm))
        self.members = torch.nn.ModuleList(
            build_network(settings, channels, (spacing[0], spacing[1], spacing[2]), shape) for _ in range(members)
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return tumour logits (b, 1, i, j, k) of patches (b, c, i, j, k), scaled to 0..1 by the windows."""
        logits: torch.Tensor = torch.stack([member(patches) for member in self.members]).mean(dim=0)
        return logits


class ReadScand:
    """Read the scan of an item of a MONAI dataset: the path under a key becomes a `Volume`."""

    def __init__(self, key: str = "image") -> None:
        self._key = key

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the item with its scan, and the path under `path`."""
        path = Path(item[self._key])
        return {**item, self._key: read_volume(path), "path": path}


class ScanInferer:
    """Segment scans with the networks of a bundle, in its backend and precision.

    Args:
        folder: of the bundle.
        device: "cpu" or a CUDA device.
    """

    def __init__(self, folder: str, device: str | torch.device = "cpu") -> None:
        self._predictor = Predictor(Bundle.load(Path(folder)), device=str(device))

    def __call__(self, inputs: Volume) -> Volume:
        """Return the uint8 mask of a scan on its own grid.

        Args:
            inputs: CT in HU.

        Raises:
            DataError: the scan is not a CT of a body.
        """
        return self._predictor.predict(inputs)


class FolderEvaluator:
    """Segment every item of a dataset; `run` writes the masks.

    Args:
        dataset: items with a scan under `image` and its path under `path`.
        inferer: a `ScanInferer`.
        output_dir: folder of the masks, named after the scans; existing files are never replaced.
    """

    def __init__(self, dataset: Sequence[Mapping[str, Any]], inferer: ScanInferer, output_dir: str) -> None:
        self._dataset, self._inferer, self._output_dir = dataset, inferer, Path(output_dir)

    def run(self) -> list[Path]:
        """Return the files of the masks.

        Raises:
            DataError: a scan is not a CT of a body.
            InputError: a mask would replace a file.
        """
        return list(self._masks())

    def _masks(self) -> Iterator[Path]:
        self._output_dir.mkdir(parents=True, exist_ok=True)
        for item in self._dataset:
            target = self._output_dir / f"{item['path'].name.partition('.')[0]}.nii.gz"
            write_output_volume(target, self._inferer(item["image"]), overwrite=False)
            yield target


def write_monai_bundle(bundle: Bundle, folder: Path, card: str) -> None:
    """Write a bundle in MONAI's format to a new folder.

    Args:
        bundle: the model.
        folder: of the MONAI bundle.
        card: description of the model in Markdown, as `docs/README.md`.
    """
    with atomic_dir(folder) as temporary:
        shutil.copytree(bundle.folder, temporary / _MODEL)
        members = torch.nn.ModuleList(bundle.build_network(member) for member in range(bundle.members))
        weights = {f"members.{name}": value for name, value in members.state_dict().items()}
        torch.save(weights, temporary / "models" / "model.pt")
        (temporary / "configs").mkdir()
        write_json(temporary / "configs" / "metadata.json", _metadata(bundle))
        write_json(temporary / "configs" / "inference.json", _inference(bundle))
        (temporary / "docs").mkdir()
        (temporary / "docs" / "README.md").write_text(card, encoding="utf-8")


def _metadata(bundle: Bundle) -> dict[str, Any]:
    licence = bundle.info.get("training_data", {}).get("licence", "not stated")
    channels = bundle.preprocessing.channels
    return {
        "version": _VERSION,
        "changelog": {_VERSION: f"exported by gtvray {__version__}"},
        "monai_version": metadata.version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {"gtvray": __version__},
        "name": "gtvray GTV",
        "task": "Segmentation of the gross tumour volume in CT",
        "description": f"Bundle {bundle.digest}, {bundle.members} networks averaged.",
        "intended_use": NOTICE,
        "data_type": "nifti",
        "data_source": f"licence of the training data: {licence}",
        "image_classes": "CT in Hounsfield units, one channel per window",
        "pred_classes": "logit of the tumour",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    "num_channels": channels,
                    "spatial_shape": list(bundle.patch_ijk),
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {str(channel): f"window {channel}" for channel in range(channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": 1,
                    "spatial_shape": list(bundle.patch_ijk),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {"0": "GTV"},
                }
            },
        },
    }


def _inference(bundle: Bundle) -> dict[str, Any]:
    model = f"$@bundle_root + '/{_MODEL}'"
    return {
        "imports": ["$from pathlib import Path"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/masks'",
        "device": "cpu",
        "network_def": {
            "_target_": f"{_COMPONENTS}.EnsembleNetwork",
            "network": bundle.network.model_dump(mode="json"),
            "channels": bundle.preprocessing.channels,
            "spacing_mm": list(bundle.preprocessing.spacing_mm),
            "patch_ijk": list(bundle.patch_ijk),
            "members": bundle.members,
        },
        "preprocessing": {"_target_": f"{_COMPONENTS}.ReadScand"},
        "dataset": {
            "_target_": "monai.data.Dataset",
            "data": "$[{'image': str(path)} for path in sorted(Path(@dataset_dir).glob('*.nii*'))]",
            "transform": "@preprocessing",
        },
        "inferer": {"_target_": f"{_COMPONENTS}.ScanInferer", "folder": model, "device": "@device"},
        "evaluator": {
            "_target_": f"{_COMPONENTS}.FolderEvaluator",
            "dataset": "@dataset",
            "inferer": "@inferer",
            "output_dir": "@output_dir",
        },
        "initialize": [],
        "run": ["$@evaluator.run()"],
    }
