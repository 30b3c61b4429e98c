"""Refuse every address except this machine's own, and log the caller.

Uses only the standard library, so that it can be a process's sitecustomize (tests/comfyui/test_network.py).
AMED_NETWORK_LOG names the log file; without it this is an ordinary module."""

import os
import sys
import traceback
from urllib.parse import urlsplit

LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "", None)
LOG = os.environ.get("AMED_NETWORK_LOG")


def host_of(event: str, args: tuple) -> object:
    """Return the address that an audit event requests; None for an event without one."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        return address[0] if isinstance(address, tuple) else None  # a path is a local socket
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        return args[0]
    if event == "urllib.Request":
        return urlsplit(args[0]).hostname
    return None


def watch(event: str, args: tuple) -> None:
    if not event.startswith(("socket.", "urllib.", "subprocess.Popen", "os.system")):
        return
    if event in ("subprocess.Popen", "os.system"):  # logged, not refused: a host may inspect its hardware
        write("program", args[0])
        return
    host = host_of(event, args)
    host = host.decode() if isinstance(host, bytes) else host
    if host not in LOCAL:
        write("address", host)
        raise PermissionError(f"{event} to {host}: only this machine is allowed here")


def write(kind: str, request: object) -> None:
    """Write a line: what was requested, and the files on the call stack."""
    files = dict.fromkeys(frame.filename for frame in traceback.extract_stack()[:-2])
    with open(LOG, "a") as log:
        log.write(f"{kind}\t{request}\t{' '.join(files)}\n")


if LOG:
    with open(LOG, "a") as started:
        started.write(f"watching\t{os.getpid()}\t\n")
    sys.addaudithook(watch)
