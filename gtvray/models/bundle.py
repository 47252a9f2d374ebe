"""The Bundle: an immutable folder that is evaluated, promoted and served. Nothing in it is pickled.

weights-0.safetensors   tensors of the network; an ensemble has one file per member
bundle.json             network, preprocessing and its version, labels, inference settings, training data, metrics
locator/                optional: the bundle of the model that locates suspected tumour
manifest.json           sha256 of every other file; the bundle's digest is the sha256 of this file

Up to schema 3 probabilities of patches and members were averaged, since then logits: masks of an older bundle would
differ from those that were promoted, so it is rejected.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtvray import NOTICE, __version__
from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig, build
from gtvray.errors import BundleError, InputError
from gtvray.io import atomic_dir, read_json, sha256_of, write_json
from gtvray.preprocessing import PREPROCESSING_VERSION

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 4
_BUNDLE, _MANIFEST, _LOCATOR = "bundle.json", "manifest.json", "locator"


@dataclass(frozen=True)
class Bundle:
    """A trained model with the settings that determine its masks.

    Attributes:
        folder: folder of the bundle.
        digest: sha256 of its manifest; identifies the bundle.
        preprocessing, network, inference: settings that determine its masks.
        patch_ijk: patch size in voxels of the prepared spacing.
        labels: name -> value in the mask.
        members: number of networks whose logits are averaged; 1 for a single network.
        info: other entries of bundle.json (training data, metrics, code version).
        locator: model that locates suspected tumour for `localised` inference; None if there is none.
    """

    folder: Path
    digest: str
    preprocessing: PreprocessingConfig
    network: NetworkConfig
    inference: InferenceConfig
    patch_ijk: tuple[int, int, int]
    labels: dict[str, int]
    members: int
    info: dict[str, Any]
    locator: Bundle | None = None

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read a bundle after verifying every file against the manifest.

        Raises:
            BundleError: a file is missing or changed, or the bundle has a version that this code does not read.
        """
        digest = verify_digest(folder)
        stored = read_json(folder / _BUNDLE)
        _require_readable(stored, folder)
        i, j, k = stored["patch_ijk"]
        return cls(
            folder=folder,
            digest=digest,
            preprocessing=build(PreprocessingConfig, stored["preprocessing"], folder),
            network=build(NetworkConfig, stored["network"], folder),
            inference=build(InferenceConfig, stored["inference"], folder),
            patch_ijk=(i, j, k),
            labels=stored["labels"],
            members=stored["members"],
            info=stored["info"],
            locator=cls.load(folder / _LOCATOR) if (folder / _LOCATOR).is_dir() else None,
        )

    def build_network(self, member: int = 0) -> torch.nn.Module:
        """Build the network of a member with its weights, in evaluation mode.

        Raises:
            BundleError: there is no such member, or the weights do not fit the network.
        """
        # Imported here so that reading the metadata of a bundle does not load torch.
        from safetensors.torch import load_file

        from gtvray.models.networks import build_network, load_weights

        if not 0 <= member < self.members:
            raise BundleError(
                "no such member", where=self.folder, expected=f"0 to {self.members - 1}", found=f"member {member}"
            )
        network = build_network(
            self.network, self.preprocessing.channels, self.preprocessing.spacing_mm, self.patch_ijk
        )
        load_weights(network, load_file(self.folder / _weights_file(member)))
        return network.eval()


def write_bundle(
    folder: Path,
    *,
    weights: Mapping[str, torch.Tensor] | Sequence[Mapping[str, torch.Tensor]],
    preprocessing: PreprocessingConfig,
    network: NetworkConfig,
    inference: InferenceConfig,
    patch_ijk: tuple[int, int, int],
    info: Mapping[str, Any],
    locator: Bundle | None = None,
) -> Bundle:
    """Write a bundle to a folder, atomically, and read it back.

    Args:
        folder: folder to write to.
        weights: weights of the network, or of each member of an ensemble; members differ in their weights only.
        preprocessing: preprocessing settings, shared by all members like the next three arguments.
        network: network settings.
        inference: inference settings.
        patch_ijk: patch size in voxels of the prepared spacing.
        info: further entries, ready for JSON.
        locator: a bundle that is copied into this one, without a locator of its own.

    Raises:
        BundleError: there is no member, or members have different networks.
    """
    from safetensors.torch import save_file

    members = [weights] if isinstance(weights, Mapping) else list(weights)
    _require_alike(members)
    with atomic_dir(folder) as temporary:
        for number, tensors in enumerate(members):
            save_file({name: each.contiguous() for name, each in tensors.items()}, temporary / _weights_file(number))
        write_json(
            temporary / _BUNDLE,
            {
                **_header(patch_ijk, len(members)),
                "network": network.model_dump(mode="json"),
                "preprocessing": preprocessing.model_dump(mode="json"),
                "inference": inference.model_dump(mode="json"),
                "info": {"gtvray_version": __version__, **info},
            },
        )
        if locator is not None:
            _copy_locator(locator, temporary / _LOCATOR)
        files = {name: sha256_of(temporary / name) for name in sorted(_files_below(temporary))}
        write_json(temporary / _MANIFEST, {"files": files})
    return Bundle.load(folder)


