"""One at a time in a folder, over threads and processes: for who looks first and then writes."""

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

WAIT, STEP = 10.0, 0.005  # seconds: until a holder that does not let go is passed over; between two tries
BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_threads = threading.Lock()

if sys.platform == "win32":  # which locks no folders: a file elsewhere stands for it
    import msvcrt

    def opened(folder: Path) -> int:
        name = sha256(os.path.normcase(folder.resolve()).encode()).hexdigest()[:16]
        return os.open(Path(tempfile.gettempdir()) / f"amed-{name}.lock", os.O_RDWR | os.O_CREAT)

    def take(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def opened(folder: Path) -> int:
        return os.open(folder, os.O_RDONLY)

    def take(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder, made where it is not there. The lock is the system's: it ends with its process, however
    that ends, and leaves no file in the folder. Where a file system has none, threads of this process alone
    wait for each other."""
    held = _threads.acquire(timeout=WAIT)
    handle = None
    try:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            handle = opened(folder)
            wait_for(handle)
        yield
    finally:
        if handle is not None:
            os.close(handle)  # which gives the lock back
        if held:
            _threads.release()


def wait_for(handle: int) -> None:
    """Take the lock, or leave it after WAIT. Raises OSError where there are no locks."""
    end = time.monotonic() + WAIT
    while True:
        try:
            return take(handle)
        except OSError as error:
            if error.errno not in BUSY or time.monotonic() > end:
                raise
        time.sleep(STEP)
