"""One syntax for settings: `section.field=value` after a command's other arguments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from typer.core import TyperCommand, TyperGroup

from gtvray.config import is_setting
from gtvray.io import require_path

_PARAMETER = "override"


class SettingsCommand(TyperCommand):
    """A command that reads words such as `optimizer.lr=3e-4` as settings, at any position among its arguments.

    A word is a setting if its first part is a section of the schema. After `--`, or with a leading `./`, it is a path.
    Settings reach the command through the parameter of its `--set` option.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Turn settings into `--set` options, then parse as usual, and refuse URIs where only a path works."""
        if any(param.name == _PARAMETER for param in self.params):
            args = list(self._with_options(args))
        rest = super().parse_args(ctx, args)
        for value in ctx.params.values():
            for each in value if isinstance(value, list | tuple) else [value]:
                if isinstance(each, Path):
                    require_path(each)
        return rest

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Show settings in the usage line."""
        pieces = super().collect_usage_pieces(ctx)
        return [*pieces, "[KEY=VALUE]..."] if any(param.name == _PARAMETER for param in self.params) else pieces

    def _with_options(self, args: list[str]) -> Iterator[str]:
        takes_value = {
            name
            for param in self.params
            if param.param_type_name == "option" and not getattr(param, "is_flag", False)
            for name in param.opts
        }
        words = iter(args)
        for word in words:
            if word == "--":
                yield from (word, *words)
            elif word in takes_value:
                yield word
                yield from (value for value in [next(words, None)] if value is not None)
            elif is_setting(word):
                yield from ("--set", word)
            else:
                yield word


class _DefaultGroup(TyperGroup):
    """A group of commands that runs one of them if none is named."""

    default: ClassVar[str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the name of the default command before arguments and options that are not of the group."""
        named = bool(args) and args[0] in (*self.commands, "--help")
        if not named and (args or not self.no_args_is_help):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


class ListGroup(_DefaultGroup):
    """A group whose command `list` need not be named: `gtvray models --json`."""

    default = "list"


class RunGroup(_DefaultGroup):
    """A group whose command `run` need not be named: `gtvray submit -- COMMAND`."""

    default = "run"
