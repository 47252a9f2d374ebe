"""Sphinx settings of the documentation site; `make docs` builds it into docs/_build/html."""

from __future__ import annotations

import importlib
import pkgutil

import gtvray
from gtvray import __version__

# autodoc imports modules with typing.TYPE_CHECKING set, which breaks FastAPI; they are imported here first.
for package in pkgutil.iter_modules(gtvray.__path__):
    if package.ispkg and package.name != "cli":
        module = importlib.import_module(f"gtvray.{package.name}")
        for name in module.__all__:
            getattr(module, name)

project = "gtvray"
author = "The gtvray authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"gtvray {release}"
# The site is one folder that can be read from disk: nothing is fetched from elsewhere.
html_theme_options = {"sidebar_hide_name": False}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Two packages have a public class `Finding`; autodoc links annotations of dataclass fields by the bare name.
suppress_warnings = ["ref.python"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
