"""Write `bundle-schema-N`, a bundle of the current schema, for the tests of later versions.

    python -m tests.assets.make_bundle

Run it once per schema version and commit the folder. Folders of earlier schemas are never written again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gtvray.models.bundle import SCHEMA_VERSION

from ..bundles import random_bundle

if __name__ == "__main__":
    folder = Path(__file__).parent / f"bundle-schema-{SCHEMA_VERSION}"
    sys.stdout.write(f"{random_bundle(folder, seed=4).digest}\n")
