"""Shared parts of the commands: options, progress on stderr, results on stdout."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TextIO

import typer

from gtvray.errors import GtvrayError

WorkspaceOption = Annotated[Path, typer.Option("--workspace", help="Folder for all output.", envvar="GTVRAY_WORKSPACE")]
WORKSPACE = Path("gtvray-runs")
# Without a terminal, progress within a stage is a line at most this often.
_LINE_EVERY_S = 10.0
# After this time a small share is used for the estimate too, such as the first of thousands of scans.
_OBSERVED_S = 60.0
_Handler = Callable[[int, FrameType | None], None]
_stdout: ContextVar[TextIO | None] = ContextVar("_stdout", default=None)


def _keep_stdout(context: typer.Context, as_json: bool) -> bool:
    """With --json, redirect the output of libraries to stderr until the command ends: Ray prints when a worker dies."""
    if as_json:
        # The root context is always closed; that of a command is not if a later option is invalid.
        context.find_root().with_resource(_stdout_for_results())
    return as_json


@contextmanager
def _stdout_for_results() -> Iterator[None]:
    """Let only `emit` write to stdout within a `with` block."""
    token = _stdout.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdout.reset(token)


JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout, and nothing else.", callback=_keep_stdout),
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Running Ray cluster, host:port or auto; by default one is started.")
]
CaFileOption = Annotated[
    Path | None,
    typer.Option("--ca-file", help="PEM file of the private authority that signed the endpoint's certificate."),
]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="Folder of a bundle, a version, or champion.")]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace unmodified earlier output of gtvray; never anything else."),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="A setting; equivalent to KEY=VALUE after the other arguments."
    ),
]


class Progress:
    """Progress by stage on stderr: a live line on a terminal, otherwise one line per stage, or none with `--json`.

    Args:
        expected_s: stage -> expected seconds, in order, for the estimate of the time left.
        quiet: whether `--json` was given.
    """

    def __init__(self, expected_s: Mapping[str, float], quiet: bool) -> None:
        self._expected_s = dict(expected_s)
        self._terminal = sys.stderr.isatty()
        self._silent = quiet and not self._terminal
        self._stage, self._detail, self._began = "", "", time.monotonic()
        self._waiting: str | None = None
        self._status: Any = None
        self._written = float("-inf")

    def expect(self, stage: str, seconds: float) -> None:
        """Change the expected seconds of a stage that has not started."""
        self._expected_s[stage] = seconds

    def begin(self, stage: str, detail: str) -> None:
        """Start a stage."""
        # Connecting to Ray replaces the signal handler.
        take_sigterm()
        if self._stage:
            self._expected_s.pop(self._stage, None)
        self._stage, self._detail, self._began = stage, detail, time.monotonic()
        if self._silent:
            return
        if self._terminal:
            self._update("")
        else:
            self._write(f"{stage}: {detail} ({self._left(0.0)})")

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """Report progress within the stage."""
        share = done / total if total else 0.0
        if self._terminal and not self._silent:
            text = detail or f"{done:g}/{total:g}"
            self._update(f"  {text}", share)
        elif not self._silent and detail and time.monotonic() - self._written >= _LINE_EVERY_S:
            self._write(f"{self._stage}: {detail} ({self._left(share)})")

    def note(self, text: str) -> None:
        """Print lines that stay on the screen above the progress."""
        if self._silent:
            return
        if self._status is not None:
            self._status.console.print(text, markup=False, highlight=False)
        else:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def waiting(self, reason: str | None) -> None:
        """Show what the stage waits for instead of an estimate; without a terminal, a line for each new reason."""
        changed, self._waiting = reason != self._waiting, reason
        if self._terminal and not self._silent:
            if changed:
                self._update("")
        elif changed and reason is not None and not self._silent:
            sys.stderr.write(f"{self._stage}: {reason}\n")

    @contextmanager
    def live(self) -> Iterator[Progress]:
        """Display the line within a `with` block."""
        if self._terminal:
            from rich.console import Console

            with Console(stderr=True).status("") as self._status:
                yield self
            self._status = None
        else:
            yield self

    def _write(self, line: str) -> None:
        """Write a line where there is no terminal; at once, since a log file is read while it grows."""
        self._written = time.monotonic()
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def _update(self, text: str, share: float = 0.0) -> None:
        if self._status is not None:
            self._status.update(f"[bold]{self._stage}[/]  {self._detail}{text}  [dim]{self._left(share)}[/]")

    def _left(self, share: float) -> str:
        if self._waiting is not None:
            return self._waiting
        elapsed = time.monotonic() - self._began
        expected = self._expected_s.get(self._stage, 0.0)
        # Observed progress gives a better estimate than the expectation, once there is some.
        is_observed = share > 0.05 or (share > 0 and elapsed > _OBSERVED_S)
        if not expected and not is_observed:
            return "time left not known yet"
        present = elapsed * (1 - share) / share if is_observed else max(0.0, expected - elapsed)
        later = list(self._expected_s)
        rest = later[later.index(self._stage) + 1 :] if self._stage in later else []
        seconds = present + sum(self._expected_s[name] for name in rest)
        return f"about {int(seconds // 60)}:{int(seconds % 60):02d} left"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# Handlers of SIGTERM, of which the last one is in use; `ended_by_second_interrupt` adds its own.
_sigterm_handlers: list[_Handler] = [_interrupt]


def take_sigterm() -> None:
    """Handle SIGTERM in the same way as Ctrl-C; within `ended_by_second_interrupt` its handler is restored."""
    signal.signal(signal.SIGTERM, _sigterm_handlers[-1])


@contextmanager
def ended_by_second_interrupt(last_words: Callable[[], str]) -> Iterator[None]:
    """Within the block, the first Ctrl-C or SIGTERM is raised and a further one ends the process at once.

    Nothing is lost: recorded results are on disk, and Ray ends the workers of a terminated process.

    Args:
        last_words: returns what to print then.
    """
    interrupted = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            # Bypass the streams, since the signal may have interrupted a write.
            os.write(2, f"\nerror: interrupted twice, terminated immediately\n{last_words()}".encode())
            os._exit(GtvrayError.exit_code)
        interrupted = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    _sigterm_handlers.append(handle)
    try:
        yield
    finally:
        _sigterm_handlers.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


def emit(value: Any, as_json: bool, text: str) -> None:
    """Print a result as JSON or as text."""
    typer.echo(json.dumps(value, default=str) if as_json else text, file=_stdout.get())


def shell_command(*words: object) -> str:
    """Format a command line that can be pasted into a shell; words are quoted as needed.

    Args:
        words: program, options and values; a `Path` with a leading dash is prefixed with `./`, so it is no option.
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
    """Return the width of the terminal in columns; None if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    # Three decimals suit scores, but would show a learning rate as 0.000.
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.1 else f"{value:.3g}"
