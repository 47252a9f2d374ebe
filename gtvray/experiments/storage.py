"""Checks that every node of a cluster can access the data, the workspace and MLflow."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from gtvray import __version__
from gtvray.errors import GtvrayError, ResourceError
from gtvray.runtime import Cluster, ask_every_node

_PACKAGES = ("ray", "torch", "monai", "mlflow")


@dataclass(frozen=True)
class NodeReport:
    """Versions and problems of a node.

    Attributes:
        node: its address.
        versions: of Python, gtvray and packages.
        problems: one line each; empty if the node can take part.
    """

    node: str
    versions: dict[str, str]
    problems: tuple[str, ...]


def examine_nodes(workspace: Path, data: Sequence[Path] = (), tracking: str | None = None) -> list[NodeReport]:
    """Check storage, versions and MLflow on every node of the connected cluster.

    Args:
        workspace: a file is written there by this process, and looked for by the nodes.
        data: files or folders.
        tracking: URI of an MLflow server.
    """
    with _marker(workspace) as marker:
        answers = ask_every_node(look, marker, [path.resolve() for path in data], tracking)
    reports = []
    for answer in answers:
        versions, problems = answer.value or ({}, [answer.failure or "no answer"])
        reports.append(NodeReport(answer.node, versions, tuple(problems)))
    return [_compared(report) for report in reports]


def require_storage(cluster: Cluster, written: Path, *read: Path) -> None:
    """Refuse to start on a cluster with a node that cannot access what is read or written.

    Args:
        cluster: the connected cluster.
        written: folder that is written to, such as the workspace.
        read: files or folders that are read, such as the data.

    Raises:
        ResourceError: names the nodes.
    """
    if cluster.is_local or sum(node.count for node in cluster.nodes) < 2:
        return
    lacking = [report for report in examine_nodes(written, read) if report.problems]
    if lacking:
        raise ResourceError(
            "not every node of the cluster can take part",
            where=", ".join(report.node for report in lacking),
            expected=f"{', '.join(str(path.resolve()) for path in (*read, written))} on every node",
            found="; ".join(f"{report.node}: {', '.join(report.problems)}" for report in lacking),
            do="put them on storage that every node has at the same path; `gtvray doctor --cluster` checks it",
        )


def look(marker: Path, data: Sequence[Path], tracking: str | None) -> tuple[dict[str, str], list[str]]:
    """Versions and problems of this node.

    Args:
        marker: a file in the workspace, written by another node.
        data: files or folders.
        tracking: URI of an MLflow server.
    """
    problems = [f"{path} does not exist" for path in data if not path.exists()]
    if not marker.is_file():
        problems.append(f"{marker.parent} does not exist, or is another folder")
    else:
        try:
            tempfile.TemporaryFile(dir=marker.parent).close()
        except OSError as error:
            problems.append(f"{marker.parent} cannot be written to: {error.strerror}")
    if tracking is not None:
        from gtvray.tracking import connect_mlflow

        try:
            connect_mlflow(tracking, marker.parent, writing=False)
        except GtvrayError as error:
            problems.append(f"MLflow: {error.what}, {error.fields.get('found', '')}")
    return _versions(), problems


@contextmanager
def _marker(workspace: Path) -> Iterator[Path]:
    workspace.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=workspace.resolve(), prefix=".partial-cluster-") as file:
        yield Path(file.name)


def _compared(report: NodeReport) -> NodeReport:
    """Add the versions that differ from this process's."""
    here = _versions()
    other = [
        f"{name} {version} instead of {here[name]}"
        for name, version in report.versions.items()
        if version != here[name]
    ]
    return NodeReport(report.node, report.versions, (*report.problems, *other))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "gtvray": __version__}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions
