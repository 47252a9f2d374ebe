"""The HTTP routes. Their process never imports torch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gtvray import NOTICE, __version__
from gtvray.errors import GtvrayError, InputError
from gtvray.serving.arguments import AppArguments, read_token
from gtvray.serving.gateway.access import Access
from gtvray.serving.gateway.audit import AuditedJobs, AuditLog
from gtvray.serving.gateway.guard import KUBERAY_PATH, OPEN_PATHS, Guard
from gtvray.serving.gateway.openapi import RESULT_RESPONSE, VOLUME_BODY, ModelQuery, errors, install_openapi
from gtvray.serving.gateway.results import JSON, negotiate, result_document, result_response
from gtvray.serving.gateway.segmenter import Report, Segmenter
from gtvray.serving.gateway.tokens import Role
from gtvray.serving.jobs import JobRoutes, Jobs, ReplicasDocument
from gtvray.serving.jobs.documents import QueueDocument
from gtvray.serving.jobs.records import Requester
from gtvray.serving.jobs.references import Allowed, Reference, opened_reference, pin_reference, read_reference
from gtvray.serving.metrics import (
    BODY_BYTES,
    OUT_OF_DOMAIN,
    PENDING,
    SCAN_SECONDS,
    SCANS,
    SPOOL_BYTES,
    exposition,
    set_models,
    set_queue,
    set_rejected,
    set_replicas,
)
from gtvray.serving.problems import MEDIA_TYPE, http_problem, problem_response
from gtvray.serving.replica.admission import admit_beginning
from gtvray.serving.request_log import log_event
from gtvray.serving.routing import ServedModels
from gtvray.serving.shadow import Shadow
from gtvray.serving.tracing import NO_TRACES, Tracing
from gtvray.serving.transfer.spool import Body, Spool
from gtvray.serving.transfer.uploads import UploadLimits, check_declared, media_type_of, spool_upload
from gtvray.serving.transfer.work import Prediction
from gtvray.serving.versions.served import Served

_Result = TypeVar("_Result")
_SEGMENT_BODY = {
    **VOLUME_BODY,
    "description": f"{VOLUME_BODY['description']}; or a path below a folder that the operator allows, which requires "
    "the role jobs",
    "content": {**VOLUME_BODY["content"], JSON: {"schema": Reference.model_json_schema()}},
}


class Api:
    """The HTTP routes.

    Args:
        args: the application's arguments.
        models: the models that requests may name.
        spool: stores the bodies of requests.
        segmenter: computes the mask of a spooled body.
        shadow: compares a candidate version on requests for the default model; None if there is none.
        tracing: receives the spans of requests.

    Raises:
        ConfigError: no token is configured.
    """

    def __init__(
        self,
        args: AppArguments,
        models: ServedModels,
        spool: Spool,
        segmenter: Segmenter,
        shadow: Shadow | None = None,
        *,
        tracing: Tracing = NO_TRACES,
    ) -> None:
        self._models, self._spool, self._segmenter, self._shadow = models, spool, segmenter, shadow
        self._tracing = tracing
        self._args, serving = args, args.serving
        self._access = Access(read_token(args.token_file), args.tokens, serving.client_requests_per_minute)
        self._audit, self._origins = AuditLog(args.audit), serving.cors_origins
        self._limits = UploadLimits(serving.max_upload_mb << 20, serving.min_upload_kb_per_s << 10)
        self._references = Allowed(serving.jobs.roots, serving.jobs.uris, self._limits.most_bytes, spool)
        self._jobs: Jobs | None = None
        if args.jobs_dir is not None:
            self._jobs = AuditedJobs(
                self._audit, args.jobs_dir, serving.jobs, self._limits, self.segment_for_job, spool
            )

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
        app.add_middleware(
            Guard,
            access=self._access,
            limits=self._limits,
            origins=self._origins,
            tracing=self._tracing,
            audit=self._audit,
        )
        app.add_exception_handler(HTTPException, _http_error_response)
        app.add_exception_handler(RequestValidationError, _invalid_request_response)
        install_openapi(app, OPEN_PATHS)
        app.add_api_route("/healthz", self.healthz, methods=["GET"])
        # KubeRay probes Serve's proxy at this path.
        app.add_api_route(KUBERAY_PATH, self.kuberay, methods=["GET"], include_in_schema=False)
        app.add_api_route("/readyz", self.readyz, methods=["GET"], responses=errors())
        app.add_api_route(
            "/metrics", self.metrics, methods=["GET"], response_class=PlainTextResponse, responses=errors()
        )
        app.add_api_route("/v1/model", self.describe, methods=["GET"], responses=errors(404))
        app.add_api_route("/v1/models", self.models, methods=["GET"], responses=errors())
        for path in ("/v1/segment", "/v1/predict"):
            app.add_api_route(
                path,
                self.segment,
                name=path.rpartition("/")[2],
                methods=["POST"],
                response_class=Response,
                responses=RESULT_RESPONSE | errors(404, 406, 408, 409, 413, 415, 422, 504, 507),
                openapi_extra={"requestBody": _SEGMENT_BODY},
                deprecated=path == "/v1/predict",
            )
        app.include_router(JobRoutes(self._jobs, _requester, self._choose, self._load).router())
        return app

    def stop(self) -> None:
        """Close the event streams of jobs."""
        if self._jobs is not None:
            self._jobs.stopping = True

    async def healthz(self) -> dict[str, str]:
        """Liveness probe: the process responds."""
        return {"status": "ok"}

    async def kuberay(self) -> Response:
        """Liveness probe of KubeRay, which expects this text."""
        return Response("success", media_type="text/plain")

    async def metrics(self) -> Response:
        """Metrics of this gateway in the Prometheus format; requires the role admin."""
        PENDING.set(self._segmenter.pending)
        SPOOL_BYTES.set(self._spool.used_bytes)
        described, replicas = {}, {}
        for served in self._models:
            if (counts := await served.replicas()) is not None:
                replicas[served.name] = counts
            with suppress(GtvrayError):
                described[served.name] = await served.describe()
        set_replicas(replicas)
        set_models(described)
        set_rejected({served.name: len(served.versions().rejected) for served in self._models})
        set_queue(await self._queue())
        text, media_type = exposition()
        return Response(text, media_type=media_type)

    async def _queue(self) -> QueueDocument | None:
        """The queue of jobs; None if the database does not respond, which must not withhold the other metrics."""
        if self._jobs is None:
            return QueueDocument(queued=0, running=0, expected_wait_s=None)
        try:
            return await self._jobs.queue()
        except Exception as error:  # noqa: BLE001
            log_event("queue_unknown", "metrics", logging.ERROR, kind=type(error).__name__)
            return None

    async def readyz(self) -> dict[str, str]:
        """Readiness probe: the default model is loaded and reproduces its golden cases, as of the last check."""
        return {"status": "ready", "golden": (await self._models.default.describe())["golden"]}

    async def describe(self, request: Request, model: ModelQuery = None) -> dict[str, Any]:
        """Describe the served version of a model and its intended use."""
        served = self._chosen(request, model)
        return {**await served.describe(), "name": served.name, "intended_use": NOTICE}

    async def models(self) -> dict[str, Any]:
        """List the versions of each model and the shadow version; the default model is repeated at the top level."""
        default, *further = [await _versions(served) for served in self._models]
        each = [
            {"name": served.name, "default": served is self._models.default, **versions}
            for served, versions in zip(self._models, (default, *further), strict=True)
        ]
        shadow = self._shadow.describe() if self._shadow is not None else None
        return {**default, "models": each, "shadow": shadow, "intended_use": NOTICE}

    async def segment(self, request: Request, model: ModelQuery = None) -> Response:
        """Segment a NIfTI or NRRD body, or a referenced file; the response is the mask on its grid, or JSON."""
        began, media_type = time.monotonic(), negotiate(request.headers.get("accept"))
        served = self._chosen(request, model)
        async with self.received(request, served) as body:
            client = request.state.client.name
            work = self._segmenter.segment(served, body, request.state.request_id, client=client)
            prediction = await self._audited(
                request.state.request_id, client, served, body, unless_disconnected(request, work)
            )
            compare = self._offer(request, served, body, prediction)
        document = result_document(prediction, request.state.request_id, time.monotonic() - began)
        response = result_response(document, prediction.mask_gz, media_type)
        response.background = compare
        return response

    async def segment_for_job(
        self, body: Body, model: str | None, client: str, request_id: str, report: Report
    ) -> Prediction:
        """Segment a volume of a job; see `gtvray.serving.jobs.worker.Segment`."""
        served = self._models.of(model)
        work = self._segmenter.segment(served, body, request_id, report, client=client)
        return await self._audited(request_id, client, served, body, work)

    def _offer(self, request: Request, served: Served, body: Body, prediction: Prediction) -> BackgroundTask | None:
        """Offer an answered request, unless it referenced a file that is not the endpoint's, to the shadow version."""
        if self._shadow is None or served is not self._models.default or _is_reference(request):
            return None
        return self._shadow.offer(body, prediction, request.state.request_id)

    def _chosen(self, request: Request, name: str | None) -> Served:
        """The model that a request names.

        Raises:
            NotFoundError: the endpoint does not serve it.
            ForbiddenError: the client may not use it.
        """
        served = self._models.of(name)
        request.state.client.require_model(served.name)
        return served

    def _choose(self, request: Request, name: str | None) -> str | None:
        """Check the model of a job; see `gtvray.serving.jobs.JobRoutes`."""
        served = self._chosen(request, name)
        return None if served is self._models.default else served.name

    async def _load(self) -> dict[str, Any]:
        """Scans in progress and replicas, for the queue."""
        serving = self._args.serving
        counted = [(served.name, await served.replicas()) for served in self._models]
        replicas = [
            ReplicasDocument(
                model=name,
                running=found.running,
                starting=found.starting,
                smallest=serving.model_replicas,
                largest=serving.max_model_replicas or serving.model_replicas,
            )
            for name, found in counted
            if found is not None
        ]
        return {"scans": self._segmenter.pending, "replicas": replicas}

    async def _audited(
        self, request_id: str, client: str, served: Served, body: Body, work: Coroutine[Any, Any, Prediction]
    ) -> Prediction:
        """Await the segmentation of a body, and record its outcome."""
        # The version to which the work, which has not begun, is pinned. A mask names its version itself.
        model, outcome = {"model_name": served.name, **served.identity()}, "failed"
        BODY_BYTES.inc(body.size)
        if self._shadow is not None:
            self._shadow.make_way()
        try:
            with SCAN_SECONDS.labels(served.name).time():
                prediction = await work
            model |= {"model": prediction.digest, "version": prediction.version}
            outcome = "segmented"
            OUT_OF_DOMAIN.labels(served.name).inc(bool(prediction.out_of_domain))
        except GtvrayError as error:
            outcome = type(error).__name__
            raise
        except ClientDisconnect:
            outcome = "disconnected"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            SCANS.labels(outcome, served.name).inc()
            await self._audit.write(request_id, client=client, input=body.sha256, outcome=outcome, **model)
        return prediction

    @asynccontextmanager
    async def received(self, request: Request, served: Served) -> AsyncIterator[Body]:
        """Receive the body of a request, or the file that it references; the file exists within the `async with` block.

        Capacity, declared size and free space are checked before the first byte is read, and the header of a large
        body while the rest arrives.

        Raises:
            GtvrayError: the body cannot be accepted.
        """
        client = request.state.client.name
        with served.pinned():
            self._segmenter.require_capacity(client)
        if _is_reference(request):
            # The roles of jobs: whoever may not submit one reads nothing of the server's disks and stores.
            request.state.client.require(Role.JOBS)
            reference = await read_reference(request, self._limits)
            pinned = await asyncio.to_thread(pin_reference, reference, self._references)
            async with opened_reference(pinned, self._references, client) as body:
                yield body
            return
        declared = check_declared(request.headers, self._limits)
        self._spool.require_space(client, declared)
        check = partial(
            admit_beginning,
            file_bytes=declared or self._limits.most_bytes,
            serving=self._args.serving,
            described=served.last_description,
        )
        async with self._spool.create(client) as file:
            with self._tracing.span("receive"):
                body = await spool_upload(request, file, self._limits, check)
            yield body


def _is_reference(request: Request) -> bool:
    return media_type_of(request.headers) == JSON


def _requester(request: Request) -> Requester:
    client = request.state.client
    return Requester(client.name, sees_all=client.role >= Role.ADMIN)


async def _versions(served: Served) -> dict[str, Any]:
    versions = served.versions().as_dict()
    if not served.follows:
        described = await served.describe()
        versions["current"] = {"version": described["version"], "digest": described["digest"]}
    return versions


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
