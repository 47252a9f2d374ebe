"""Generate docs/reference/ from the code: command help, settings, and a page for each public package.

    python docs/build.py

The pages of commands and settings are committed, and a test compares them with the code. The API pages under
docs/reference/api/ are generated for the documentation site only.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from gtvray.cli.main import app
from gtvray.config import Config, SweepConfig, describe_keys
from gtvray.serving.arguments import AppArguments

REFERENCE = Path(__file__).resolve().parent / "reference"
API = REFERENCE / "api"
PACKAGE = REFERENCE.parent.parent / "gtvray"
_WIDTH = 100
_HOW = "Written by `make docs` from the code; do not edit."
_SWEEP_NOTE = """\
A value of `space` is a range, `{low: 1.0e-4, high: 1.0e-2, log: true}` (`log` and `integer` are optional), or a
choice, `{choice: [0.3, 0.6]}`. Keys of `base`, `space` and `start` are those of the first table."""
_SERVE_NOTE = (
    "They stand under `args` in `serve/config.yaml`; `serving` there holds the `serving.*` keys of the first table."
)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command, such as `data check`, with its command."""
    yield from _below(typer.main.get_command(app), "")


def _below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if not children:
        yield name, command
        return
    for child, below in children.items():
        yield from _below(below, f"{name} {child}".strip())


def commands_page() -> str:
    """The page of all commands."""
    parts = ["# Commands", _HOW, "Exit codes: 0 done, 1 the work failed, 2 wrong use or wrong input."]
    for name, command in commands():
        context = command.context_class(command, info_name=f"gtvray {name}", terminal_width=_WIDTH)
        parts += [f"## gtvray {name}", f"```text\n{command.get_help(context).rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def settings_page() -> str:
    """The page of all settings."""
    parts = ["# Settings", _HOW]
    parts += ["## Config", "In a YAML file by section, or as `section.field=value`.", _table(Config)]
    parts += ["## Sweep file", _SWEEP_NOTE, _table(SweepConfig)]
    parts += ["## Arguments of the Serve application", _SERVE_NOTE, _table(AppArguments, without="serving.")]
    return "\n\n".join(parts) + "\n"


def _table(section: type[BaseModel], without: str | None = None) -> str:
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for row in describe_keys(section):
        if without is None or not row["key"].startswith(without):
            # What has a factory, or must be given, has no default that could be shown.
            default = "" if row["default"] == "PydanticUndefined" else f"`{row['default']}`"
            lines.append(f"| `{row['key']}` | {default} | {row['about'].replace('|', '/')} |")
    return "\n".join(lines)


PAGES = {"commands.md": commands_page, "settings.md": settings_page}


def api_pages() -> Iterator[tuple[str, str]]:
    """Yield file name and text of the API page of every package with public names."""
    names = []
    for stub in sorted(PACKAGE.glob("*/__init__.pyi")):
        name = stub.parent.name
        module = importlib.import_module(f"gtvray.{name}")
        title = (module.__doc__ or "").strip().rstrip(".")
        parts = [f"# gtvray.{name}", f"{title}."]
        parts += [_documented(f"gtvray.{name}", public, getattr(module, public)) for public in module.__all__]
        names.append(name)
        yield f"{name}.md", "\n\n".join(parts) + "\n"
    listed = "\n".join(names)
    yield "index.md", f"# Python API\n\n:::{{toctree}}\n:maxdepth: 1\n\n{listed}\n:::\n"


def _documented(package: str, name: str, value: Any) -> str:
    if inspect.isclass(value):
        directive, options = "autoclass", ":members:\n"
    elif callable(value):
        directive, options = "autofunction", ""
    else:
        return f"**{name}**: `{value!r}`"
    return (
        f"```{{eval-rst}}\n.. {directive}:: {package}.{name}\n   {options}```"
        if options
        else (f"```{{eval-rst}}\n.. {directive}:: {package}.{name}\n```")
    )


def main() -> None:
    """Write the pages."""
    API.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page())
    for name, text in api_pages():
        (API / name).write_text(text)


if __name__ == "__main__":
    main()
