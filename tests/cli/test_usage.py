"""Help of every command, invalid usage, and commands that only report."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from gtvray import __version__
from gtvray.cli.main import _unexpected, app
from gtvray.config import known_keys

from ..ports import free_port
from .command import call, run

GROUPS = {group.name: group.typer_instance for group in app.registered_groups}
COMMANDS = [
    *[str(command.name) for command in app.registered_commands],
    *[
        f"{name} {command.name or command.callback.__name__}"
        for name, group in GROUPS.items()
        for command in group.registered_commands
    ],
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = call(*name.split(), "--help")
    assert result.code == 0
    assert "Example: " in result.stdout
    assert f"gtvray {name}" in result.stdout.partition("Example: ")[2]
    assert not result.stderr


@pytest.mark.parametrize(
    "words", ["", *(name for name in GROUPS if name not in ("corrections", "models", "serve", "token"))]
)
def test_without_a_command_the_help_is_shown_with_exit_code_2(words: str) -> None:
    result = call(*words.split())
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: gtvray")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("demoo", "demoo"),
        ("demo --dat here", "--dat"),
        ("demo --port eighty", "--port"),
        ("predict", "inputs"),
        ("data phantom here --count 0", "--count"),
        ("config diff", "config"),
    ],
)
def test_wrong_use(words: str, names: str) -> None:
    assert names in call(*words.split()).error(code=2)


@pytest.mark.parametrize(
    ("words", "names"), [("demo --json --nope", "--nope"), ("data phantom here --json --count 0", "--count")]
)
def test_wrong_use_in_json(words: str, names: str) -> None:
    refused = call(*words.split())
    refused.error(code=2)
    error = refused.json()["error"]
    assert names in error["title"]
    assert error["status"] == 422


def test_version() -> None:
    assert run("--version").stdout == f"{__version__}\n"


def test_config_show_lists_every_key_with_its_value(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("serving: {port: 8123}\n")
    shown = call("config", "show", "--config", file, "-s", "optimizer.lr=3e-4", "--json").json()
    assert set(shown) == set(known_keys())
    assert (shown["serving.port"], shown["optimizer.lr"]) == (8123, 3e-4)
    lines = call("config", "show").stdout.splitlines()
    assert [line.partition("=")[0] for line in lines] == known_keys()


def test_settings_follow_the_other_arguments(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("serving.port: 8123\n")
    shown = call("config", "show", "optimizer.lr=3e-4", "--config", file, "training.epochs=3", "--json").json()
    assert (shown["serving.port"], shown["optimizer.lr"], shown["training.epochs"]) == (8123, 3e-4, 3)
    assert "did you mean optimizer.lr?" in call("config", "show", "optimiser.lr=1").error(code=2)
    # After `--` and with a leading `./` a word is a path.
    assert "serving.port=1" in call("config", "diff", "--", "serving.port=1").error(code=2)
    assert "where: serving.port=1" in call("config", "diff", "./serving.port=1").error(code=2)


def test_a_setting_for_a_command_without_settings_is_refused(tmp_path: Path) -> None:
    assert "optimizer.lr=1" in call("data", "check", tmp_path, "optimizer.lr=1").error(code=2)


def test_config_schema() -> None:
    schema = call("config", "schema", "--json").json()
    assert schema["properties"].keys() == {key.partition(".")[0] for key in known_keys()}
    rows = call("config", "schema").stdout.splitlines()[2:]
    assert [row.split()[0] for row in rows] == known_keys()


def test_config_plan_writes_the_printed_settings(phantoms: Path, tmp_path: Path) -> None:
    file = tmp_path / "planned.yaml"
    planned = call(
        "config",
        "plan",
        phantoms,
        "--workspace",
        tmp_path / "runs",
        "--out",
        file,
        "-s",
        "training.batch_size=4",
        "--json",
    ).json()
    choices = {choice["key"]: choice for choice in planned["choices"]}
    assert choices["training.batch_size"] == {"key": "training.batch_size", "value": 4, "why": "given"}
    assert planned["needed_bytes"] <= planned["memory_bytes"]
    shown = call("config", "show", "--config", file, "--json").json()
    assert {key: shown[key] for key in choices} == {key: choice["value"] for key, choice in choices.items()}


def test_config_diff(tmp_path: Path) -> None:
    mine, same = tmp_path / "mine.yaml", tmp_path / "same.yaml"
    mine.write_text("serving: {port: 8123}\n")
    same.write_text("{}\n")
    assert call("config", "diff", mine, "--json").json() == {"serving.port": {"value": 8123, "other": 8000}}
    assert call("config", "diff", same).stdout == "no difference\n"


@pytest.mark.slow
@pytest.mark.ray
def test_doctor_reports_versions_and_failures(tmp_path: Path) -> None:
    dead = f"127.0.0.1:{free_port()}"
    result = run("doctor", "--workspace", tmp_path, "--port", free_port(), "--address", dead, "--json")
    assert result.code == 1
    report = result.json()
    checks = {row["check"]: row for row in report["checks"]}
    assert [name for name, row in checks.items() if not row["ok"]] == ["ray"]
    assert dead in checks["ray"]["found"]
    assert report["ok"] is False
    assert checks["versions"]["versions"]["gtvray"] == __version__
    assert checks["disk"]["free_gb"] > 0


@pytest.mark.slow
@pytest.mark.ray
def test_doctor_passes_on_a_working_machine(tmp_path: Path) -> None:
    result = run("doctor", "--workspace", tmp_path / "new", "--port", free_port())
    assert result.code == 0, result
    assert "BAD" not in result.stdout
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("cause", "what", "found"),
    [
        (
            RuntimeError("maximum length exceeded\nand more"),
            "unexpected error",
            "RuntimeError: maximum length exceeded",
        ),
        (OSError(errno.ENOSPC, "No space left", "/data"), "the disk is full", None),
    ],
)
def test_error_of_a_task_on_the_cluster_is_reported_with_its_cause(
    cause: Exception, what: str, found: str | None
) -> None:
    error = RayTaskError("keep", "ray::keep() (pid=1)\n  lines of the other process", cause).as_instanceof_cause()
    reported = _unexpected(error)
    assert (reported.what, reported.fields.get("found")) == (what, found)
