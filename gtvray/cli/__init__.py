"""The command line: one module per command, which imports what it needs when it runs."""

from __future__ import annotations

from gtvray.cli.main import main

__all__ = ["main"]
