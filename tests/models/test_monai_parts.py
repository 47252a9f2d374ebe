"""MONAI is imported in part, and works afterwards as if it had been imported as a whole."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_PROGRAM = """
import json, pkgutil, sys
walk = pkgutil.walk_packages
import gtvray.models.monai_parts
unwanted = ("monai.handlers", "monai.engines", "mlflow", "matplotlib", "pandas", "sklearn")
found = {"early": [name for name in unwanted if name in sys.modules]}
import pandas
import monai.utils.module
found["restored"] = pkgutil.walk_packages is walk is monai.utils.module.walk_packages
import monai.engines
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SegResNet
found["engine"] = monai.engines.SupervisedTrainer.__name__
print(json.dumps(found))
"""


@pytest.mark.slow
def test_rest_of_monai_can_be_imported_later() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"early": [], "restored": True, "engine": "SupervisedTrainer"}
