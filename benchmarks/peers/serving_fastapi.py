"""Plain FastAPI around a predictor, as a contestant of `serving_peers.py`: the body is read, then a thread segments it.

`predictor` uses gtvray's predictor, `monai` MONAI's usual pipeline with the network of the bundle. Both have as many
threads as gtvray's endpoint.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from gtvray.io import decode_nifti, encode_nifti
from gtvray.models import Bundle

Segment = Callable[[bytes], bytes]


def build(segment: Segment) -> FastAPI:
    """An application with one route."""
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok"

    @app.post("/v1/segment")
    async def predict(request: Request) -> Response:
        body = await request.body()
        return Response(await run_in_threadpool(segment, body), media_type="application/gzip")

    return app


def predictor(bundle: Bundle, threads: int) -> Segment:
    """gtvray's predictor."""
    from gtvray.inference import Predictor

    loaded = Predictor(bundle, threads=threads)
    loaded.warm()
    return lambda body: encode_nifti(loaded.predict(decode_nifti(body)), compress=True)


def monai(bundle: Bundle, threads: int) -> Segment:
    """MONAI's usual pipeline."""
    from peers.inference_monai import Chain

    torch.set_num_threads(threads)
    chain = Chain(bundle)

    def segment(body: bytes) -> bytes:
        with tempfile.NamedTemporaryFile(suffix=".nii.gz") as file:
            file.write(body)
            file.flush()
            return encode_nifti(chain.segment(Path(file.name)), compress=True)

    return segment


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1]))
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["predictor", "monai"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    application = build({"predictor": predictor, "monai": monai}[given.kind](Bundle.load(given.model), given.threads))
    uvicorn.run(application, port=given.port, log_level="warning", access_log=False)
