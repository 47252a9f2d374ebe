"""The HTTP client and endpoints whose certificate a private authority has signed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from gtvray.client import AsyncClient, Client
from gtvray.config import ServingConfig
from gtvray.errors import InputError, NotFoundError, ResourceError
from gtvray.io import write_volume

from ...cli.command import call
from ..conftest import TOKEN, make_scan
from ..gateway.test_gateway import at_once, certificate_of, serving
from ..local_api import Replica, make_api


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of an endpoint, and the certificate that it presents."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = certificate_of(folder)
    with serving(make_api(folder, ServingConfig(), Replica(at_once)), certificate, key) as port:
        yield f"https://127.0.0.1:{port}", certificate


def test_certificate_of_a_private_authority_is_trusted_by_its_file(endpoint: tuple[str, Path]) -> None:
    url, certificate = endpoint

    async def ready() -> str:
        async with AsyncClient(url, TOKEN, ca_file=certificate) as client:
            return await client.ready()

    assert asyncio.run(ready()) == "none"
    with Client(url, TOKEN, ca_file=str(certificate)) as client:
        assert client.ready() == "none"


def test_certificate_without_its_file_is_refused_at_once_with_instructions(endpoint: tuple[str, Path]) -> None:
    with Client(endpoint[0], TOKEN) as client, pytest.raises(ResourceError, match="is not trusted") as caught:
        client.ready()
    assert "--ca-file" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [
        ("none.pem", NotFoundError, "no such CA file"),
        ("text.pem", InputError, "has no certificate"),
        (".", InputError, "CA file"),
    ],
)
def test_unreadable_file_is_reported(tmp_path: Path, name: str, kind: type[Exception], what: str) -> None:
    (tmp_path / "text.pem").write_text("a sentence")
    with Client("https://127.0.0.1:1", TOKEN, ca_file=tmp_path / name) as client, pytest.raises(kind, match=what):
        client.ready()


def test_file_needs_tls(tmp_path: Path, endpoint: tuple[str, Path]) -> None:
    with (
        Client("http://127.0.0.1:1", TOKEN, ca_file=endpoint[1]) as client,
        pytest.raises(InputError, match="requires an endpoint with TLS"),
    ):
        client.ready()


def test_commands_take_the_file(tmp_path: Path, endpoint: tuple[str, Path]) -> None:
    url, certificate = endpoint
    words = ("--server", url, "--token", TOKEN, "--ca-file")
    status = call("serve", "status", *words, certificate, "--json").json()
    assert status["golden"] == "none"
    scan = tmp_path / "scan.nii.gz"
    write_volume(scan, make_scan((12, 14, 16)))
    missing = call("predict", scan, "-o", tmp_path / "masks", *words, tmp_path / "none.pem").error(code=2)
    assert "no such CA file" in missing
    alone = call("predict", scan, "-o", tmp_path / "masks", "--ca-file", certificate).error(code=2)
    assert "--ca-file without --server" in alone
