"""The Bundle: an immutable folder that is evaluated, promoted and served. Nothing in it is pickled.

weights.safetensors   the network's tensors
bundle.json           network, preprocessing and its version, labels, inference settings, training data, metrics
manifest.json         sha256 of each of the above; the bundle's digest is the sha256 of this file
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gtvray import NOTICE, __version__
from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig, build
from gtvray.errors import BundleError, InputError
from gtvray.io import atomic_dir, read_json, sha256_of, write_json
from gtvray.models.networks import build_network, load_weights
from gtvray.preprocessing import PREPROCESSING_VERSION

SCHEMA_VERSION = 1
_WEIGHTS, _BUNDLE, _MANIFEST = "weights.safetensors", "bundle.json", "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """A model as it is used.

    Attributes:
        folder: where it lies.
        digest: sha256 of its manifest; names this bundle and no other.
        preprocessing, network, inference: the settings that shape its masks.
        patch_ijk: patch size in voxels of the prepared spacing.
        labels: name -> value in the mask.
        info: everything else bundle.json says (training data, metrics, code version).
    """

    folder: Path
    digest: str
    preprocessing: PreprocessingConfig
    network: NetworkConfig
    inference: InferenceConfig
    patch_ijk: tuple[int, int, int]
    labels: dict[str, int]
    info: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read a bundle after holding every file against the manifest.

        Raises:
            BundleError: a file is missing or changed, or the bundle is of a version this code does not read.
        """
        digest = verify_digest(folder)
        stored = read_json(folder / _BUNDLE)
        if stored["schema_version"] != SCHEMA_VERSION or stored["preprocessing_version"] != PREPROCESSING_VERSION:
            raise BundleError(
                "bundle is of another version",
                where=folder,
                expected=f"schema {SCHEMA_VERSION}, preprocessing {PREPROCESSING_VERSION}",
                found=f"schema {stored['schema_version']}, preprocessing {stored['preprocessing_version']}",
                do="use the gtvray version named in bundle.json",
            )
        i, j, k = stored["patch_ijk"]
        return cls(
            folder=folder,
            digest=digest,
            preprocessing=build(PreprocessingConfig, stored["preprocessing"], folder),
            network=build(NetworkConfig, stored["network"], folder),
            inference=build(InferenceConfig, stored["inference"], folder),
            patch_ijk=(i, j, k),
            labels=stored["labels"],
            info=stored["info"],
        )

    def build_network(self) -> torch.nn.Module:
        """The network with its weights, in evaluation mode.

        Raises:
            BundleError: the weights are not this network's.
        """
        network = build_network(
            self.network, len(self.preprocessing.windows_hu), self.preprocessing.spacing_mm, self.patch_ijk
        )
        load_weights(network, load_file(self.folder / _WEIGHTS))
        return network.eval()


def write_bundle(
    folder: Path,
    *,
    weights: Mapping[str, torch.Tensor],
    preprocessing: PreprocessingConfig,
    network: NetworkConfig,
    inference: InferenceConfig,
    patch_ijk: tuple[int, int, int],
    info: Mapping[str, Any],
) -> Bundle:
    """Write a bundle as a folder, atomic, and read it back."""
    with atomic_dir(folder) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary / _WEIGHTS)
        write_json(
            temporary / _BUNDLE,
            {
                "schema_version": SCHEMA_VERSION,
                "preprocessing_version": PREPROCESSING_VERSION,
                "intended_use": NOTICE,
                "labels": {"GTV": 1},
                "patch_ijk": list(patch_ijk),
                "network": network.model_dump(mode="json"),
                "preprocessing": preprocessing.model_dump(mode="json"),
                "inference": inference.model_dump(mode="json"),
                "info": {"gtvray_version": __version__, **info},
            },
        )
        files = {name: sha256_of(temporary / name) for name in (_BUNDLE, _WEIGHTS)}
        write_json(temporary / _MANIFEST, {"files": files})
    return Bundle.load(folder)


def verify_digest(folder: Path) -> str:
    """Hold a bundle's files against its manifest.

    Returns:
        the bundle's digest.

    Raises:
        BundleError: a file is missing, added or changed.
    """
    try:
        files = read_json(folder / _MANIFEST)["files"]
        changed = [name for name, digest in files.items() if sha256_of(folder / name) != digest]
    except (InputError, OSError, KeyError, TypeError, AttributeError) as error:
        raise BundleError("not a whole bundle", where=folder, found=error, do="fetch or write it again") from error
    present = {file.name for file in folder.iterdir()} - {_MANIFEST}
    if changed or present != {_BUNDLE, _WEIGHTS} or set(files) != present:
        odd = sorted(set(changed) | (present ^ set(files)))
        raise BundleError("bundle is not what its manifest says", where=folder, found=", ".join(odd))
    return sha256_of(folder / _MANIFEST)
