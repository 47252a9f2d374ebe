"""The scans of `gtvray predict --server`: sent to an endpoint, several at once or as a job."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from gtvray.errors import GtvrayError
from gtvray.inference import SegmentedCase
from gtvray.io import write_output_volume
from gtvray.serving import Client, RemoteResult
from gtvray.serving.client.volumes import open_scan

Outcome = tuple[Path, SegmentedCase | GtvrayError]


def predict_remotely(
    targets: dict[Path, Path],
    server: str,
    token: str,
    *,
    ca_file: Path | None = None,
    model: str | None = None,
    at_once: int,
    as_job: bool,
    overwrite: bool,
) -> Generator[Outcome, None, None]:
    """Predict scans through an endpoint, and write each mask as it arrives.

    Args:
        targets: scan -> file of its mask.
        server: address of the endpoint.
        token: the bearer token.
        ca_file: PEM file of the certificate authorities that are trusted; None trusts the public ones.
        model: name of one of the endpoint's models; None for its default.
        at_once: scans that are sent at the same time.
        as_job: send all scans as one job. If this is interrupted, the job is cancelled.
        overwrite: whether earlier outputs of gtvray may be replaced.

    Yields:
        each scan with its case, or with its error, in order.
    """
    scans, began = list(targets), time.perf_counter()
    with Client(server, token, model=model, ca_file=ca_file) as client:
        answers: Iterable[tuple[object, RemoteResult | GtvrayError]]
        answers = _as_job(client, scans) if as_job else client.segment_many(scans, at_once=at_once)
        for scan, (_, outcome) in zip(scans, answers, strict=True):
            yield scan, _stored(targets[scan], outcome, time.perf_counter() - began, overwrite)
            began = time.perf_counter()


def _as_job(client: Client, scans: list[Path]) -> Iterator[tuple[Path, RemoteResult | GtvrayError]]:
    refused = {scan: error for scan in scans if (error := _fault(scan)) is not None}
    sent = [scan for scan in scans if scan not in refused]
    if sent:
        job = client.submit(sent)
        results: Iterator[tuple[int, RemoteResult | GtvrayError]] = client.results(job.id, scans=sent)
    else:
        job, results = None, iter(())
    try:
        for scan in scans:
            yield scan, refused[scan] if scan in refused else next(results)[1]
    finally:
        # The results have been fetched or are no longer needed; if this fails, they expire.
        if job is not None:
            with suppress(GtvrayError):
                client.cancel(job.id)


def _fault(scan: Path) -> GtvrayError | None:
    """Return why a file cannot be sent, or None; a single such file would cause the whole job to be rejected."""
    try:
        open_scan(scan).close()
    except GtvrayError as error:
        return error
    return None


def _stored(
    target: Path, outcome: RemoteResult | GtvrayError, waited_s: float, overwrite: bool
) -> SegmentedCase | GtvrayError:
    if isinstance(outcome, GtvrayError):
        return outcome
    began = time.perf_counter()
    try:
        write_output_volume(target, outcome.mask, overwrite=overwrite)
    except GtvrayError as error:
        return error
    stages = {"request": waited_s, "write": time.perf_counter() - began}
    return SegmentedCase(target, outcome.volume_ml, outcome.coverage, (), stages, outcome.out_of_domain)
