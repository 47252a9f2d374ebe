"""Entry point: the commands, and the conversion of errors to messages and exit codes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from itertools import takewhile

import typer

from gtvray import __version__
from gtvray.cli import (
    cluster,
    config,
    corrections,
    data,
    demo,
    doctor,
    evaluate,
    models,
    predict,
    promote,
    qa,
    serve,
    submit,
    sweep,
    token,
    train,
    workspace,
)
from gtvray.cli.common import take_sigterm
from gtvray.cli.settings import SettingsCommand
from gtvray.errors import FailureError, GtvrayError, InputError, ResourceError, first_line
from gtvray.runtime import VERSION_VARIABLE, no_temp_folder, use_token

app = typer.Typer(
    name="gtvray",
    help="From CT scans and tumour contours to a served segmentation model, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("demo", cls=SettingsCommand)(demo.demo)
app.command("doctor", cls=SettingsCommand)(doctor.doctor)
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(corrections.app, name="corrections")
app.command("train", cls=SettingsCommand)(train.train)
app.command("sweep", cls=SettingsCommand)(sweep.sweep)
app.command("evaluate", cls=SettingsCommand)(evaluate.evaluate)
app.command("qa", cls=SettingsCommand)(qa.qa)
app.command("promote", cls=SettingsCommand)(promote.promote)
app.command("rollback", cls=SettingsCommand)(promote.rollback)
app.add_typer(models.app, name="models")
app.add_typer(serve.app, name="serve")
app.add_typer(token.app, name="token")
app.command("predict", cls=SettingsCommand)(predict.predict)
app.add_typer(workspace.app, name="workspace")
app.add_typer(submit.app, name="submit")
app.add_typer(cluster.app, name="cluster")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong use or input."""
    take_sigterm()
    code = 0
    try:
        use_token()
        _require_submitted_version()
        _run(sys.argv[1:])
    except typer.Exit as request:
        code = request.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _fail(FailureError("interrupted", do="run it again; completed work is kept"))
    except GtvrayError as error:
        code = _fail(error)
    except typer.TyperException as error:
        code = _misused(error)
    except OSError as error:
        code = _fail(_of_system(error))
    except UnicodeEncodeError as error:
        code = _fail(_of_name(error))
    except Exception as error:  # noqa: BLE001  # users get a message instead of a stack trace
        code = _fail(_unexpected(error))
    # Threads of Ray and MLflow may still run; their output is not needed.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    sys.exit(code)


def _run(arguments: list[str]) -> None:
    # Typer's own entry point would turn Ctrl-C into an exit code without a message.
    command = typer.main.get_command(app)
    with command.make_context("gtvray", arguments) as context:
        command.invoke(context)


def _require_submitted_version() -> None:
    """Refuse to run a submitted job with a version other than the one that submitted it."""
    submitted = os.environ.get(VERSION_VARIABLE, __version__)
    if submitted != __version__:
        raise InputError(
            "the cluster has another version of gtvray",
            expected=f"{submitted}, the version that submitted the job",
            found=__version__,
            do="submit without --installed, so that this code is sent with the job, or install the same version",
        )


def _misused(error: typer.TyperException) -> int:
    message = error.format_message()
    if message.startswith("Usage:"):
        # Without a command the message is the help.
        sys.stderr.write(f"{message}\n")
        return InputError.exit_code
    path = getattr(getattr(error, "ctx", None), "command_path", "gtvray")
    return _fail(InputError(message, do=f"see `{path} --help`"))


def _fail(error: GtvrayError) -> int:
    # Options after "--" belong to another command, as in `gtvray submit`.
    if "--json" in takewhile(lambda argument: argument != "--", sys.argv):
        sys.stdout.write(json.dumps({"error": error.problem()}) + "\n")
    sys.stderr.write(f"error: {error}\n")
    return error.exit_code


def _of_system(error: OSError) -> GtvrayError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError("the disk is full", where=error.filename, do="free some space and run it again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        do = "set another folder with --workspace or GTVRAY_WORKSPACE; `gtvray doctor` lists what to set"
        return InputError("not permitted", where=error.filename, found=error.strerror, do=do)
    # The wording of Python's tempfile and of matplotlib.
    if "temporary directory" in str(error):
        return no_temp_folder()
    return _unexpected(error)


def _of_name(error: UnicodeEncodeError) -> GtvrayError:
    # Python decodes undecodable bytes of file names to surrogates, which cannot be encoded.
    if not any("\ud800" <= character <= "\udfff" for character in error.object[error.start : error.end]):
        return _unexpected(error)
    return InputError(
        "the name of a file or folder cannot be read in this locale",
        found=ascii(error.object[:200]),
        do="set LC_ALL=C.UTF-8 and unset PYTHONUTF8; rename files whose names are not UTF-8",
    )


def _unexpected(error: Exception) -> GtvrayError:
    if os.environ.get("GTVRAY_DEBUG"):
        raise error
    # The text of a Ray task error contains the remote traceback; its cause is the original error.
    cause = getattr(error, "cause", None)
    if isinstance(cause, OSError):
        return _of_system(cause)
    shown = cause if isinstance(cause, Exception) else error
    found = f"{type(shown).__name__}: {first_line(shown)}"
    # SQLite and safetensors report these without an OSError.
    if "database is locked" in str(error):
        return ResourceError(
            "the MLflow database is locked by another program",
            found=found,
            do="wait until that program has finished, or close it, and run this again; the database is intact, keep it",
        )
    if any(text in str(error) for text in ("disk is full", os.strerror(errno.ENOSPC))):
        return ResourceError("the disk is full", found=found, do="free some space and run it again")
    if type(error).__module__.partition(".")[0] == "mlflow":
        do = "check that MLflow is reachable and tracking.uri is correct, then run it again; completed work is kept"
        return ResourceError("MLflow failed", found=found, do=do)
    return FailureError(
        "unexpected error",
        found=found,
        do="run it again with GTVRAY_DEBUG=1 and report the output",
    )
