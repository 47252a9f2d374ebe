"""The files of the job store: encrypted inputs and masks, in one folder per job that only its owner can read."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gtvray.errors import FailureError, InputError, StorageFullError, TooLargeError
from gtvray.io import HEAD_BYTES
from gtvray.serving.jobs.records import OPEN, Claim, NewVolume, StoredVolume
from gtvray.serving.jobs.sealing import seal, unseal
from gtvray.serving.transfer.sealed import SealedWriter, new_key
from gtvray.serving.transfer.spool import Body, completed
from gtvray.serving.transfer.uploads import CURL, EXPECTED, check_body

# Longer than any upload: an older folder that belongs to no job was left behind by a killed process.
_ABANDONED_S = 3600.0


class StoredFile(BaseModel):
    """What is needed to read an encrypted file of the job store."""

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    size: int = Field(description="bytes of its content")
    sha256: str = Field(description="of its content")
    key: bytes = Field(description="under which it is encrypted", repr=False)


class JobFiles:
    """Files of the job store.

    Args:
        folder: folder of the job store.
        key: key of the job store, 32 bytes.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        # Replicas are other processes, whose working directory may be another one.
        self._folder, self._key = folder.absolute() / "files", key
        self._folder.mkdir(mode=0o700, exist_ok=True)

    @asynccontextmanager
    async def new_job(self, job_id: str) -> AsyncIterator[None]:
        """Create a job's folder for its inputs; it is removed if the block fails.

        Raises:
            StorageFullError: the disk is full.
        """
        folder = self._folder / job_id
        try:
            with disk_errors():
                await completed(asyncio.to_thread(folder.mkdir, mode=0o700))
                yield
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise

    def new_input(self, job_id: str, number: int, limit_bytes: int) -> NewInput:
        """Open an input for writing."""
        path = self._folder / job_id / f"input-{number}"
        return NewInput(path, self._key, _purpose(job_id, number, "input"), limit_bytes)

    def new_reference(self, job_id: str, number: int, pinned: bytes) -> NewVolume:
        """Return a volume that refers to a file instead of a stored input; `pinned` comes from `pin_reference`."""
        sealed = seal(pinned, self._key, _purpose(job_id, number, "reference"))
        return NewVolume(True, len(sealed), sha256(pinned).hexdigest(), sealed)

    def make_durable(self, job_id: str) -> None:
        """Flush the folders of a job, so that its inputs survive a power failure."""
        for folder in (self._folder / job_id, self._folder):
            _sync(folder)

    def input_body(self, claim: Claim) -> Body:
        """Return the stored input of a volume; its content is checked as it is read.

        Raises:
            FailureError: the file is missing, or its stored key was modified or belongs to another volume.
        """
        stored = unseal(claim.input, self._key, _purpose(*claim.volume, "input"))
        path = self._folder / claim.job_id / f"input-{claim.number}"
        return _existing(path, StoredFile.model_validate_json(stored))

    def read_reference(self, claim: Claim) -> bytes:
        """Return the `pinned` reference that was passed to `new_reference`.

        Raises:
            FailureError: it was modified, or belongs to another volume.
        """
        return unseal(claim.input, self._key, _purpose(*claim.volume, "reference"))

    def write_mask(self, claim: Claim, mask_gz: bytes) -> tuple[StoredFile, int]:
        """Write the mask of a claim, durably, under a name of its own.

        Returns:
            what is needed to read it, and its size on disk.

        Raises:
            StorageFullError: the disk is full.
        """
        path, key = self._mask(claim.job_id, claim.number, claim.attempt), new_key()
        with disk_errors():
            writer = SealedWriter(path, key)
            try:
                writer.write(mask_gz)
                writer.close(durable=True)
            finally:
                writer.discard()
            _sync(path.parent)
        return StoredFile(size=writer.size, sha256=sha256(mask_gz).hexdigest(), key=key), path.stat().st_size

    def read_mask(self, job_id: str, number: int, attempt: int, stored: StoredFile) -> bytes:
        """Return a mask.

        Raises:
            FailureError: it is missing or was changed.
        """
        with _existing(self._mask(job_id, number, attempt), stored).open() as file:
            return file.read()

    def remove_leftovers(self, claim: Claim) -> None:
        """Delete the input of a volume that has ended, and the masks of its earlier attempts."""
        folder = self._folder / claim.job_id
        (folder / f"input-{claim.number}").unlink(missing_ok=True)
        for mask in folder.glob(f"mask-{claim.number}-*"):
            if mask != self._mask(claim.job_id, claim.number, claim.attempt):
                mask.unlink(missing_ok=True)

    def remove_mask(self, claim: Claim) -> None:
        """Delete the mask of a claim that is no longer valid."""
        self._mask(claim.job_id, claim.number, claim.attempt).unlink(missing_ok=True)

    def remove_job(self, job_id: str) -> None:
        """Delete every file of a job."""
        shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def remove_unknown(self, known: Iterable[StoredVolume]) -> None:
        """Delete files that no job needs: inputs of ended volumes, masks of earlier attempts, folders of unknown jobs.

        Killed processes leave such files behind. The folder of an unknown job may be an upload in progress, so it is
        deleted only if it is old.
        """
        of_job: dict[str, list[StoredVolume]] = {}
        for volume in known:
            of_job.setdefault(volume.job_id, []).append(volume)
        for folder in self._folder.iterdir():
            volumes = of_job.get(folder.name)
            with suppress(FileNotFoundError):
                if volumes is not None:
                    for volume in volumes:
                        self._remove_unneeded(folder, volume)
                elif time.time() - folder.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(folder, ignore_errors=True)

    def _remove_unneeded(self, folder: Path, volume: StoredVolume) -> None:
        if volume.state not in OPEN:
            (folder / f"input-{volume.number}").unlink(missing_ok=True)
        for mask in folder.glob(f"mask-{volume.number}-*"):
            attempt = int(mask.name.rpartition("-")[2])
            # A later attempt may have begun since the volumes were listed.
            if attempt < volume.attempt or (volume.state not in OPEN and volume.state != "done"):
                mask.unlink(missing_ok=True)

    def _mask(self, job_id: str, number: int, attempt: int) -> Path:
        return self._folder / job_id / f"mask-{number}-{attempt}"


