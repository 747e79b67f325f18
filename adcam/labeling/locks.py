"""Locks on a folder: who works in it, kept by the system and gone with the process.

A lock is ``flock`` on a small file, so that the system gives it back whatever ends the process:
kill, crash or power cut. On a shared folder it holds as far as the file system passes such locks on
between machines: NFS version 4, Lustre mounted with ``flock``, CephFS, GPFS and SMB do. Where there
are no locks, the folder is used without: the caller must then not start the same work twice.

The file says who holds it, in JSON; others read it for their messages and for ``adcam status``.
"""

from __future__ import annotations

import json
import os
import socket
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from adcam.errors import AdcamError
from adcam.files import name_in_error

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_NAME = ".adcam-lock"

# Somebody who only asks whether a lock is held (:func:`is_held`) holds it for some microseconds.
_TRIES = 4
_PAUSE_S = 0.05


class FolderLock:
    """Keeps other processes out of a folder until it is released or this process ends.

    Args:
        folder: The folder, which exists.
        name: The file in it that is locked.
        shared: Whether others may hold a shared lock at the same time. Such a lock keeps out those
            who want the folder for themselves, and says nothing of its holder.

    Attributes:
        was_killed: Whether the process that held the lock before did not give it back.

    Raises:
        AdcamError: Another process has the lock; the message says which.
        OSError: The file cannot be made.
    """

    def __init__(self, folder: Path, name: str = LOCK_NAME, *, shared: bool = False) -> None:
        self._folder = folder
        self._path = folder / name
        self._file: int | None = None
        self._holder: dict[str, Any] = {}
        self.was_killed = False
        _locks.add(self)
        if fcntl is None:
            return
        operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        if self._acquire(operation | fcntl.LOCK_NB) and not shared:
            self.was_killed = bool(read_holder(self._path))
            started = datetime.now().astimezone().isoformat(" ", "seconds")
            self.note({"process": os.getpid(), "host": socket.gethostname(), "started": started})

    def _acquire(self, operation: int) -> bool:
        """Open and lock the file; ``False`` on a file system without locks."""
        assert fcntl is not None
        tries = 0
        while True:
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except OSError as error:
                raise name_in_error(error, self._path) from error
            try:
                fcntl.flock(file, operation)
            except BlockingIOError as error:
                os.close(file)
                tries += 1
                if tries == _TRIES:
                    who = describe_holders(self._folder, self._path)
                    raise AdcamError(
                        f"{self._folder} is in use by {who}; wait until it ends, or take another "
                        "folder"
                    ) from error
                time.sleep(_PAUSE_S)
            except OSError:
                os.close(file)
                self._path.unlink(missing_ok=True)
                return False
            else:
                # The process before may have removed the file after it was opened here.
                if self._is_there(file):
                    self._file = file
                    return True
                os.close(file)

    def note(self, values: Mapping[str, Any]) -> None:
        """Add to what the file says of its holder.

        Raises:
            OSError: The file cannot be written.
        """
        if self._file is None:
            return
        self._holder.update(values)
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(self._holder).encode(), 0)
        except OSError as err:
            self.release()
            raise name_in_error(err, self._path) from err

    def _is_there(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file and give the lock back; once is enough, more do no harm."""
        if self._file is None:
            return
        assert fcntl is not None
        # The last one of those that share a lock removes the file.
        with suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None


_locks: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _close_copies() -> None:
    """In a process that was forked: a lock must not outlive the one that took it."""
    for lock in list(_locks):
        if lock._file is not None:
            os.close(lock._file)
            lock._file = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)


def read_holder(path: Path) -> dict[str, Any]:
    """Read what a lock's file says of who holds it, or held it when it was killed; else ``{}``."""
    with suppress(OSError, ValueError):
        holder = json.loads(path.read_bytes()[:10_000])
        if isinstance(holder, dict):
            return holder
    return {}


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is created, while the block runs.

    One that was created and holds nothing afterwards is removed.

    Raises:
        AdcamError: Another process works in it; the message says which.
        OSError: The folder cannot be made or written to.
    """
    was_there = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        yield
    finally:
        lock.release()
        if not was_there:
            with suppress(OSError):
                folder.rmdir()


def is_held(path: Path) -> bool:
    """Tell whether a process, of any machine that passes its locks on, holds a lock on a file."""
    if fcntl is None:
        return False
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


def describe_holders(folder: Path, path: Path) -> str:
    """Describe who holds a lock: its own holder, or those of the folder's shards."""
    found = [read_holder(path)]
    if not found[0]:
        found = [read_holder(lock) for lock in sorted(folder.glob("shards/*.lock"))[:3]]
    known = [
        f"process {holder.get('process')} on {holder.get('host')}, started {holder.get('started')}"
        for holder in found
        if holder
    ]
    return " and ".join(known) or "another process"
