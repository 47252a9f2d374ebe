"""Run commands as in a container: as a user without a name, or in an isolated network."""

from __future__ import annotations

import subprocess

import pytest


def as_nameless_user() -> list[str]:
    """Return a command prefix for a user without an entry in the password database; skip the test if not permitted."""
    return _permitted(["unshare", "--user", "--map-user=12345", "--map-group=12345"])


def with_own_network() -> list[str]:
    """Return a command prefix for a new network namespace; skip the test if not permitted."""
    return _permitted(["unshare", "--user", "--map-root-user", "--net"], "ip link add out type veth peer name far")


def _permitted(prefix: list[str], trial: str = "true") -> list[str]:
    try:
        subprocess.run([*prefix, *trial.split()], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this host permits no namespaces: {error}")
    return prefix
