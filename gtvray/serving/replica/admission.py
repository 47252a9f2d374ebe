"""Admission of a scan by its header, before anything is decompressed or resampled. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gtvray.config import InferenceConfig, PreprocessingConfig
from gtvray.errors import TooLargeError
from gtvray.geometry import by_text, spacing_from_affine
from gtvray.io import VolumeHeader, read_open_header, read_partial_header
from gtvray.serving.replica.budget import MemoryBudget
from gtvray.serving.transfer.spool import Body

if TYPE_CHECKING:
    from gtvray.config import ServingConfig
    from gtvray.inference import CostSettings, ScanCost

_WHERE = "upload"


@dataclass(frozen=True)
class DescribedSettings:
    """Settings of a bundle that the cost of a scan depends on, from a replica's description of its model."""

    preprocessing: PreprocessingConfig
    inference: InferenceConfig
    patch_ijk: tuple[int, int, int]

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> DescribedSettings | None:
        """Return the settings in a description by `Model.describe`; None for a replica of another release."""
        try:
            i, j, k = described["patch_ijk"]
            preprocessing = PreprocessingConfig.model_validate(described["preprocessing"])
            return cls(preprocessing, InferenceConfig.model_validate(described["inference"]), (i, j, k))
        except (KeyError, ValidationError):
            return None


def admit(body: Body, bundle: CostSettings, most_file_bytes: int, most_bytes: int) -> ScanCost:
    """Read the header of a scan, and estimate the cost of segmenting it.

    Args:
        body: the scan's file.
        bundle: the model.
        most_file_bytes: limit of the size of the decompressed voxels.
        most_bytes: limit of the memory of a scan.

    Raises:
        DataError: the header is not that of a valid volume, or of a CT.
        TooLargeError: the scan exceeds a limit.
    """
    with body.open() as file:
        header = read_open_header(file, _WHERE, most_file_bytes)
    return _admit_header(header, bundle, most_bytes)


def admit_beginning(
    beginning: bytes, file_bytes: int, serving: ServingConfig, described: Mapping[str, Any] | None
) -> None:
    """Refuse a scan by the beginning of its file, if `admit` would refuse the complete file by its header.

    Args:
        beginning: first bytes of the file.
        file_bytes: size of the complete file, or an upper bound of it.
        serving: settings of the endpoint.
        described: description of the model by a replica; None if there is none, which leaves the cost to the replica.

    Raises:
        as `admit`.
    """
    header = read_partial_header(beginning, file_bytes, _WHERE, serving.max_volume_mb << 20)
    settings = DescribedSettings.of(described) if described is not None else None
    if header is not None and settings is not None:
        _admit_header(header, settings, MemoryBudget(int(serving.scan_memory_gb * 1e9)).largest_bytes)


def _admit_header(header: VolumeHeader, bundle: CostSettings, most_bytes: int) -> ScanCost:
    from gtvray.inference import estimate_cost
    from gtvray.preprocessing import check_header_hu

    check_header_hu(header, _WHERE)
    cost = estimate_cost(header, bundle)
    if cost.peak_bytes > most_bytes:
        shape, spacing_mm = header.shape, by_text(spacing_from_affine(header.affine))
        raise TooLargeError(
            "the scan needs more memory than one scan may use",
            where=_WHERE,
            expected=f"at most {most_bytes / 1e9:.2f} GB",
            found=f"{cost.peak_bytes / 1e9:.2f} GB for {by_text(shape)} {header.dtype.name} voxels of {spacing_mm} mm, "
            f"which become {by_text(cost.prepared_ijk)} of {by_text(bundle.preprocessing.spacing_mm)} mm",
            do="crop the scan, check its voxel spacing, or ask the operator to raise serving.scan_memory_gb",
        )
    return cost
