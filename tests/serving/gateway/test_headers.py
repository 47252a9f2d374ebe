"""The metadata of a prediction is transferred to the client in response headers."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from gtvray.geometry import Volume
from gtvray.inference import Coverage
from gtvray.io import encode_nifti
from gtvray.serving.client.volumes import decode_result
from gtvray.serving.gateway.results import result_document, result_headers
from gtvray.serving.transfer.work import Prediction


@pytest.mark.parametrize("reasons", [(), ("no airway in the body (air_share 0, usual at least 0.007)", "no skull")])
def test_out_of_domain_reasons_reach_the_client(reasons: tuple[str, ...]) -> None:
    mask = encode_nifti(Volume(np.zeros((4, 4, 4), np.uint8), np.eye(4)), compress=True)
    coverage = Coverage("body", None, 3, 1, 0.25)
    prediction = Prediction(mask, 0.0, coverage, "digest", "1", out_of_domain=reasons)
    headers = result_headers(result_document(prediction, "r", 0.005))
    assert ("X-Gtvray-Out-Of-Domain" in headers) == bool(reasons)
    result = decode_result(httpx.Response(200, content=mask, headers={**headers, "X-Request-ID": "r"}), "http://x")
    assert result.out_of_domain == reasons
    assert result.coverage == coverage
