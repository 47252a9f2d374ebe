"""The client: a scan to a server, a mask back."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import httpx

from gtvray.errors import DeadlineError, GtvrayError, NotFoundError, ResourceError
from gtvray.geometry import Volume
from gtvray.inference import Coverage
from gtvray.io import decode_labels, encode_nifti
from gtvray.serving.problems import MEDIA_TYPE, error_of


@dataclass(frozen=True)
class RemoteResult:
    """A server's answer.

    Attributes:
        mask: uint8, on the scan's own grid.
        request_id: names the request in the server's log.
        model_digest, model_version: what made the mask.
        volume_ml: of the mask.
        coverage: what was looked at and what was not.
        milliseconds: the server's own time.
        notice: what the mask may be used for.
        out_of_domain: why the scan is unlike what the model was made for; empty if nothing speaks for that.
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
        """How many were run."""
        return self.coverage.patches


def predict_remote(
    url: str,
    token: str,
    scan: Volume | str | PathLike[str],
    *,
    request_id: str | None = None,
    timeout_s: float = 330.0,
) -> RemoteResult:
    """Have a server segment a scan.

    Args:
        url: the server, such as http://127.0.0.1:8000.
        token: the bearer token.
        scan: a volume, or a .nii or .nii.gz file, which is sent as it is; its name is not.
        request_id: 1 to 64 of A-Z a-z 0-9 . _ -; by default the server's choice.
        timeout_s: longest silence of the server.

    Raises:
        NotFoundError: no such file.
        ResourceError: no server answers.
        DeadlineError: it took too long.
        GtvrayError: what the server says, as the class it names.
    """
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
    if request_id is not None:
        headers["X-Request-ID"] = request_id
    try:
        # Loading the trusted certificates takes 30 ms, for nothing where there is no TLS.
        with httpx.Client(verify=not url.startswith("http://"), timeout=timeout_s) as client:
            answer = client.post(f"{url.rstrip('/')}/v1/predict", content=_content(scan), headers=headers)
    except httpx.TimeoutException as error:
        raise DeadlineError("the server took too long", where=url, expected=f"{timeout_s:g} s") from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ResourceError(
            "no server answers here", where=url, found=error, do="start one with `gtvray serve`, or mend the address"
        ) from error
    if answer.status_code != httpx.codes.OK:
        raise _error(answer, url)
    return _result(answer, url)


def _content(scan: Volume | str | PathLike[str]) -> bytes:
    if isinstance(scan, Volume):
        return encode_nifti(scan, compress=True)
    try:
        return Path(scan).read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError("no such file", where=scan, expected="a .nii or .nii.gz file") from error


def _error(answer: httpx.Response, url: str) -> GtvrayError:
    if answer.headers.get("content-type") == MEDIA_TYPE:
        return error_of(answer.json(), url)
    return ResourceError("the server gave no answer of ours", where=url, found=f"HTTP {answer.status_code}")


def _result(answer: httpx.Response, url: str) -> RemoteResult:
    headers = answer.headers
    try:
        return RemoteResult(
            mask=decode_labels(answer.content, url).volume,
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
        raise ResourceError("not an answer of a gtvray server", where=url, found=f"no header {error}") from error
