"""Commands refuse URIs where only a path works, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gtvray.cli.main import app
from gtvray.cli.settings import SettingsCommand
from gtvray.errors import InputError


def refused(*words: str) -> InputError:
    result = CliRunner().invoke(app, list(words))
    assert isinstance(result.exception, InputError), result.output
    assert result.exception.what == "a path is needed here, not a URI"
    return result.exception


@pytest.mark.parametrize(
    "words",
    [
        ("models", "list", "--workspace", "s3://bucket/runs"),
        ("workspace", "adopt", "--workspace", "s3://bucket/runs"),
        ("token", "list", "--workspace", "s3://bucket/runs"),
        ("train", "--data", "s3://bucket/data"),
        ("sweep", "s3://bucket/space.yaml"),
        ("data", "describe", "s3://bucket/data"),
        ("data", "phantom", "s3://bucket/phantoms"),
        ("evaluate", "--data", "s3://bucket/data"),
        ("predict", "scan.nii.gz", "s3://bucket/scan.nii.gz", "-o", "out"),
        ("predict", "scan.nii.gz", "-o", "s3://bucket/mask.nii.gz"),
        ("predict", "scan.nii.gz", "-o", "out", "--model", "s3://bucket/model"),
        ("promote", "s3://bucket/bundle", "--data", "data"),
        ("models", "export", "champion", "s3://bucket/gtv", "--format", "monai"),
    ],
)
def test_command_refuses_a_uri(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(*words)
    assert error.fields["where"].startswith("s3://bucket/")
    assert "mounted" in error.fields["do"]
    assert not list(tmp_path.glob("s3*"))


def test_workspace_of_the_environment_is_refused_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GTVRAY_WORKSPACE", "s3://bucket/runs")
    assert refused("models", "list").fields["where"] == "s3://bucket/runs"
    assert list(tmp_path.iterdir()) == []


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, each in command.commands.items():
        yield from _commands(each, f"{name} {word}")


def test_every_command_with_a_path_checks_it() -> None:
    unchecked = {
        (name, param.name)
        for name, command in _commands(typer.main.get_command(app), "gtvray")
        if not isinstance(command, SettingsCommand)
        for param in command.params
        if "Path" in str(param.type_descriptor.annotation)
    }
    # `Workspace` itself refuses a URI; `Client` reports a file of certificates that it cannot read.
    assert {param for _, param in unchecked} == {"workspace", "workspace_path", "ca_file"}
