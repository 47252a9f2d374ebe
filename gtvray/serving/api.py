"""The Api deployment: HTTP routes, limits and retries. Its process never imports torch."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import ray
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gtvray import NOTICE, __version__
from gtvray.errors import (
    BusyError,
    DeadlineError,
    GtvrayError,
    InputError,
    NotReadyError,
    NotReproducedError,
    ResourceError,
)
from gtvray.serving.arguments import AppArguments, read_token
from gtvray.serving.guard import OPEN_PATHS, Guard
from gtvray.serving.jobs import JobRoutes, Jobs, ReplicaLostError
from gtvray.serving.model import Prediction
from gtvray.serving.openapi import RESULT_RESPONSE, VOLUME_BODY, errors, install_openapi
from gtvray.serving.pointer import Pointer, Versions
from gtvray.serving.problems import MEDIA_TYPE, http_problem, problem_response
from gtvray.serving.request_log import log_event
from gtvray.serving.results import negotiate, result_document, result_response
from gtvray.serving.uploads import spool_upload

_REPLICA_LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)
_ATTEMPTS = 3
_DESCRIBE_TIMEOUT_S = 2.0
# All requests of a replica learn of its loss within this time.
_SAME_LOSS_S = 1.0
# There is one token, so all its holders are one client.
_OWNER = "token"


class Api:
    """The HTTP routes.

    Args:
        args: the application's arguments.
        model: handle of the Model deployment, or None if no model has been promoted.

    Raises:
        ConfigError: no token is configured.
    """

    def __init__(self, args: AppArguments, model: Any) -> None:
        self._args, self._model = args, model
        self._pointer = Pointer(args.versions) if args.versions is not None else None
        self._token = read_token(args.token_file)
        self._pending = self._jobs_in_progress = 0
        self._replica_lost_at = float("-inf")
        # Serve application of a version -> requests that were admitted while it was served.
        self._pinned: Counter[str] = Counter()
        self._jobs: Jobs | None = None
        if args.jobs_dir is not None:
            self._jobs = Jobs(args.jobs_dir, args.serving.jobs, args.serving.max_upload_mb << 20, self.segment_for_job)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the ASGI application; Serve calls this in the replica, after the constructor."""
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
        app.add_middleware(Guard, token=self._token, origins=self._args.serving.cors_origins)
        app.add_exception_handler(HTTPException, _http_error_response)
        app.add_exception_handler(RequestValidationError, _invalid_request_response)
        install_openapi(app, OPEN_PATHS)
        app.add_api_route("/healthz", self.healthz, methods=["GET"])
        app.add_api_route("/readyz", self.readyz, methods=["GET"], responses=errors())
        app.add_api_route("/v1/model", self.describe, methods=["GET"], responses=errors())
        app.add_api_route("/v1/models", self.models, methods=["GET"], responses=errors())
        for path in ("/v1/segment", "/v1/predict"):
            app.add_api_route(
                path,
                self.segment,
                name=path.rpartition("/")[2],
                methods=["POST"],
                response_class=Response,
                responses=RESULT_RESPONSE | errors(406, 413, 415, 422, 504),
                openapi_extra={"requestBody": VOLUME_BODY},
                deprecated=path == "/v1/predict",
            )
        app.include_router(JobRoutes(self._jobs, lambda _: _OWNER).router())
        return app

    async def healthz(self) -> dict[str, str]:
        """Liveness probe: the process responds."""
        return {"status": "ok"}

    async def readyz(self) -> dict[str, str]:
        """Readiness probe: a model is loaded and reproduces its golden cases."""
        return {"status": "ready", "golden": (await self._describe())["golden"]}

    async def describe(self) -> dict[str, Any]:
        """Describe the served model and its intended use."""
        return {**await self._describe(), "intended_use": NOTICE}

    async def models(self) -> dict[str, Any]:
        """List the served version, the one being loaded, and those that were rejected with their reasons."""
        if self._pointer is not None:
            return {**self._pointer.read().as_dict(), "intended_use": NOTICE}
        described = await self._describe()
        current = {"version": described["version"], "digest": described["digest"]}
        return {**Versions().as_dict(), "current": current, "intended_use": NOTICE}

    async def in_use(self, app: str) -> int:
        """Number of requests in progress that belong to a version; called by the version manager."""
        return self._pinned[app]

    async def segment(self, request: Request) -> Response:
        """Segment a NIfTI or NRRD body; the response is the mask on the scan's own grid, or its metadata as JSON."""
        began, serving = time.monotonic(), self._args.serving
        media_type = negotiate(request.headers.get("accept"))
        with self._admitted() as model:
            try:
                async with asyncio.timeout(serving.timeout_s):
                    with tempfile.TemporaryFile(dir=self._args.spool_dir) as upload:
                        await spool_upload(request, upload, serving.max_upload_mb << 20)
                        content = await asyncio.to_thread(_into_object_store, upload)
                    prediction = await self._call_model(model, content, request.state.request_id)
            except TimeoutError:
                raise DeadlineError(
                    "the mask was not ready in time", expected=f"within {serving.timeout_s:g} s"
                ) from None
        document = result_document(prediction, request.state.request_id, time.monotonic() - began)
        return result_response(document, prediction.mask_gz, media_type)

    async def segment_for_job(self, content: bytes, request_id: str, report: Callable[[int, int], None]) -> Prediction:
        """Segment a volume of a job; see `gtvray.serving.jobs.worker.Segment`."""
        app, model = self._require_model()
        self._pinned[app] += 1
        self._jobs_in_progress += 1
        stream = model.options(stream=True).predict_reporting.remote(
            await asyncio.to_thread(ray.put, content), request_id
        )
        try:
            async for message in stream:
                if isinstance(message, Prediction):
                    return message
                report(*message)
        except _REPLICA_LOST:
            raise ReplicaLostError(alone=self._was_alone(app)) from None
        except DeploymentUnavailableError:
            raise NotReadyError("the model is still loading") from None
        except RayTaskError as error:
            raise _cause_of(error) from None
        except asyncio.CancelledError:
            stream.cancel()
            raise
        finally:
            self._pinned[app] -= 1
            self._jobs_in_progress -= 1
        raise ReplicaLostError(alone=False)

    def _was_alone(self, app: str) -> bool:
        """Whether a lost replica processed one volume of a job and nothing else, and was not stopped by a swap."""
        now = time.monotonic()
        shared = self._pending or self._jobs_in_progress > 1 or now - self._replica_lost_at < _SAME_LOSS_S
        self._replica_lost_at = now
        return not shared and self._require_model()[0] == app

    def _require_model(self) -> tuple[str, Any]:
        """Return the Serve application and the handle of the version that is served now."""
        if self._pointer is None:
            if self._model is None:
                raise _not_promoted()
            return "", self._model
        versions = self._pointer.read()
        if versions.current is not None:
            app = versions.current.app
            return app, serve.get_deployment_handle("Model", app_name=app)
        if versions.loading is not None:
            raise NotReadyError("the model is still loading", do="retry in a few seconds")
        if versions.rejected:
            found = versions.rejected[-1]
            raise NotReproducedError(
                "the champion cannot be served here", found=f"version {found.version}: {found.reason}"
            )
        if versions.problem:
            raise NotReadyError("no model is served", found=versions.problem, do="see the server's log")
        raise _not_promoted()

    async def _describe(self) -> dict[str, Any]:
        _, model = self._require_model()
        response = model.describe.remote()
        try:
            async with asyncio.timeout(_DESCRIBE_TIMEOUT_S):
                description: dict[str, Any] = await response
        except (TimeoutError, DeploymentUnavailableError, *_REPLICA_LOST):
            response.cancel()
            raise NotReadyError("the model is still loading", do="retry in a few seconds") from None
        except RayTaskError as error:
            raise _cause_of(error) from None
        return description

    @contextmanager
    def _admitted(self) -> Iterator[Any]:
        """Admit a request; it stays with the version that is served now."""
        app, model = self._require_model()
        limit = self._args.serving.max_pending
        if self._pending >= limit:
            raise BusyError(
                "the endpoint is at capacity", expected=f"fewer than {limit} requests in progress", do="retry later"
            )
        self._pending += 1
        self._pinned[app] += 1
        try:
            yield model
        finally:
            self._pending -= 1
            self._pinned[app] -= 1

    async def _call_model(self, model: Any, content: Any, request_id: str) -> Prediction:
        """Call a replica, with retries: Serve does not retry a request that a dying replica had accepted."""
        for attempt in range(1, _ATTEMPTS + 1):
            response = model.predict.remote(content, request_id)
            try:
                prediction: Prediction = await response
            except _REPLICA_LOST as error:
                log_event("replica_lost", request_id, logging.WARNING, attempt=attempt, kind=type(error).__name__)
                await asyncio.sleep(0.2 * attempt)
            except DeploymentUnavailableError:
                raise ResourceError("the model could not be started", do="see the server's log") from None
            except RayTaskError as error:
                raise _cause_of(error) from None
            except asyncio.CancelledError:
                response.cancel()
                raise
            else:
                return prediction
        raise ResourceError("every replica that processed this request died", found=f"{_ATTEMPTS} attempts")


def _not_promoted() -> NotReadyError:
    return NotReadyError("no model has been promoted yet", do="promote a model: `gtvray promote`")


def _cause_of(error: RayTaskError) -> Exception:
    """The exception that a replica raised, unwrapped if it is a GtvrayError."""
    return error.cause if isinstance(error.cause, GtvrayError) else error


def _into_object_store(upload: IO[bytes]) -> Any:
    """Put an upload into the object store, so that replicas on any node and retries share one copy."""
    upload.seek(0)
    return ray.put(upload.read())


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
