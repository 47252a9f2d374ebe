"""The HTTP routes. Their process never imports torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from gtvray import NOTICE, __version__
from gtvray.errors import GtvrayError, InputError
from gtvray.serving.access import Access
from gtvray.serving.arguments import AppArguments, read_token
from gtvray.serving.audit import AuditLog
from gtvray.serving.guard import KUBERAY_PATH, OPEN_PATHS, Guard
from gtvray.serving.jobs import JobRoutes, Jobs
from gtvray.serving.metrics import (
    BODY_BYTES,
    OUT_OF_DOMAIN,
    PENDING,
    SCAN_SECONDS,
    SCANS,
    SPOOL_BYTES,
    exposition,
    set_model,
)
from gtvray.serving.openapi import RESULT_RESPONSE, VOLUME_BODY, errors, install_openapi
from gtvray.serving.problems import MEDIA_TYPE, http_problem, problem_response
from gtvray.serving.results import negotiate, result_document, result_response
from gtvray.serving.segmenter import Report, Segmenter
from gtvray.serving.served import Served
from gtvray.serving.spool import Body, Spool
from gtvray.serving.uploads import UploadLimits, check_declared, spool_upload
from gtvray.serving.work import Prediction

_Result = TypeVar("_Result")


class Api:
    """The HTTP routes.

    Args:
        args: the application's arguments.
        served: the model that requests go to.
        spool: stores the bodies of requests.
        segmenter: computes the mask of a spooled body.

    Raises:
        ConfigError: no token is configured.
    """

    def __init__(self, args: AppArguments, served: Served, spool: Spool, segmenter: Segmenter) -> None:
        self._served, self._spool, self._segmenter = served, spool, segmenter
        serving = args.serving
        self._access = Access(read_token(args.token_file), args.tokens, serving.client_requests_per_minute)
        self._audit, self._origins = AuditLog(args.audit), serving.cors_origins
        self._limits = UploadLimits(serving.max_upload_mb << 20, serving.min_upload_kb_per_s << 10)
        self._jobs: Jobs | None = None
        if args.jobs_dir is not None:
            self._jobs = Jobs(args.jobs_dir, serving.jobs, self._limits.most_bytes, self.segment_for_job)

    def build_app(self) -> FastAPI:
        """Build the ASGI application."""
        app = FastAPI(
            title="gtvray",
            description=NOTICE,
            version=__version__,
            docs_url=None,
            redoc_url=None,
            # A client that does not follow a redirect of POST would store an empty mask.
            redirect_slashes=False,
            generate_unique_id_function=lambda route: route.name,
        )
        app.add_middleware(Guard, access=self._access, origins=self._origins)
        app.add_exception_handler(HTTPException, _http_error_response)
        app.add_exception_handler(RequestValidationError, _invalid_request_response)
        install_openapi(app, OPEN_PATHS)
        app.add_api_route("/healthz", self.healthz, methods=["GET"])
        # Where KubeRay looks for Serve's proxy.
        app.add_api_route(KUBERAY_PATH, self.kuberay, methods=["GET"], include_in_schema=False)
        app.add_api_route("/readyz", self.readyz, methods=["GET"], responses=errors())
        app.add_api_route("/metrics", self.metrics, methods=["GET"], response_class=Response, responses=errors())
        app.add_api_route("/v1/model", self.describe, methods=["GET"], responses=errors())
        app.add_api_route("/v1/models", self.models, methods=["GET"], responses=errors())
        for path in ("/v1/segment", "/v1/predict"):
            app.add_api_route(
                path,
                self.segment,
                name=path.rpartition("/")[2],
                methods=["POST"],
                response_class=Response,
                responses=RESULT_RESPONSE | errors(406, 408, 413, 415, 422, 504, 507),
                openapi_extra={"requestBody": VOLUME_BODY},
                deprecated=path == "/v1/predict",
            )
        app.include_router(JobRoutes(self._jobs, lambda request: str(request.state.client.name)).router())
        return app

    async def healthz(self) -> dict[str, str]:
        """Liveness probe: the process responds."""
        return {"status": "ok"}

    async def kuberay(self) -> Response:
        """Liveness probe of KubeRay, which expects this text."""
        return Response("success", media_type="text/plain")

    async def metrics(self) -> Response:
        """Metrics of this gateway for Prometheus, for the role admin."""
        PENDING.set(self._segmenter.pending)
        SPOOL_BYTES.set(self._spool.used_bytes)
        try:
            set_model(await self._served.describe())
        except GtvrayError:
            set_model(None)
        text, media_type = exposition()
        return Response(text, media_type=media_type)

    async def readyz(self) -> dict[str, str]:
        """Readiness probe: a model is loaded and reproduces its golden cases, as of the last background check."""
        return {"status": "ready", "golden": (await self._served.describe())["golden"]}

    async def describe(self) -> dict[str, Any]:
        """Describe the served model and its intended use."""
        return {**await self._served.describe(), "intended_use": NOTICE}

    async def models(self) -> dict[str, Any]:
        """List the served version, the one being loaded, and those that were rejected with their reasons."""
        versions = self._served.versions().as_dict()
        if not self._served.follows:
            described = await self._served.describe()
            versions["current"] = {"version": described["version"], "digest": described["digest"]}
        return {**versions, "intended_use": NOTICE}

    async def segment(self, request: Request) -> Response:
        """Segment a NIfTI or NRRD body; the response is the mask on the scan's own grid, or its metadata as JSON."""
        began, media_type = time.monotonic(), negotiate(request.headers.get("accept"))
        async with self.received(request) as body:
            work = self._segmenter.segment(body, request.state.request_id)
            prediction = await self._audited(
                request.state.request_id, request.state.client.name, body, unless_disconnected(request, work)
            )
        document = result_document(prediction, request.state.request_id, time.monotonic() - began)
        return result_response(document, prediction.mask_gz, media_type)

    async def segment_for_job(self, body: Body, client: str, request_id: str, report: Report) -> Prediction:
        """Segment a volume of a job; see `gtvray.serving.jobs.worker.Segment`."""
        return await self._audited(request_id, client, body, self._segmenter.segment(body, request_id, report))

    async def _audited(
        self, request_id: str, client: str, body: Body, work: Coroutine[Any, Any, Prediction]
    ) -> Prediction:
        """Await the segmentation of a body, and record its outcome."""
        model, outcome = dict[str, str](), "failed"
        BODY_BYTES.inc(body.size)
        try:
            with SCAN_SECONDS.time():
                prediction = await work
            model, outcome = {"model": prediction.digest, "version": prediction.version}, "segmented"
            OUT_OF_DOMAIN.inc(bool(prediction.out_of_domain))
        except GtvrayError as error:
            outcome = type(error).__name__
            raise
        except ClientDisconnect:
            outcome = "disconnected"
            raise
        finally:
            SCANS.labels(outcome).inc()
            await self._audit.write(request_id, client=client, input=body.sha256, outcome=outcome, **model)
        return prediction

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[Body]:
        """The body of a request in the spool, which exists within the `async with` block.

        Capacity, declared size and free space are checked before the first byte is read.

        Raises:
            GtvrayError: the body cannot be accepted.
        """
        with self._served.pinned():
            self._segmenter.require_capacity()
        declared = check_declared(request.headers, self._limits)
        client = request.state.client.name
        self._spool.require_room(client, declared)
        async with self._spool.create(client) as file:
            yield await spool_upload(request, file, self._limits)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Await work for a request whose body has been read, and cancel it when the client disconnects.

    Raises:
        ClientDisconnect: the client disconnected.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _http_error_response(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    problem = http_problem(error.status_code, request.state.request_id)
    return JSONResponse(problem, error.status_code, error.headers, MEDIA_TYPE)


async def _invalid_request_response(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    problem = InputError("a parameter is invalid", where=".".join(map(str, first["loc"])), expected=first["msg"])
    return problem_response(problem, request.state.request_id)
