"""Send a scan to an endpoint until a file appears: `python ask_endpoint.py URL FOLDER` prints a summary."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from gtvray.client import Client, Retry
from gtvray.errors import GtvrayError
from gtvray.io import write_volume


def main(url: str, folder: Path) -> None:
    token, scan = os.environ["GTVRAY_TOKEN"], folder / "scan.nii.gz"
    # The first answer may take as long as the endpoint needs to start; later ones are not repeated.
    with Client(url, token, retry=Retry(attempts=1000, total_s=240, first_contact_s=240)) as patient:
        write_volume(folder / "mask.nii.gz", patient.segment(scan).mask)
    (folder / "ready").touch()
    digests, failed, longest_s = set(), [], 0.0
    with Client(url, token, retry=Retry(attempts=1)) as client:
        answers = 0
        while not (folder / "enough").exists():
            began = time.monotonic()
            try:
                digests.add(hashlib.sha256(client.segment(scan).mask.array.tobytes()).hexdigest())
                answers += 1
            except GtvrayError as error:
                failed.append(str(error))
            longest_s = max(longest_s, time.monotonic() - began)
    json.dump(
        {"answers": answers, "failed": failed, "digests": len(digests), "longest_s": round(longest_s, 2)}, sys.stdout
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
