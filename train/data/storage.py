"""A folder on any file system that fsspec knows (s3://, gs://, memory://, a path) in which a file
is either whole or not there, and which one run at a time may fill.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import fsspec
from fsspec.implementations.local import LocalFileSystem

PART = '.part-'  # begins the name of a file that is being written; nobody reads these
LEASE, LOCK = 'driver.json', '.driver.lock'
BEAT, STALE = 15.0, 90.0  # seconds between signs of life; silence after which a run is dead


class Busy(RuntimeError):
    """Another run is at work in the folder."""


class Folder:
    """The folder behind a URL or path; names are relative, with '/' between their parts."""

    def __init__(self, url: str):
        """Raises ValueError for a URL that no file system is known for."""
        try:
            self.system, self.root = fsspec.core.url_to_fs(str(url))
        except ImportError as error:  # the package of a cloud's file system
            raise ValueError(f'{url}: {error}') from error
        self.url = str(url).rstrip('/')
        self.local = isinstance(self.system, LocalFileSystem)

    def path(self, name: str) -> str:
        """The path of a file as its file system spells it."""
        return f'{self.root.rstrip("/")}/{name}'

    def read(self, name: str) -> bytes:
        """Read a whole file. Raises OSError."""
        return self.system.cat_file(self.path(name))

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read many files, many at a time where the file system can. Raises OSError."""
        paths = [self.path(name) for name in names]
        found = self.system.cat_ranges(paths, None, None, on_error='raise')
        return dict(zip(names, found, strict=True))

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return self.system.exists(self.path(name))

    def names(self, under: str, suffix: str) -> list[str]:
        """The names of all whole files below a folder that end so, sorted."""
        start = len(self.root.rstrip('/')) + 1
        found = (path[start:] for path in self._find(under))
        return sorted(n for n in found if n.endswith(suffix) and PART not in n)

    def _find(self, under: str) -> list[str]:
        self.system.invalidate_cache()
        try:
            return self.system.find(self.path(under))
        except FileNotFoundError:
            return []

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all. Raises OSError, after which nothing of it is left.

        On a disk it is written beside and renamed; an object store shows an object only when it
        is complete.
        """
        path = self.path(name)
        if not self.local:
            self.system.makedirs(path.rpartition('/')[0], exist_ok=True)
            self.system.pipe_file(path, data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f'{PART}{uuid.uuid4().hex}')
        try:
            with part.open('wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except OSError as error:  # one of a full disk names no file
            raise OSError(error.errno, error.strerror or str(error), path) from error
        finally:
            part.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self.system.rm_file(self.path(name))

    def sweep(self) -> int:
        """Remove what killed writers left behind; the number of files."""
        parts = [path for path in self._find('') if path.rpartition('/')[2].startswith(PART)]
        for path in parts:
            self.system.rm_file(path)
        return len(parts)


class Lease:
    """The right to fill a folder, held by one run at a time, as a file with a sign of life.

        with Lease(folder): ...

    Raises Busy where another run holds it. A run that was killed is followed at once on its own
    machine, elsewhere after 90 s of silence. Two runs that begin in the same instant on an object
    store, or on a disk without locks, can both get it: what they write must not depend on who
    writes it.
    """

    def __init__(self, folder: Folder):
        self.folder, self.over = folder, threading.Event()
        self.me = {'host': socket.gethostname(), 'pid': os.getpid(), 'run': uuid.uuid4().hex}
        self.beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lease:
        """Take the lease."""
        with self._one_at_a_time():
            holder = self.holder()
            if holder is not None and not is_dead(holder):
                since = time.strftime('%H:%M:%S', time.localtime(holder['alive']))
                raise Busy(
                    f'{self.folder.url}: another run is at work here (process {holder["pid"]} on '
                    f'{holder["host"]}, alive at {since}); wait for it or choose another folder'
                )
            self._sign()
        self.beating.start()
        return self

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """On a disk, of runs that begin together one looks and signs before the next one looks,
        also where both find a dead one; the lock ends with its process.
        """
        if not self.folder.local:
            yield
            return
        Path(self.folder.root).mkdir(parents=True, exist_ok=True)
        with open(self.folder.path(LOCK), 'ab') as file:
            with suppress(OSError):  # some file systems of clusters have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the lease back."""
        self.over.set()
        self.beating.join()
        holder = self.holder()
        if holder is not None and holder['run'] == self.me['run']:
            self.folder.remove(LEASE)

    def holder(self) -> dict | None:
        """Who holds the lease now."""
        try:
            return json.loads(self.folder.read(LEASE))
        except (FileNotFoundError, ValueError):
            return None

    def _sign(self) -> None:
        self.folder.write(LEASE, json.dumps({**self.me, 'alive': time.time()}).encode())

    def _beat(self) -> None:
        while not self.over.wait(BEAT):
            with suppress(OSError):  # a full disk: the run itself will meet it
                self._sign()


def is_dead(holder: dict) -> bool:
    """Whether the run that signed so is at work no more."""
    if holder['host'] == socket.gethostname():
        try:
            os.kill(holder['pid'], 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # somebody else's process: it, or one that has its number now
            pass
    return time.time() - holder['alive'] > STALE
