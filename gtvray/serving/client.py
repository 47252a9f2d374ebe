"""The HTTP client: send a scan to an endpoint and receive its mask. Imports neither torch nor ray.

Requests to this machine bypass proxies, and a proxy's response is reported as such, not as the endpoint's.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from os import PathLike
from pathlib import Path

import httpx

from gtvray.errors import DeadlineError, GtvrayError, InputError, NotFoundError, ResourceError
from gtvray.geometry import Volume
from gtvray.inference import Coverage
from gtvray.io import HEAD_BYTES, decode_labels, encode_nifti, read_volume
from gtvray.runtime import proxy_for, without_credentials
from gtvray.serving.problems import MEDIA_TYPE, error_of
from gtvray.serving.request_log import REQUEST_ID_FORM, REQUEST_ID_HEADER, is_request_id
from gtvray.serving.uploads import check_file

_PROXY_ADVICE = "name the endpoint's host in NO_PROXY, or correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"


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


def predict_remote(
    url: str,
    token: str,
    scan: Volume | str | PathLike[str],
    *,
    request_id: str | None = None,
    timeout_s: float = 330.0,
) -> RemoteResult:
    """Send a scan to a server and return the predicted mask.

    A server on this machine is reached without a proxy, any other through the proxy that the environment sets for it.

    Args:
        url: address of the server, such as http://127.0.0.1:8000.
        token: the bearer token.
        scan: a volume, or a NIfTI or NRRD file, whose content is sent unchanged and whose name is not sent.
        request_id: a UUID or 32 hexadecimal digits; by default the server assigns one.
        timeout_s: time without data from the server after which the request fails.

    Raises:
        NotFoundError: the file does not exist.
        VolumeError: the file is not a valid volume; detected before sending where its first bytes show it.
        ContentTypeError: the file is of another known format; detected before sending.
        InputError: the request id is invalid, or the environment sets a proxy that cannot be used.
        ResourceError: nothing responds, or something other than a gtvray server, which is named.
        DeadlineError: the server did not respond in time.
        GtvrayError: an error reported by the server, in the class that the server names.
    """
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
    if request_id is not None:
        if not is_request_id(request_id):
            raise InputError("invalid request id", where="request_id", expected=REQUEST_ID_FORM)
        headers[REQUEST_ID_HEADER] = request_id
    content = _encode_scan(scan)
    try:
        with open_client(url, timeout_s) as client:
            response = client.post(f"{url.rstrip('/')}/v1/predict", content=content, headers=headers)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise _transport_error(error, url, timeout_s) from error
    if response.status_code != httpx.codes.OK or "X-Gtvray-Model-Digest" not in response.headers:
        raise response_error(response, url)
    return decode_result(response, url)


def open_client(url: str, timeout_s: float) -> httpx.Client:
    """Open an HTTP client for one endpoint; the caller closes it.

    Raises:
        InputError: the environment sets a proxy that cannot be used.
    """
    proxy = proxy_for(url)
    # Loading the trusted certificates takes 30 ms, which is wasted where TLS is not used.
    verify = not url.startswith("http://") or (proxy or "").startswith("https://")
    try:
        # An explicit transport keeps httpx from applying the environment's proxies under its own NO_PROXY rules.
        transport = httpx.HTTPTransport(verify=verify, proxy=proxy)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise InputError(
            "the proxy set in the environment cannot be used",
            where=without_credentials(proxy or ""),
            expected="http://host:port or https://host:port",
            do=_PROXY_ADVICE,
        ) from error
    return httpx.Client(transport=transport, timeout=timeout_s)


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
            "the response is not from a gtvray server", where=url, found=f"no header {error}"
        ) from error


def response_error(response: httpx.Response, url: str) -> GtvrayError:
    """The error of an unsuccessful response: the endpoint's own, or that another server responded."""
    if response.headers.get("content-type", "").startswith(MEDIA_TYPE):
        try:
            return error_of(response.json(), url)
        except (ValueError, AttributeError, TypeError):
            pass
    try:
        found = f"HTTP {response.status_code} {HTTPStatus(response.status_code).phrase}"
    except ValueError:
        found = f"HTTP {response.status_code}"
    proxy = proxy_for(url)
    if proxy:
        return ResourceError(
            "the response came from the proxy, not from the endpoint",
            where=without_credentials(proxy),
            expected=f"a response of {url}",
            found=found,
            do=_PROXY_ADVICE,
        )
    if _is_from_a_proxy(response):
        return ResourceError(
            "the response came from an intermediate proxy, not from the endpoint",
            where=url,
            found=f"{found}, {response.headers.get('via') or response.headers.get('server') or 'an HTML page'}",
            do="contact the proxy's operator, or use the endpoint's own address",
        )
    return ResourceError("the response is not from a gtvray server", where=url, found=found, do="correct the address")


def _encode_scan(scan: Volume | str | PathLike[str]) -> bytes:
    if isinstance(scan, Volume):
        return encode_nifti(scan, compress=True)
    path = Path(scan)
    if path.suffix.lower() == ".nhdr":
        # The voxels of a detached header are in another file.
        return encode_nifti(read_volume(path), compress=True)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError("no such file", where=scan, expected="a .nii, .nii.gz or .nrrd file") from error
    except IsADirectoryError as error:
        raise InputError("a folder, not a file", where=scan, expected="a .nii, .nii.gz or .nrrd file") from error
    check_file(content[:HEAD_BYTES], scan)
    return content


def _transport_error(error: httpx.TransportError | httpx.InvalidURL, url: str, timeout_s: float) -> GtvrayError:
    """The error of a request without a response."""
    proxy = proxy_for(url) if not isinstance(error, httpx.InvalidURL) else None
    shown = without_credentials(proxy or "")
    if isinstance(error, httpx.TimeoutException):
        through = f", through the proxy {shown}" if proxy else ""
        return DeadlineError(
            "the server did not respond in time", where=f"{url}{through}", expected=f"within {timeout_s:g} s"
        )
    if proxy:
        refused = isinstance(error, httpx.ProxyError)
        return ResourceError(
            "the proxy refused the request to the endpoint"
            if refused
            else "the proxy to the endpoint does not respond",
            where=shown,
            expected=url,
            found=error,
            do=_PROXY_ADVICE,
        )
    do = "start a server with `gtvray serve`, or correct the address"
    return ResourceError("no server responds at this address", where=url, found=error, do=do)


def _is_from_a_proxy(response: httpx.Response) -> bool:
    return (
        response.status_code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
        or "via" in response.headers
        or any(name.startswith("proxy-") for name in response.headers)
        or response.headers.get("content-type", "").startswith("text/html")
    )
