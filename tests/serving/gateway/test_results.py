"""The answer to a segmentation: media types, the JSON document, and the OpenAPI document."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gtvray import NOTICE
from gtvray.config import ServingConfig
from gtvray.errors import NotAcceptableError
from gtvray.geometry import Volume
from gtvray.inference import Coverage, MaskUncertainty
from gtvray.io import encode_nifti
from gtvray.serving.gateway.openapi import RESULT_RESPONSE
from gtvray.serving.gateway.results import negotiate, result_document, result_response
from gtvray.serving.transfer.work import Prediction

from ..local_api import make_api

SNAPSHOT = Path(__file__).with_name("openapi.json")
MASK = encode_nifti(Volume(np.zeros((4, 4, 4), np.uint8), np.eye(4)), compress=True)
PREDICTION = Prediction(
    MASK,
    1.23456,
    Coverage("body", "no suspicion", 3, 1, 0.25),
    "d" * 64,
    "7",
    ("no skull",),
    {"wait": 0.5},
    "nodes",
    MaskUncertainty(0.123456, 0.5),
)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/gzip"),
        (" ", "application/gzip"),
        ("*/*", "application/gzip"),
        ("application/*", "application/gzip"),
        ("application/json", "application/json"),
        ("text/html, application/json;q=0.9", "application/json"),
        ("application/gzip;q=0.1, application/json", "application/json"),
        ("application/json;q=0.1, application/x-gzip", "application/x-gzip"),
        ("application/octet-stream", "application/octet-stream"),
        ("application/json, */*;q=0.5", "application/json"),
    ],
)
def test_media_type_follows_accept(accept: str | None, chosen: str) -> None:
    assert negotiate(accept) == chosen


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/png, text/*", "junk"])
def test_other_media_types_are_not_acceptable(accept: str) -> None:
    with pytest.raises(NotAcceptableError):
        negotiate(accept)


def test_document_holds_the_mask_or_its_address() -> None:
    document = result_document(PREDICTION, "r" * 32, 2.0)
    answered = json.loads(bytes(result_response(document, MASK, "application/json").body))
    assert base64.b64decode(answered["mask"].pop("base64")) == MASK
    assert answered == {
        "request_id": "r" * 32,
        "model": {"version": "7", "digest": "d" * 64, "name": "nodes"},
        "volume_ml": 1.235,
        "mode": "body",
        "flags": {"out_of_domain": ["no skull"], "fallback": "no suspicion"},
        "uncertainty": {"expected_dice_loss": 0.1235, "mean_entropy_bits": 0.5},
        "patches": 3,
        "patches_skipped": 1,
        "volume_skipped_share": 0.25,
        "timings_s": {"wait": 0.5, "total": 2.0},
        "mask": {"media_type": "application/gzip", "href": None},
        "notice": NOTICE,
    }
    stored = result_document(PREDICTION, "r" * 32, 2.0, "/v1/jobs/1/results/0")
    assert (stored.mask.base64, stored.mask.href) == (None, "/v1/jobs/1/results/0")
    response = result_response(document, MASK, "application/gzip")
    assert (response.body, response.headers["Vary"]) == (MASK, "Accept")
    described = {name.lower() for name in RESULT_RESPONSE[200]["headers"]}
    assert {name for name in response.headers if name.startswith("x-gtvray")} == described


def test_openapi_document_is_the_snapshot(tmp_path: Path) -> None:
    """After an intended change, write the document that this test compares to `openapi.json`."""
    app: Any = make_api(tmp_path, ServingConfig())
    document: dict[str, Any] = app.openapi()
    assert document == json.loads(SNAPSHOT.read_text())
    for path, operations in document["paths"].items():
        for operation in operations.values():
            protected = path.startswith(("/v1/", "/metrics"))
            assert ("security" in operation) == ("401" in operation["responses"]) == protected
            for status, response in operation["responses"].items():
                assert "X-Request-ID" in response["headers"]
                assert status in {"200", "202"} or "application/problem+json" in response["content"]
