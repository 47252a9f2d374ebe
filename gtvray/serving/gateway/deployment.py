"""The Gateway deployment: it terminates HTTP itself, so that a body is read only as fast as it is written to disk.

Ray Serve's own proxies read bodies into memory before a replica can refuse them. Here uvicorn runs in the replica, in a
thread with its own event loop. The socket is shared (SO_REUSEPORT), so that a new replica can listen before the old one
has finished. There is one gateway on each node. Its process never imports torch.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import ray
import uvicorn
from ray import serve
from ray.util import get_node_ip_address

from gtvray.errors import ConfigError, FailureError, ResourceError
from gtvray.serving.arguments import AppArguments
from gtvray.serving.gateway.api import Api
from gtvray.serving.gateway.connection import Connection
from gtvray.serving.gateway.segmenter import Segmenter
from gtvray.serving.request_log import gateway_log, log_event, log_to_file
from gtvray.serving.routing import serve_models
from gtvray.serving.shadow import make_shadow
from gtvray.serving.tracing import Tracing
from gtvray.serving.transfer.spool import Spool
from gtvray.serving.transfer.stream import BodyStream

_START_TIMEOUT_S, _STALLED_S = 30.0, 60.0
_SEVERAL, _LOOK_S = 2, 5.0
_BACKLOG = 2048
# Longer than browsers and HTTP clients typically wait between two requests on a connection.
_KEEP_ALIVE_S = 30


class Gateway:
    """HTTP server of one node.

    Args:
        args: the application's arguments.
        model: handle of the Model deployment, or None if no model has been promoted or versions are followed.

    Raises:
        ConfigError: no token is configured.
        ResourceError: the address is in use, or the spool cannot be used.
    """

    def __init__(self, args: AppArguments, model: Any) -> None:
        serving = args.serving
        self._limit_s = serving.timeout_s
        if args.logs is not None:
            log_to_file(gateway_log(args.logs, serving.port))
        sockets = [listen(serving.host, serving.port)]
        self._stream = BodyStream()
        self._models = serve_models(args, model, serve.get_replica_context().app_name)
        self._spool = Spool(args.spool_dir, serving.spool_limit_bytes, serving.client_spool_limit_bytes)
        tracing = Tracing(serving.traces_url, "gtvray-gateway")
        node = ray.get_runtime_context().get_node_id()
        segmenter = Segmenter(args, self._spool, self._stream, node, tracing)
        self._shadow = make_shadow(args, self._spool, segmenter)
        self._api = Api(args, self._models, self._spool, segmenter, self._shadow, tracing=tracing)
        self._server = _server(self._api.build_app(), int(serving.timeout_s), serving.tls_certificate, serving.tls_key)
        self._thread = threading.Thread(target=self._run, args=(sockets,), name="gateway", daemon=True)
        self._thread.start()
        self._wait_started()

    async def in_use(self, app: str) -> int:
        """Number of requests and comparisons of a version in progress on this gateway; version managers call this."""
        return self._models.in_use(app) + (self._shadow.in_use(app) if self._shadow is not None else 0)

    def check_health(self) -> None:
        """Raise if the server has ended or is stalled; Serve calls this periodically and then replaces the replica."""
        if not self._thread.is_alive():
            raise FailureError("the HTTP server has ended")
        if time.monotonic() - self._models.looked_at > _STALLED_S:
            raise FailureError("the HTTP server is stalled", expected=f"a background check within {_STALLED_S:g} s")

    def __del__(self) -> None:
        """Let requests in progress finish; Serve calls this when it stops the replica."""
        thread = getattr(self, "_thread", None)
        if thread is not None and thread.is_alive():
            self._api.stop()
            self._server.should_exit = True
            thread.join(self._limit_s)

    def _run(self, sockets: list[socket.socket]) -> None:
        asyncio.run(self._serve(sockets))

    async def _serve(self, sockets: list[socket.socket]) -> None:
        beside = [asyncio.create_task(self._models.refresh_forever()), asyncio.create_task(self._serve_nodes())]
        try:
            await self._server.serve(sockets)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await asyncio.to_thread(self._spool.close)

    async def _serve_nodes(self) -> None:
        """Serve the stream for replicas on other nodes, once the cluster has any."""
        while len(await asyncio.to_thread(ray.nodes)) < _SEVERAL:
            await asyncio.sleep(_LOOK_S)
        listening = listen(get_node_ip_address(), 0)
        self._stream.url = _url(listening)
        await _server(self._stream.app, 1).serve([listening])

    def _wait_started(self) -> None:
        waiting = threading.Event()
        for _ in range(int(_START_TIMEOUT_S / 0.05)):
            if self._server.started or not self._thread.is_alive():
                break
            waiting.wait(0.05)
        if not self._server.started:
            raise FailureError("the HTTP server could not be started", do="see the server's log")
        log_event("listening", "start")


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket with SO_REUSEPORT: processes of the same user can bind the same port and share its connections.

    Raises:
        ResourceError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ResourceError(
            "the endpoint cannot listen at its address",
            where=f"{host}:{port}",
            found=error.strerror,
            do="change serving.host or serving.port, or stop the program that uses the port",
        ) from error
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _server(app: Any, drain_s: int, certificate: Path | None = None, key: Path | None = None) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http=Connection,
        ws="none",
        lifespan="auto",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except OSError as error:
        raise ConfigError(
            "the TLS certificate or its key cannot be used",
            where=f"{certificate}, {key}",
            found=error,
            do="check that both are readable PEM files that belong together",
        ) from error
    return uvicorn.Server(config)
