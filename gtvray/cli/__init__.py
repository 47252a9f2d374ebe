"""The command line: one module per command, with imports inside the commands."""

from __future__ import annotations

from gtvray.cli.main import main

__all__ = ["main"]
