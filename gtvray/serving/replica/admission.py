"""Admission of a scan by the cost estimated from its header, before anything is decompressed or resampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gtvray.errors import TooLargeError
from gtvray.geometry import by_text, spacing_from_affine
from gtvray.io import read_open_header
from gtvray.serving.transfer.spool import Body

if TYPE_CHECKING:
    from gtvray.inference import ScanCost
    from gtvray.models import Bundle


def admit(body: Body, bundle: Bundle, most_file_bytes: int, most_bytes: int) -> ScanCost:
    """Read the header of a scan, and estimate the cost of segmenting it.

    Args:
        body: the scan's file.
        bundle: the model.
        most_file_bytes: limit of the size of the decompressed voxels.
        most_bytes: limit of the memory of a scan.

    Raises:
        DataError: the header is not that of a valid volume.
        TooLargeError: the scan exceeds a limit.
    """
    from gtvray.inference import estimate_cost

    with body.open() as file:
        header = read_open_header(file, "upload", most_file_bytes)
    cost = estimate_cost(header, bundle)
    if cost.peak_bytes > most_bytes:
        shape, spacing_mm = header.shape, by_text(spacing_from_affine(header.affine))
        raise TooLargeError(
            "the scan needs more memory than one scan may use",
            where="upload",
            expected=f"at most {most_bytes / 1e9:.2f} GB",
            found=f"{cost.peak_bytes / 1e9:.2f} GB for {by_text(shape)} {header.dtype.name} voxels of {spacing_mm} mm, "
            f"which become {by_text(cost.prepared_ijk)} of {by_text(bundle.preprocessing.spacing_mm)} mm",
            do="crop the scan, check its voxel spacing, or ask the operator to raise serving.scan_memory_gb",
        )
    return cost
