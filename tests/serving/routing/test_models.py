"""Several models of one endpoint: requests, tokens, jobs, metrics and versions by name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text

from gtvray.api import Endpoint
from gtvray.config import InferenceConfig, ServingConfig
from gtvray.errors import ConfigError
from gtvray.inference import Predictor
from gtvray.io import decode_nifti, encode_nifti
from gtvray.models import Bundle
from gtvray.runtime import Cluster
from gtvray.serving import Client, Follow, Retry, start_server
from gtvray.serving.gateway.tokens import Role, TokenFile
from gtvray.serving.jobs.records import NewJob, NewVolume
from gtvray.serving.jobs.store import JobStore
from gtvray.serving.jobs.table import open_database
from gtvray.serving.transfer.work import Work

from ...bundles import random_bundle
from ...ports import free_port
from ..conftest import TOKEN, make_scan
from ..local_api import Replica, make_api, problem_of
from ..versions.test_following import Champion

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
SCAN = encode_nifti(make_scan((24, 24, 24)), compress=True)


async def at_once(work: Work, content: bytes) -> None: ...


@asynccontextmanager
async def endpoint(folder: Path, jobs: bool = False) -> AsyncIterator[tuple[httpx.AsyncClient, Replica, Replica]]:
    """An API with the models `gtvray-gtv` and `nodes`, and what is called for each."""
    default, nodes = Replica(at_once), Replica(at_once)
    app = make_api(folder, ServingConfig(), default, jobs=jobs, nodes=nodes)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", headers=HEADERS) as client,
    ):
        yield client, default, nodes


def test_request_goes_to_the_model_that_it_names(tmp_path: Path) -> None:
    async def run() -> None:
        async with endpoint(tmp_path) as (client, default, nodes):
            assert (await client.post("/v1/segment", content=SCAN)).status_code == 200
            assert (default.calls, nodes.calls) == (1, 0)
            for name, calls in (("nodes", (1, 1)), ("gtvray-gtv", (2, 1))):
                assert (await client.post("/v1/segment", params={"model": name}, content=SCAN)).status_code == 200
                assert (default.calls, nodes.calls) == calls
            refused = await client.post("/v1/segment", params={"model": "lungs"}, content=SCAN)
            assert "gtvray-gtv, nodes" in problem_of(refused, 404, "urn:gtvray:NotFoundError")["expected"]
            described = (await client.get("/v1/model", params={"model": "nodes"})).json()
            assert described["name"] == "nodes"
            models = (await client.get("/v1/models")).json()["models"]
            assert [(each["name"], each["default"]) for each in models] == [("gtvray-gtv", True), ("nodes", False)]
            metrics = (await client.get("/metrics")).text
            assert 'gtvray_scans_total{model="nodes",outcome="segmented"}' in metrics
            assert 'model="nodes",version="1"' in metrics
        entries = (tmp_path / "audit").glob("*.jsonl")
        assert [line.count('"model_name": "nodes"') for file in entries for line in file.read_text().splitlines()] == [
            0,
            1,
            0,
        ]

    asyncio.run(run())


def test_token_may_be_limited_to_models(tmp_path: Path) -> None:
    async def run() -> None:
        token = TokenFile(tmp_path / "tokens.json").add("station", Role.JOBS, ["nodes"])
        async with endpoint(tmp_path, jobs=True) as (client, default, nodes):
            client.headers["Authorization"] = f"Bearer {token}"
            for route in ("/v1/segment", "/v1/jobs"):
                refused = await client.post(route, content=SCAN)
                problem = problem_of(refused, 403, "urn:gtvray:ForbiddenError")
                assert (problem["expected"], problem["found"]) == ("nodes", "gtvray-gtv")
            assert (await client.post("/v1/segment", params={"model": "nodes"}, content=SCAN)).status_code == 200
            assert (default.calls, nodes.calls) == (0, 1)

    asyncio.run(run())


def test_job_runs_on_the_model_that_it_names(tmp_path: Path) -> None:
    async def run() -> None:
        async with endpoint(tmp_path, jobs=True) as (client, default, nodes):
            key = {"Idempotency-Key": "one"}
            params = {"model": "nodes"}
            accepted = await client.post("/v1/jobs", params=params, content=SCAN, headers=key)
            while (await client.get(accepted.headers["Location"])).json()["ended_at"] is None:
                await asyncio.sleep(0.05)
            assert (default.calls, nodes.calls) == (0, 1)
            again = await client.post("/v1/jobs", content=SCAN, headers=key)
            assert "model" in problem_of(again, 422, "urn:gtvray:InputError")["expected"]
            unknown = await client.post("/v1/jobs", params={"model": "lungs"}, content=SCAN)
            problem_of(unknown, 404, "urn:gtvray:NotFoundError")

    asyncio.run(run())


def test_job_store_of_an_earlier_version_is_completed(tmp_path: Path) -> None:
    open_database(None, tmp_path).dispose()
    earlier = create_engine(f"sqlite:///{tmp_path / 'jobs.db'}")
    with earlier.begin() as connection:
        connection.execute(text("ALTER TABLE gtvray_jobs DROP COLUMN model"))
    earlier.dispose()
    store = JobStore(open_database(None, tmp_path), 60)
    store.accept(NewJob("a" * 32, "me", None, "digest", "normal", (NewVolume(False, 1, "d", b""),), "nodes"))
    claim = store.claim()
    assert claim is not None
    assert claim.model == "nodes"


@pytest.mark.parametrize("further", [("gtvray-gtv",), ("nodes", "nodes")])
def test_models_are_named_once(further: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        Endpoint(workspace=tmp_path, config={"serving.further_models": list(further)})


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_model_follows_its_own_champion(local_ray: Cluster, tmp_path: Path) -> None:
    bundles = {
        name: random_bundle(tmp_path / name, seed, inference=InferenceConfig(threshold=0.5))
        for seed, name in enumerate(("default", "nodes", "better"))
    }
    champions = {"default": Champion(), "nodes": Champion()}
    champions["default"].set("1", bundles["default"])
    follows = {name: Follow(each.find, tmp_path / f"{name}.json", each.reject) for name, each in champions.items()}
    settings = ServingConfig(port=free_port(), follow_s=0.2, cpus_per_replica=0.5, memory_gb_per_replica=0)
    server = start_server(
        None, settings, TOKEN, model_name="default", follow=follows["default"], further={"nodes": follows["nodes"]}
    )
    try:
        server.wait_ready(200)
        once = Retry(attempts=1)
        with (
            Client(server.url, TOKEN, retry=once) as plain,
            Client(server.url, TOKEN, model="nodes", retry=once) as named,
        ):
            require_mask(plain, "1", bundles["default"])
            assert state(plain, "nodes")["current"] is None
            # The same bundle under two names, with the same number.
            champions["nodes"].set("1", bundles["default"])
            wait_for(lambda: (state(plain, "nodes")["current"] or {}).get("version") == "1")
            require_mask(named, "1", bundles["default"])
            champions["nodes"].set("2", bundles["better"])
            wait_for(lambda: state(plain, "nodes")["current"]["version"] == "2")
            require_mask(named, "2", bundles["better"])
            require_mask(plain, "1", bundles["default"])
            champions["default"].set("7", bundles["nodes"])
            wait_for(lambda: plain.models()["current"]["version"] == "7")
            require_mask(plain, "7", bundles["nodes"])
            require_mask(named, "2", bundles["better"])
    finally:
        server.stop()


def state(client: Client, name: str) -> dict[str, Any]:
    """Return the entry of a model in /v1/models."""
    return next(each for each in client.models()["models"] if each["name"] == name)


def wait_for(reached: Callable[[], bool]) -> None:
    while not reached():
        time.sleep(0.2)


def require_mask(client: Client, version: str, bundle: Bundle) -> None:
    result = client.segment(decode_nifti(SCAN))
    assert result.model_version == version
    assert (result.mask.array == Predictor(bundle, threads=1).predict(make_scan((24, 24, 24))).array).all()
