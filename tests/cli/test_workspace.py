"""A copied workspace on the command line: refused, then adopted, then used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gtvray.api.experiments import _short_name
from gtvray.cli.main import app
from gtvray.errors import ConfigError, GtvrayError, InputError, NotFoundError
from gtvray.io import LOCATION, Workspace


def call(*arguments: object) -> str:
    """Run a command and return its output; its error is raised."""
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if isinstance(result.exception, GtvrayError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_copy_is_adopted_by_the_command_that_the_error_names(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "a copy"
    with Workspace(original).lock():
        pass
    shutil.copytree(original, copy)
    before = (original / LOCATION).read_bytes()
    with pytest.raises(InputError, match="is a copy"), Workspace(copy).lock():
        pass
    with pytest.raises(InputError, match="is a copy"):
        call("evaluate", "--data", tmp_path / "none", "--workspace", copy)
    found = json.loads(call("workspace", "adopt", "--workspace", copy, "--json"))
    assert (found["workspace"], found["earlier"], found["backup"]) == (str(copy), [str(original)], None)
    with Workspace(copy).lock():
        pass
    again = json.loads(call("workspace", "adopt", "--workspace", copy, "--json"))
    assert again["id"] == found["id"], "its recorded path is correct: there is nothing to adopt"
    assert json.loads((original / LOCATION).read_text())["id"] != found["id"]
    assert (original / LOCATION).read_bytes() == before


def test_damaged_workspace_record_is_reported_and_rewritten(tmp_path: Path) -> None:
    with Workspace(tmp_path).lock():
        pass
    for content in ("", "{}", "[1]", '{"id": "x", "path": 3, "earlier": []}'):
        (tmp_path / LOCATION).write_text(content)
        with pytest.raises(InputError, match="unreadable"), Workspace(tmp_path).lock():
            pass
    call("workspace", "adopt", "--workspace", tmp_path)
    with Workspace(tmp_path).lock():
        pass


def test_only_a_workspace_can_be_adopted(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not a workspace"):
        call("workspace", "adopt", "--workspace", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["o'neill", 'a"b', "100%", "a.b", "a/b", "a:b"])
def test_a_model_name_that_mlflow_does_not_take_is_refused_at_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model_name"):
        call("models", "--workspace", tmp_path, "-s", f"tracking.model_name={json.dumps(name)}")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("o'neill.yaml", "o'neill"),
        ("-x.yaml", "x"),
        (".partial-x.yaml", "partial-x"),
        ("....yaml", "sweep"),
        ("a" * 200 + ".yaml", "a" * 100),
        ("日" * 80 + ".yaml", "日" * 33),
    ],
)
def test_a_sweep_is_named_after_its_file_within_bounds(file: str, name: str) -> None:
    assert _short_name(Path(file)) == name
