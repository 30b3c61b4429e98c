"""A lock on a folder, across threads and processes, so that nobody writes between a check and a write."""

import errno
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

TIMEOUT = 10.0  # seconds to wait for the lock, before going on without it
INTERVAL = 0.005  # seconds between two attempts
BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_threads = threading.Lock()  # for file systems without locks

if sys.platform == "win32":  # Windows cannot lock a folder: lock a temporary file named after it
    import msvcrt

    def open_folder(folder: Path) -> int:
        """Return the file descriptor of a temporary file to lock, because Windows cannot lock a folder."""
        name = sha256(os.path.normcase(folder.resolve()).encode()).hexdigest()[:16]
        return os.open(Path(tempfile.gettempdir()) / f"amed-{name}.lock", os.O_RDWR | os.O_CREAT)

    def take_lock(handle: int) -> None:
        """Lock a file descriptor. Raises OSError if another process holds the lock."""
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def open_folder(folder: Path) -> int:
        """Return a file descriptor of `folder`, to lock it."""
        return os.open(folder, os.O_RDONLY)

    def take_lock(handle: int) -> None:
        """Lock a file descriptor. Raises OSError if another process holds the lock."""
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder` during a `with` block, so that only one thread or process saves files there.

    The folder is created if it does not exist. The operating system releases the lock when its process ends,
    and no file is left in the folder. On a file system without locks only the threads of this process wait
    for each other. If the lock is not free after TIMEOUT seconds, the block runs without it."""
    acquired = _threads.acquire(timeout=TIMEOUT)
    handle = None
    try:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            handle = open_folder(folder)
            wait_for_lock(handle)
        yield
    finally:
        if handle is not None:
            os.close(handle)  # releases the lock
        if acquired:
            _threads.release()


def wait_for_lock(handle: int) -> None:
    """Lock a file descriptor, waiting up to TIMEOUT seconds.

    Raises:
        OSError: if the lock is still held by then, or the file system has no locks.
    """
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            return take_lock(handle)
        except OSError as error:
            if error.errno not in BUSY or time.monotonic() > deadline:
                raise
        time.sleep(INTERVAL)
