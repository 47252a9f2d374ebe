"""Models: find one by folder, version or alias, and segment scans with it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.api.arguments import WORKSPACE, ConfigLike, PathLike, as_workspace
from gtvray.api.registry import load_bundle
from gtvray.errors import InputError
from gtvray.io import Workspace, check_outputs, read_volume
from gtvray.models import Bundle

if TYPE_CHECKING:
    from gtvray.geometry import Volume
    from gtvray.inference import Predictor, SegmentedCase


def load_model(
    model: str = "champion",
    *,
    workspace: Workspace | PathLike = WORKSPACE,
    config: ConfigLike = None,
    threads: int = 1,
) -> Model:
    """Load a model.

    Args:
        model: folder of a bundle, a registered version, or `champion`.
        workspace: folder with the registry.
        config: settings; only `tracking.*` matters.
        threads: CPU threads of the network.

    Raises:
        NotFoundError: there is no such version.
        NotReadyError: nothing has been promoted yet.
        BundleError: the bundle is damaged.
    """
    return Model(load_bundle(model, as_workspace(workspace), config), threads)


class Model:
    """A loaded bundle.

    Args:
        bundle: the model's files, already verified.
        threads: CPU threads of the network.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.bundle = bundle
        self._threads = threads

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the model."""
        return self.bundle.digest

    @cached_property
    def predictor(self) -> Predictor:
        """The predictor, whose network stays in memory from first use."""
        from gtvray.inference import Predictor

        return Predictor(self.bundle, threads=self._threads)

    def exhaustive(self) -> Model:
        """Return the model in mode `exhaustive`, which runs every patch."""
        inference = self.bundle.inference.model_copy(update={"mode": "exhaustive"})
        return Model(replace(self.bundle, inference=inference), self._threads)

    def segment(self, scan: Volume | PathLike) -> Volume:
        """Return the mask of a scan, uint8, on the grid of the scan.

        Args:
            scan: CT in HU, or its file.

        Raises:
            DataError: the scan is not a CT of a body.
        """
        if isinstance(scan, str | Path):
            return self.predictor.predict(read_volume(Path(scan)), scan)
        return self.predictor.predict(scan)  # type: ignore[arg-type]

    def predict(
        self, scan: PathLike, out: PathLike, *, uncertainty: bool = False, overwrite: bool = False
    ) -> SegmentedCase:
        """Segment a scan and write its mask on the grid of the scan.

        Args:
            scan: file of the CT (.nii, .nii.gz, .nrrd).
            out: file of the mask.
            uncertainty: estimate the uncertainty, and write the entropy of each voxel to a file next to the mask.
            overwrite: replace an earlier output of gtvray; never anything else.

        Raises:
            DataError: the file is not the CT of a body.
            InputError: the output would replace a file that gtvray did not write, or the scan.
            ResourceError: the disk is full.
        """
        from gtvray.inference import LocalCases, entropy_file

        source, target = Path(scan), Path(out)
        outputs = [target, *([entropy_file(target)] if uncertainty else [])]
        check_outputs(outputs, inputs=[source], overwrite=overwrite)
        cases = LocalCases(self.predictor, lambda _: target, uncertainty=uncertainty, overwrite=overwrite)
        return cases.store(source, cases.run(cases.load(source)))


def name_models(bundles: dict[str, Bundle]) -> dict[str, Bundle]:
    """Return bundles by their names in a report: the last part of a folder's path, since paths are not disclosed."""
    named: dict[str, Bundle] = {}
    for model, bundle in bundles.items():
        name = Path(model).resolve().name if Path(model).is_dir() else model
        named[name if name not in named else f"{name} {bundle.digest[:12]}"] = bundle
    if not named:
        raise InputError("no model to evaluate", do="name at least one")
    return named