class NewInput:
    """An input that is written as it arrives; its first bytes and its size are checked.

    Args:
        path: file to create.
        key: key of the job store, which encrypts the key of the file.
        purpose: see `seal`.
        limit_bytes: largest content.
    """

    def __init__(self, path: Path, key: bytes, purpose: str, limit_bytes: int) -> None:
        self._path, self._limit_bytes = path, limit_bytes
        self._store_key, self._purpose, self._key = key, purpose, new_key()
        self._writer = SealedWriter(path, self._key)
        self._digest, self._head = sha256(), b""

    def write(self, content: bytes) -> None:
        """Append bytes.

        Raises:
            TooLargeError: the content exceeds its limit.
            ContentTypeError, VolumeError: it is not a volume.
        """
        if self._writer.size + len(content) > self._limit_bytes:
            raise TooLargeError(
                "the upload is too large", expected=f"at most {self._limit_bytes} bytes per volume", do="crop the scan"
            )
        if len(self._head) < HEAD_BYTES:
            self._head += content[: HEAD_BYTES - len(self._head)]
            if len(self._head) == HEAD_BYTES:
                check_body(self._head)
        self._digest.update(content)
        self._writer.write(content)

    def finish(self) -> NewVolume:
        """Complete the file and flush it to disk.

        Raises:
            InputError: there is no content.
            ContentTypeError, VolumeError: it is not a volume.
        """
        if not self._writer.size:
            raise InputError("the request has no body", expected=EXPECTED, do=CURL)
        if len(self._head) < HEAD_BYTES:
            check_body(self._head)
        self._writer.close(durable=True)
        stored = StoredFile(size=self._writer.size, sha256=self._digest.hexdigest(), key=self._key)
        sealed = seal(stored.model_dump_json().encode(), self._store_key, self._purpose)
        return NewVolume(False, self._path.stat().st_size, stored.sha256, sealed)

    def close(self) -> None:
        """Close the file; it is complete only after `finish`."""
        self._writer.discard()


@contextmanager
def disk_errors() -> Iterator[None]:
    """Convert the OSError of a full disk to an error of gtvray.

    Raises:
        StorageFullError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                "the disk of the job store is full",
                found=error.strerror,
                do="retry later, or ask the operator to free disk space",
            ) from error
        raise


def _purpose(job_id: str, number: int, kind: Literal["input", "reference"]) -> str:
    return f"{job_id}/{number}/{kind}"


def _existing(path: Path, stored: StoredFile) -> Body:
    if not path.exists():
        raise FailureError("a stored file is missing", do="send the job again")
    return Body(path, stored.size, stored.sha256, stored.key)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
