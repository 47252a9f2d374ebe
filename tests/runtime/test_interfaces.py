"""Workers bind to the interface that holds the address of their Ray node."""

from __future__ import annotations

import os
import socket

import pytest

from gtvray.runtime import bind_to_interface, interface_of

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> str:
    for name in VARIABLES:
        # Set first, so that monkeypatch restores what the test sets.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if not names:
        pytest.skip("there is no loopback interface")
    return names[0]


def test_interface_is_found_by_its_address(loopback: str) -> None:
    assert interface_of("127.0.0.1") == interface_of("127.0.1.1") == loopback
    # 192.0.2.0/24 and 2001:db8::/32 are reserved for documentation.
    assert interface_of("192.0.2.1") is None
    assert interface_of("2001:db8::1") is None


def test_unset_variables_name_the_interface_and_set_ones_stay(loopback: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bind_to_interface("192.0.2.1") is None
    assert not any(name in os.environ for name in VARIABLES)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert bind_to_interface("127.0.0.1") == loopback
    assert [os.environ[name] for name in VARIABLES] == ["ib0", f"={loopback}"]
