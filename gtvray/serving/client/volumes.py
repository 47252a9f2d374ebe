"""What the HTTP client sends and receives: scans as files, and masks with their metadata."""

from __future__ import annotations

import io
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import httpx
import numpy as np

from gtvray.errors import FailureError, InputError, NotFoundError, ResourceError
from gtvray.geometry import Volume
from gtvray.inference import Coverage
from gtvray.io import HEAD_BYTES, decode_labels, encode_nifti, read_volume
from gtvray.serving.transfer.uploads import check_file

Scan = Volume | str | PathLike[str]


@dataclass(frozen=True)
class RemoteResult:
    """A mask predicted by a server, with its metadata.

    Attributes:
        mask: uint8, on the scan's own grid.
        request_id: id of the request in the server's log.
        model_digest, model_version: the model that predicted the mask.
        volume_ml: volume of the mask.
        coverage: which part of the scan the network was run on.
        milliseconds: processing time on the server.
        notice: the intended use of the mask.
        out_of_domain: how the scan differs from the model's training data; empty if no difference was found.
    """

    mask: Volume
    request_id: str
    model_digest: str
    model_version: str
    volume_ml: float
    coverage: Coverage
    milliseconds: int
    notice: str
    out_of_domain: tuple[str, ...] = ()

    @property
    def patches(self) -> int:
        """Number of patches that the network was run on."""
        return self.coverage.patches


def open_scan(scan: Scan) -> BinaryIO:
    """Open a scan as the file that is sent; the caller closes it.

    Args:
        scan: a volume, or a NIfTI or NRRD file, whose content is sent unchanged.

    Raises:
        NotFoundError: the file does not exist.
        VolumeError, ContentTypeError, InputError: it is not a volume file, as its first bytes show.
    """
    if isinstance(scan, Volume):
        return io.BytesIO(encode_nifti(scan, compress=True))
    path = Path(scan)
    if path.suffix.lower() == ".nhdr":
        # The voxels of a detached header are in another file.
        return io.BytesIO(encode_nifti(read_volume(path), compress=True))
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError("no such file", where=scan, expected="a .nii, .nii.gz or .nrrd file") from error
    except IsADirectoryError as error:
        raise InputError("a folder, not a file", where=scan, expected="a .nii, .nii.gz or .nrrd file") from error
    try:
        check_file(file.read(HEAD_BYTES), scan)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def grid_of(scan: Scan) -> Volume:
    """Return the grid of a scan, as a volume without values; raises as `read_volume`."""
    volume = scan if isinstance(scan, Volume) else read_volume(scan)
    return Volume(np.broadcast_to(np.uint8(0), volume.shape), volume.affine)


def require_grid(result: RemoteResult, grid: Volume) -> None:
    """Check that a mask lies on the grid of its scan.

    Raises:
        FailureError: it does not.
    """
    if not result.mask.same_grid(grid):
        raise FailureError(
            "the mask is not on the grid of the scan",
            where=f"request {result.request_id}",
            expected=f"{grid.shape}, spacing {_rounded(grid)} mm",
            found=f"{result.mask.shape}, spacing {_rounded(result.mask)} mm",
            do="do not use this mask; report the request to the server's operator",
        )


def is_result(response: httpx.Response) -> bool:
    """Whether a response holds a mask of a gtvray endpoint."""
    return response.status_code == httpx.codes.OK and "X-Gtvray-Model-Digest" in response.headers


def decode_result(response: httpx.Response, url: str) -> RemoteResult:
    """Decode a successful response.

    Raises:
        ResourceError: a header is missing.
    """
    headers = response.headers
    try:
        return RemoteResult(
            mask=decode_labels(response.content, url).volume,
            request_id=headers["X-Request-ID"],
            model_digest=headers["X-Gtvray-Model-Digest"],
            model_version=headers["X-Gtvray-Model-Version"],
            volume_ml=float(headers["X-Gtvray-Volume-Ml"]),
            coverage=Coverage(
                mode=headers["X-Gtvray-Mode"],
                fallback=headers.get("X-Gtvray-Fallback"),
                patches=int(headers["X-Gtvray-Patches"]),
                patches_skipped=int(headers["X-Gtvray-Patches-Skipped"]),
                volume_skipped_share=float(headers["X-Gtvray-Volume-Skipped-Share"]),
            ),
            milliseconds=int(headers["X-Gtvray-Milliseconds"]),
            notice=headers["X-Gtvray-Notice"],
            out_of_domain=tuple(filter(None, headers.get("X-Gtvray-Out-Of-Domain", "").split("; "))),
        )
    except KeyError as error:
        raise ResourceError(
            "the response is not from a gtvray server", where=url, found=f"no header {error}", do="correct the address"
        ) from error


def _rounded(volume: Volume) -> tuple[float, ...]:
    return tuple(round(float(each), 4) for each in volume.spacing_mm)
