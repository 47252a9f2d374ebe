"""The import target of the Serve config files in this folder; the application is in gtvray.serving."""

from __future__ import annotations

from gtvray.serving import build_app as build

__all__ = ["build"]
