"""The Bundle: an immutable folder that is evaluated, promoted and served. Nothing in it is pickled.

weights-0.safetensors   the network's tensors; an ensemble has weights-1 and so on, a file a member
bundle.json             network, preprocessing and its version, labels, inference settings, training data, metrics
locator/                a bundle of its own, if there is one: the model that tells where to look closely
manifest.json           sha256 of each of the above; the bundle's digest is the sha256 of this file

Until schema 3 patches and members were averaged as probabilities, and now they are as logits: an older bundle's masks
would not be those that were promoted, so it is refused.
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
    """A model as it is used.

    Attributes:
        folder: where it lies.
        digest: sha256 of its manifest; names this bundle and no other.
        preprocessing, network, inference: the settings that shape its masks.
        patch_ijk: patch size in voxels of the prepared spacing.
        labels: name -> value in the mask.
        members: networks whose logits are averaged; 1 is no ensemble.
        info: everything else bundle.json says (training data, metrics, code version).
        locator: the model that tells `localised` inference where to look closely; None where there is none.
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
        """Read a bundle after holding every file against the manifest.

        Raises:
            BundleError: a file is missing or changed, or the bundle is of a version this code does not read.
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
        """A member's network with its weights, in evaluation mode.

        Raises:
            BundleError: there is no such member, or the weights are not this network's.
        """
        # Whoever only reads what a bundle says of itself does not wait for torch.
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
    """Write a bundle as a folder, atomic, and read it back.

    Args:
        folder: where to.
        weights: of the network, or of each member of an ensemble, whose networks differ in nothing else.
        preprocessing: shared by all members, as are the next three.
        network: its settings.
        inference: how its answers become a mask.
        patch_ijk: patch size in voxels of the prepared spacing.
        info: what else is to be known of it, ready for JSON.
        locator: a model that is copied into it; one that this has is left out.

    Raises:
        BundleError: no member, or members of different networks.
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
                "schema_version": SCHEMA_VERSION,
                "preprocessing_version": PREPROCESSING_VERSION,
                "intended_use": NOTICE,
                "labels": {"GTV": 1},
                "patch_ijk": list(patch_ijk),
                "members": len(members),
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


def verify_digest(folder: Path) -> str:
    """Hold a bundle's files against its manifest.

    Returns:
        the bundle's digest.

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
        raise BundleError("not a whole bundle", where=folder, found=error, do="fetch or write it again") from error
    present = _files_below(folder) - {_MANIFEST}
    own = {name for name in present if not name.startswith(f"{_LOCATOR}/")}
    odd = set(changed) | (present ^ set(files)) | (own ^ _whole(len(own) - 1))
    if odd:
        raise BundleError("bundle is not what its manifest says", where=folder, found=", ".join(sorted(odd)))
    return sha256_of(folder / _MANIFEST)


def _files_below(folder: Path) -> set[str]:
    """The names of all that lies below a folder, but for the locator's own folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")} - {_LOCATOR}


def _copy_locator(locator: Bundle, folder: Path) -> None:
    folder.mkdir()
    for name in read_json(locator.folder / _MANIFEST)["files"]:
        if not name.startswith(f"{_LOCATOR}/"):
            shutil.copyfile(locator.folder / name, folder / name)
    write_json(folder / _MANIFEST, {"files": {name: sha256_of(folder / name) for name in sorted(_files_below(folder))}})


def _weights_file(member: int) -> str:
    return f"weights-{member}.safetensors"


def _whole(members: int) -> set[str]:
    """The files of a bundle beside its manifest."""
    return {_BUNDLE, *(_weights_file(n) for n in range(max(1, members)))}


def _require_readable(stored: Mapping[str, Any], folder: Path) -> None:
    schema, preprocessing = stored["schema_version"], stored["preprocessing_version"]
    if (schema, preprocessing) != (SCHEMA_VERSION, PREPROCESSING_VERSION):
        raise BundleError(
            "bundle is of another version",
            where=folder,
            expected=f"schema {SCHEMA_VERSION}, preprocessing {PREPROCESSING_VERSION}",
            found=f"schema {schema}, preprocessing {preprocessing}",
            do="export it anew from its checkpoint, or use the gtvray version named in bundle.json",
        )
    files = len(list(folder.glob("weights*")))
    if files != stored["members"]:
        raise BundleError(
            "a member's weights are missing", where=folder, expected=f"{stored['members']} files", found=files
        )


def _require_alike(members: Sequence[Mapping[str, torch.Tensor]]) -> None:
    if not members:
        raise BundleError("a bundle has at least one member", found="none")
    shapes = [{name: tuple(tensor.shape) for name, tensor in member.items()} for member in members]
    for number, of_member in enumerate(shapes[1:], 1):
        differing = sorted(name for name, _ in of_member.items() ^ shapes[0].items())
        if differing:
            raise BundleError(
                "members of an ensemble must have the same network, preprocessing and patch",
                expected="the tensors of member 0",
                found=f"member {number} has another {differing[0]}",
                do="bundle only weights that were trained with the same settings",
            )
