"""The client: a scan to a server, a mask back."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import httpx

from gtvray.errors import InputError, NotFoundError, ResourceError
from gtvray.geometry import Volume
from gtvray.inference import Coverage
from gtvray.io import HEAD_BYTES, decode_labels, encode_nifti, read_volume
from gtvray.serving.request_ids import REQUEST_ID_FORM, REQUEST_ID_HEADER, is_request_id
from gtvray.serving.transport import error_in, no_answer, open_client
from gtvray.serving.uploads import check_file


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

    A server on this machine is asked without a proxy; others through the one that the environment names for them.

    Args:
        url: the server, such as http://127.0.0.1:8000.
        token: the bearer token.
        scan: a volume, or a NIfTI or NRRD file, which is sent as it is; its name is not.
        request_id: a UUID or 32 hexadecimal digits; by default the server's choice.
        timeout_s: longest silence of the server.

    Raises:
        NotFoundError: no such file.
        VolumeError: the file is no volume; found before it is sent, if its first bytes say so.
        ContentTypeError: the file is something else that is known; found before it is sent.
        InputError: the request id has another form, or the environment names a proxy that cannot be used.
        ResourceError: no server answers, or something else in its place, which is named.
        DeadlineError: it took too long.
        GtvrayError: what the server says, as the class it names.
    """
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
    if request_id is not None:
        if not is_request_id(request_id):
            raise InputError("a request id names nobody", where="request_id", expected=REQUEST_ID_FORM)
        headers[REQUEST_ID_HEADER] = request_id
    content = _content(scan)
    try:
        with open_client(url, timeout_s) as client:
            answer = client.post(f"{url.rstrip('/')}/v1/predict", content=content, headers=headers)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise no_answer(error, url, timeout_s) from error
    if answer.status_code != httpx.codes.OK or "X-Gtvray-Model-Digest" not in answer.headers:
        raise error_in(answer, url)
    return _result(answer, url)


def _content(scan: Volume | str | PathLike[str]) -> bytes:
    if isinstance(scan, Volume):
        return encode_nifti(scan, compress=True)
    path = Path(scan)
    if path.suffix.lower() == ".nhdr":
        # Its voxels are in another file.
        return encode_nifti(read_volume(path), compress=True)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError("no such file", where=scan, expected="a .nii, .nii.gz or .nrrd file") from error
    except IsADirectoryError as error:
        raise InputError("a folder, not a file", where=scan, expected="a .nii, .nii.gz or .nrrd file") from error
    check_file(content[:HEAD_BYTES], scan)
    return content


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
