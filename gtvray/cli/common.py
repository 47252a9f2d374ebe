"""What verbs share: options, progress on stderr, results on stdout."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TextIO

import typer

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", help="Folder that everything is written to.", envvar="GTVRAY_WORKSPACE")
]
WORKSPACE = Path("gtvray-runs")
_stdout: ContextVar[TextIO | None] = ContextVar("_stdout", default=None)


def _keep_stdout(context: typer.Context, as_json: bool) -> bool:
    """With --json, what a library prints goes to stderr until the verb ends: Ray prints when a worker dies."""
    if as_json:
        # The root's context is always closed; a verb's is not when an option after this one is wrong.
        context.find_root().with_resource(_stdout_for_results())
    return as_json


@contextmanager
def _stdout_for_results() -> Iterator[None]:
    """Only `emit` writes on stdout for the length of a `with` block."""
    token = _stdout.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdout.reset(token)


JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout and nothing else there.", callback=_keep_stdout),
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="A running Ray cluster, host:port or auto; one is started otherwise.")
]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="A bundle's folder, a version, or champion.")]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace earlier outputs of gtvray that are unchanged; never anything else."),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A YAML file of settings.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="A setting; the same as KEY=VALUE after the other arguments."
    ),
]


class Progress:
    """Stages on stderr: a live line on a terminal, a line a stage elsewhere, nothing beside JSON elsewhere.

    Args:
        expected_s: seconds a stage is expected to take, in order; tells the time left.
        quiet: `--json` was given.
    """

    def __init__(self, expected_s: Mapping[str, float], quiet: bool) -> None:
        self._expected_s = dict(expected_s)
        self._terminal = sys.stderr.isatty()
        self._silent = quiet and not self._terminal
        self._stage, self._detail, self._began = "", "", time.monotonic()
        self._status: Any = None

    def begin(self, stage: str, detail: str) -> None:
        """A stage begins."""
        # Ray, once connected, has put its own handler in the place of ours.
        take_sigterm()
        if self._stage:
            self._expected_s.pop(self._stage, None)
        self._stage, self._detail, self._began = stage, detail, time.monotonic()
        if self._silent:
            return
        if self._terminal:
            self._update("")
        else:
            sys.stderr.write(f"{stage}: {detail} ({self._left(0.0)})\n")

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """The present stage is this far."""
        if self._terminal and not self._silent:
            share = done / total if total else 0.0
            said = detail or f"{done:g}/{total:g}"
            self._update(f"  {said}", share)

    @contextmanager
    def live(self) -> Iterator[Progress]:
        """Keep the line on the screen for the length of a `with` block."""
        if self._terminal:
            from rich.console import Console

            with Console(stderr=True).status("") as self._status:
                yield self
            self._status = None
        else:
            yield self

    def _update(self, said: str, share: float = 0.0) -> None:
        if self._status is not None:
            self._status.update(f"[bold]{self._stage}[/]  {self._detail}{said}  [dim]{self._left(share)}[/]")

    def _left(self, share: float) -> str:
        elapsed = time.monotonic() - self._began
        expected = self._expected_s.get(self._stage, 0.0)
        # What has been seen of a stage tells more than what was expected, once some of it has been seen.
        present = elapsed * (1 - share) / share if share > 0.05 else max(0.0, expected - elapsed)
        later = list(self._expected_s)
        rest = later[later.index(self._stage) + 1 :] if self._stage in later else []
        seconds = present + sum(self._expected_s[name] for name in rest)
        return f"about {int(seconds // 60)}:{int(seconds % 60):02d} left"


def take_sigterm() -> None:
    """Let SIGTERM do what Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)


def emit(value: Any, as_json: bool, text: str) -> None:
    """Print a result: JSON, or text for people."""
    typer.echo(json.dumps(value, default=str) if as_json else text, file=_stdout.get())


def shell_command(*words: object) -> str:
    """Format a command line that can be pasted into a shell, whatever its paths are called.

    Args:
        words: program, options and values; a `Path` with a leading dash gets `./` before it, lest it be an option.
    """
    return shlex.join(
        f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words
    )


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Format rows as an aligned text table, wrapped to the terminal's width if stdout is one.

    Args:
        rows: values by key.
        columns: key -> heading; floats are shown with three digits.
    """
    from gtvray.io import Table

    cells = [[_cell(row.get(key)) for key in columns] for row in rows]
    return Table(list(columns.values()), cells).text(terminal_width())


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None if it is not one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
