"""The API in this process, without a socket and without Serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp

from gtvray.config import ServingConfig
from gtvray.serving.api import Api
from gtvray.serving.arguments import AppArguments
from gtvray.serving.segmenter import Segmenter
from gtvray.serving.served import Served
from gtvray.serving.spool import Spool
from gtvray.serving.stream import BodyStream

from .conftest import TOKEN


def make_api(folder: Path, serving: ServingConfig, model: Any = None, spool: Spool | None = None) -> ASGIApp:
    """The application with a token file and a spool in a folder.

    Args:
        folder: for both.
        serving: the settings.
        model: what is called instead of the handle of the Model deployment.
        spool: instead of one in the folder.
    """
    token_file = folder / "token"
    token_file.write_text(TOKEN)
    args = AppArguments(token_file=token_file, serving=serving)
    served = Served(args, model if model is not None else object())
    spool = spool or Spool(folder, serving.spool_limit_bytes, serving.client_spool_limit_bytes)
    return Api(args, served, spool, Segmenter(args, served, spool, BodyStream(), "node")).build_app()


def problem_of(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem document of a response, checked for status, type, and the same request id in header and body."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert (problem["type"], problem["status"]) == (kind, status)
    assert response.headers.get_list("X-Request-ID") == [problem["instance"]]
    return problem
