"""With --json stdout holds one object and nothing else, whatever a library prints there."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from gtvray.cli.common import JsonOption, emit
from gtvray.errors import InputError

app = typer.Typer()
group = typer.Typer()
app.add_typer(group, name="group")


@app.callback()
def _root() -> None:
    """Commands in groups, as in gtvray."""


@app.command("verb")
@group.command("verb")
def verb(fail: bool = False, count: int = 1, as_json: JsonOption = False) -> None:
    """A command that uses a library which prints."""
    np.show_config()
    emit({"count": count}, as_json, f"{count} counted")
    np.show_config()
    if fail:
        raise InputError("it failed")


LIBRARY = "Build Dependencies"


@pytest.mark.parametrize("words", [["verb"], ["group", "verb"]])
@pytest.mark.parametrize("fail", [[], ["--fail"]])
def test_library_output_is_redirected_to_stderr(words: list[str], fail: list[str]) -> None:
    done = CliRunner().invoke(app, [*words, "--json", *fail])
    assert isinstance(done.exception, InputError) == bool(fail)
    assert json.loads(done.stdout) == {"count": 1}
    assert done.stderr.count(LIBRARY) == 2


def test_without_json_nothing_is_redirected() -> None:
    done = CliRunner().invoke(app, ["verb"])
    assert done.stdout.count(LIBRARY) == 2
    assert "1 counted" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("words", [["--fail"], ["--count", "many"]])
def test_stdout_is_restored_after_an_error(words: list[str]) -> None:
    before = sys.stdout
    with pytest.raises((InputError, typer.TyperException)):
        app(["verb", "--json", *words], standalone_mode=False)
    assert sys.stdout is before
    assert "7 counted" in CliRunner().invoke(app, ["verb", "--count", "7"]).stdout


def test_completion_shows_its_words_on_stdout() -> None:
    words = {"_VERBS_COMPLETE": "complete_bash", "COMP_WORDS": "verbs verb --json --co", "COMP_CWORD": "3"}
    assert "--count" in CliRunner().invoke(app, env=words, prog_name="verbs").stdout
