"""Responses with a mask: negotiation of the media type, and the mask or a JSON document with its metadata.

The JSON document of a synchronous request contains the mask as base64: the endpoint stores nothing of such a request,
so there is no URL to fetch the mask from. The result of a job is stored, and its document links to the mask instead.
"""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field
from starlette.responses import Response
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from gtvray import NOTICE
from gtvray.errors import NotAcceptableError

if TYPE_CHECKING:
    from gtvray.serving.transfer.work import Prediction

JSON = "application/json"
GZIP: Literal["application/gzip"] = "application/gzip"
# Gzipped NIfTI has no registered media type, and clients request it with any of these.
MASK_TYPES = (GZIP, "application/x-gzip", "application/octet-stream")


class ModelVersion(BaseModel):
    """The model that predicted a mask."""

    version: str = Field(description="version in the registry")
    digest: str = Field(description="sha256 of the bundle's manifest")
    name: str = Field("", description="name in the registry")


class Flags(BaseModel):
    """Reasons to distrust a mask."""

    out_of_domain: list[str] = Field(description="how the scan differs from the training data; empty if it does not")
    fallback: str | None = Field(description="why another inference mode than the model's was used; null if it was not")


class UncertaintyDocument(BaseModel):
    """Uncertainty of the mask by the probabilities that made it.

    Across 42 real cases it did not rank cases by Dice (Spearman -0.05): do not sort masks by it.
    """

    expected_dice_loss: float | None = Field(
        description="0 to 1: one minus the Dice that is expected if the probabilities are calibrated; for an empty "
        "mask, the largest probability; null if no patch shaped the mask"
    )
    mean_entropy_bits: float = Field(description="mean entropy of the marked voxels, 0 to 1; 0 for an empty mask")


class Mask(BaseModel):
    """The mask: gzipped NIfTI, uint8, 0 and 1, on the grid of the scan; either its bytes or its address."""

    media_type: Literal["application/gzip"] = GZIP
    base64: str | None = Field(None, description="content of the file, in responses of /v1/segment")
    href: str | None = Field(None, description="path of the mask, in results of jobs")


class SegmentationResult(BaseModel):
    """A mask and its metadata."""

    request_id: str = Field(description="id of the request in the server's log")
    model: ModelVersion
    volume_ml: float = Field(description="volume of the mask in ml")
    mode: str = Field(description="inference mode that was used")
    flags: Flags
    uncertainty: UncertaintyDocument | None = Field(
        None, description="uncertainty of the mask; null in results of jobs of earlier releases"
    )
    patches: int = Field(description="patches that the network was run on")
    patches_skipped: int = Field(description="further patches that mode `exhaustive` would have run")
    volume_skipped_share: float = Field(description="share of the scan's volume that no patch covered")
    timings_s: dict[str, float] = Field(description="stage -> seconds on the server; `total` is the complete request")
    mask: Mask
    notice: str = Field(NOTICE, description="the intended use")


def result_document(
    prediction: Prediction, request_id: str, seconds: float, href: str | None = None
) -> SegmentationResult:
    """Return the JSON document of a prediction.

    Args:
        prediction: mask and metadata.
        request_id: id of the request.
        seconds: time on the server.
        href: address of the mask; None puts the mask into the document.
    """
    coverage, uncertainty = prediction.coverage, prediction.uncertainty
    return SegmentationResult(
        request_id=request_id,
        model=ModelVersion(version=prediction.version, digest=prediction.digest, name=prediction.model),
        volume_ml=round(prediction.volume_ml, 3),
        mode=coverage.mode,
        flags=Flags(out_of_domain=list(prediction.out_of_domain), fallback=coverage.fallback),
        uncertainty=UncertaintyDocument(**_rounded(asdict(uncertainty))) if uncertainty is not None else None,
        patches=coverage.patches,
        patches_skipped=coverage.patches_skipped,
        volume_skipped_share=round(coverage.volume_skipped_share, 6),
        timings_s={stage: round(value, 4) for stage, value in {**prediction.seconds, "total": seconds}.items()},
        mask=Mask(base64=base64.b64encode(prediction.mask_gz).decode() if href is None else None, href=href),
    )


def _rounded(values: dict[str, float | None]) -> dict[str, Any]:
    return {name: round(value, 4) if value is not None else None for name, value in values.items()}


def negotiate(accept: str | None) -> str:
    """Return the media type of a response; without an Accept header, that of the mask.

    Raises:
        NotAcceptableError: the header excludes the mask and JSON.
    """
    if not (accept or "").strip():
        return GZIP
    chosen = parse_accept_header(accept, MIMEAccept).best_match([*MASK_TYPES, JSON])
    if chosen is None:
        raise NotAcceptableError(
            "none of the accepted media types is available",
            expected=f"{GZIP} or {JSON}",
            do="send one of these in the Accept header",
        )
    return str(chosen)


def result_response(document: SegmentationResult, mask_gz: bytes, media_type: str) -> Response:
    """Respond with the mask and its metadata as headers, or with the document.

    Args:
        document: the metadata.
        mask_gz: the mask as .nii.gz.
        media_type: as negotiated.
    """
    if media_type == JSON:
        content: str | bytes = document.model_dump_json()
    else:
        content = mask_gz
    return Response(content, media_type=media_type, headers={**result_headers(document), "Vary": "Accept"})


def result_headers(document: SegmentationResult) -> dict[str, str]:
    """Return the metadata as headers."""
    flags = document.flags
    return {
        "X-Gtvray-Model-Digest": document.model.digest,
        "X-Gtvray-Model-Version": document.model.version,
        "X-Gtvray-Volume-Ml": f"{document.volume_ml:.3f}",
        "X-Gtvray-Mode": document.mode,
        **({"X-Gtvray-Fallback": flags.fallback} if flags.fallback else {}),
        **({"X-Gtvray-Out-Of-Domain": "; ".join(flags.out_of_domain)} if flags.out_of_domain else {}),
        "X-Gtvray-Patches": str(document.patches),
        "X-Gtvray-Patches-Skipped": str(document.patches_skipped),
        "X-Gtvray-Volume-Skipped-Share": f"{document.volume_skipped_share:.6f}",
        "X-Gtvray-Milliseconds": str(round(1000 * document.timings_s["total"])),
        "X-Gtvray-Notice": document.notice,
    }