def _header(patch_ijk: tuple[int, int, int], members: int) -> dict[str, Any]:
    """The first entries of bundle.json; their order is part of the digest."""
    return {
        "schema_version": SCHEMA_VERSION,
        "preprocessing_version": PREPROCESSING_VERSION,
        "intended_use": NOTICE,
        "labels": {"GTV": 1},
        "patch_ijk": list(patch_ijk),
        "members": members,
    }


def verify_digest(folder: Path) -> str:
    """Verify the files of a bundle against its manifest.

    Returns:
        the digest of the bundle.

    Raises:
        BundleError: a file is missing, added or changed.
        InputError: a file cannot be read by this user.
    """
    try:
        files = read_json(folder / _MANIFEST)["files"]
        changed = [name for name, digest in files.items() if sha256_of(folder / name) != digest]
    except PermissionError as error:
        do = f"let this user read it: chmod -R a+rX {shlex.quote(str(folder))}"
        raise InputError("a file of the bundle cannot be read", where=error.filename, do=do) from error
    except (InputError, OSError, KeyError, TypeError, AttributeError) as error:
        raise BundleError("bundle is incomplete", where=folder, found=error, do="fetch or write it again") from error
    present = _files_below(folder) - {_MANIFEST}
    own = {name for name in present if not name.startswith(f"{_LOCATOR}/")}
    differing = set(changed) | (present ^ set(files)) | (own ^ _required_files(len(own) - 1))
    if differing:
        raise BundleError(
            "bundle does not match its manifest",
            where=folder,
            found=", ".join(sorted(differing)),
            do="fetch or write it again",
        )
    return sha256_of(folder / _MANIFEST)


def _files_below(folder: Path) -> set[str]:
    """Relative paths of everything below a folder, except the locator's folder itself."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")} - {_LOCATOR}


def _copy_locator(locator: Bundle, folder: Path) -> None:
    folder.mkdir()
    for name in read_json(locator.folder / _MANIFEST)["files"]:
        if not name.startswith(f"{_LOCATOR}/"):
            shutil.copyfile(locator.folder / name, folder / name)
    write_json(folder / _MANIFEST, {"files": {name: sha256_of(folder / name) for name in sorted(_files_below(folder))}})


def _weights_file(member: int) -> str:
    return f"weights-{member}.safetensors"


def _required_files(members: int) -> set[str]:
    """The files of a bundle without manifest and locator."""
    return {_BUNDLE, *(_weights_file(n) for n in range(max(1, members)))}


def _require_readable(stored: Mapping[str, Any], folder: Path) -> None:
    schema, preprocessing = stored["schema_version"], stored["preprocessing_version"]
    if (schema, preprocessing) != (SCHEMA_VERSION, PREPROCESSING_VERSION):
        raise BundleError(
            "bundle has another version",
            where=folder,
            expected=f"schema {SCHEMA_VERSION}, preprocessing {PREPROCESSING_VERSION}",
            found=f"schema {schema}, preprocessing {preprocessing}",
            do="export it again from its checkpoint, or use the gtvray version named in bundle.json",
        )
    files = len(list(folder.glob("weights*")))
    if files != stored["members"]:
        raise BundleError(
            "weights of a member are missing",
            where=folder,
            expected=f"{stored['members']} files",
            found=files,
            do="fetch or write it again",
        )


def _require_alike(members: Sequence[Mapping[str, torch.Tensor]]) -> None:
    if not members:
        raise BundleError("a bundle needs at least one member", found="none")
    shapes = [{name: tuple(tensor.shape) for name, tensor in member.items()} for member in members]
    for number, of_member in enumerate(shapes[1:], 1):
        differing = sorted(name for name, _ in of_member.items() ^ shapes[0].items())
        if differing:
            raise BundleError(
                "members of an ensemble must have the same network, preprocessing and patch",
                expected="the tensors of member 0",
                found=f"member {number} differs in {differing[0]}",
                do="bundle weights that were trained with the same settings",
            )
