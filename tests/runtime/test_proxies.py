"""Selection of the proxies configured in the environment."""

from __future__ import annotations

import os
import socket

import pytest
import requests

from gtvray.runtime import bypass_proxies, is_own_host, proxy_for, proxy_settings

from ..proxies import VARIABLES, clear_proxies, refusing_proxy, serving, set_proxy

OWN = ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.8.7", "127.1", "0x7f000001", "::1", "[::1]"]
OWN += ["::ffff:127.0.0.1", "0.0.0.0", "::", socket.gethostname()]
OTHERS = ["example.org", "localhost.example.org", "127.0.0.1.example.org", "192.0.2.7", "2001:db8::7", "128.0.0.1"]


@pytest.mark.parametrize("host", OWN)
def test_own_names_are_recognised(host: str) -> None:
    assert is_own_host(host)


def test_own_interface_addresses_are_recognised() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("no interface but the loopback")
        assert is_own_host(probe.getsockname()[0])


@pytest.mark.parametrize("host", OTHERS)
def test_other_hosts_are_recognised(host: str) -> None:
    assert not is_own_host(host)


@pytest.mark.parametrize("variable", VARIABLES)
def test_no_proxy_is_used_for_this_machine(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_proxy(monkeypatch, 3128, variable)
    scheme = "https" if "https" in variable.lower() else "http"
    assert proxy_for(f"{scheme}://127.0.0.1:8000/readyz") is None
    assert proxy_for(f"{scheme}://[::1]:8000/readyz") is None
    assert proxy_for(f"{scheme}://endpoint.example.org") == "http://someone:secret@127.0.0.1:3128"


@pytest.mark.parametrize(
    ("no_proxy", "host", "bypassed"),
    [
        ("*", "a.example.org", True),
        ("a.example.org", "a.example.org", True),
        ("example.org", "a.example.org", True),
        (".example.org", "a.example.org", True),
        ("*.example.org", "a.example.org", True),
        ("EXAMPLE.org", "a.example.org", True),
        ("other.org, a.example.org", "a.example.org", True),
        ("a.example.org:8000", "a.example.org", True),
        ("a.example.org:8001", "a.example.org", False),
        ("ample.org", "a.example.org", False),
        ("", "a.example.org", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.0/24", "192.0.2.7", True),
        ("192.0.3.0/24", "192.0.2.7", False),
        ("192.0.2.7:8000", "192.0.2.7", True),
        ("2001:db8::/32", "[2001:db8::7]", True),
        ("[2001:db8::7]:8001", "[2001:db8::7]", False),
    ],
)
def test_no_proxy_variable_is_respected(
    no_proxy: str, host: str, bypassed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_proxy(monkeypatch, 3128, "HTTP_PROXY")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_for(f"http://{host}:8000") is None) == bypassed


def test_requests_bypasses_proxies_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(refusing_proxy()) as proxy, serving(refusing_proxy()) as local:
        set_proxy(monkeypatch, proxy.port)
        url = f"http://127.0.0.1:{local.port}/a"
        bypass_proxies(url)
        requests.get(url, timeout=5)
        assert (proxy.seen, local.seen) == ([], ["GET /a HTTP/1.1"])


def test_existing_no_proxy_is_extended(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_proxies(monkeypatch)
    bypass_proxies("http://127.0.0.5:1")
    assert "NO_PROXY" not in os.environ, "no change without a proxy"
    set_proxy(monkeypatch, 3128, "https_proxy")
    monkeypatch.setenv("NO_PROXY", "example.org")
    bypass_proxies("http://127.0.0.5:1", "http://other.example.net")
    bypass_proxies("http://127.0.0.5:1")
    entries = os.environ["no_proxy"].split(",")
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]
    assert entries[0] == "example.org"
    assert {"localhost", "127.0.0.1", "::1", "127.0.0.5"} <= set(entries)
    assert "other.example.net" not in entries
    assert len(set(entries)) == len(entries)


def test_settings_have_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    set_proxy(monkeypatch, 3128, "ALL_PROXY")
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert proxy_settings() == {"ALL_PROXY": "http://127.0.0.1:3128", "NO_PROXY": "example.org"}
