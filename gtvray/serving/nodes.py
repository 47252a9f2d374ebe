"""Checks of every node before the endpoint is deployed on a cluster: the token, the bundle and its golden cases."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import ray

from gtvray.errors import ConfigError
from gtvray.runtime import ask_every_node
from gtvray.serving.arguments import TOKEN_VARIABLE, read_token
from gtvray.serving.jobs.table import DATABASE_VARIABLE

_MOST_NAMED = 3


def require_on_every_node(token: str, token_file: Path | None, folders: list[Path]) -> None:
    """Check that replicas and the API can start on any node.

    Args:
        token: bearer token that clients must send.
        token_file: file that contains the token on every node; None if every node has it in GTVRAY_TOKEN.
        folders: folders of the bundle and of the golden cases.

    Raises:
        ConfigError: a node lacks the token or a folder, or has a different token; the error names the node.
    """
    answers = ask_every_node(missing_on_node, _digest(token), token_file, folders)
    lacking = [(answer.node, answer.failure or answer.value) for answer in answers if answer.failure or answer.value]
    if lacking:
        source = f"the file {token_file}" if token_file else f"{TOKEN_VARIABLE} in the environment of `ray start`"
        raise ConfigError(
            "the endpoint cannot run on every node of the cluster",
            where=", ".join(node for node, _ in lacking),
            expected=f"the token in {source}, and {', '.join(map(str, folders))}, on every node",
            found="; ".join(f"{node}: {found}" for node, found in lacking),
            do="use storage that every node has at the same path, and pass --token-file",
        )


def missing_on_node(token_digest: str, token_file: Path | None, folders: list[Path]) -> str | None:
    """Describe in one line what is missing on this node; None if nothing is."""
    lacking = [f"{folder} is not there" for folder in folders if not folder.is_dir()]
    try:
        if _digest(read_token(token_file)) != token_digest:
            lacking.append("it has another token")
    except ConfigError as error:
        lacking.append(error.what)
    return ", ".join(lacking) or None


def unshared_jobs() -> str | None:
    """Describe why gateways on several nodes cannot share jobs; None if they can, or if there is only one node.

    Without a common database each gateway would have its own, and a client would find its job on one of them only.
    """
    if count_nodes() == 1:
        return None
    answers = ask_every_node(jobs_database)
    lacking = [answer.node for answer in answers if answer.failure or not answer.value]
    if lacking:
        named = ", ".join(lacking[:_MOST_NAMED]) + (" and others" if len(lacking) > _MOST_NAMED else "")
        found = f"{DATABASE_VARIABLE} is not set on {named}"
    elif len({answer.value for answer in answers}) > 1:
        found = f"{DATABASE_VARIABLE} differs between nodes"
    else:
        return None
    return f"the cluster has several nodes, and {found}; set it to one PostgreSQL URL on all of them before Ray starts"


def jobs_database() -> str:
    """Digest of the address of this node's job database, which may contain a password; empty if none is configured."""
    url = os.environ.get(DATABASE_VARIABLE, "")
    return _digest(url) if url else ""


def count_nodes() -> int:
    """Number of alive nodes in the cluster; 1 if Ray is not initialized."""
    return max(1, sum(row["Alive"] for row in ray.nodes())) if ray.is_initialized() else 1


def one_per_node(_: Any) -> tuple[int, dict[str, Any]]:
    """Serve autoscaling policy: one replica per node, including nodes that join later."""
    return count_nodes(), {}


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
