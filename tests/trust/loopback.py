"""Refuses every address but this machine's own, and writes down who asked: the standard library alone, so
that it can be a process's sitecustomize (tests/comfyui/test_network.py). AMED_NETWORK_LOG names the file;
without it this is only a module."""

import os
import sys
import traceback
from urllib.parse import urlsplit

LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "", None)
LOG = os.environ.get("AMED_NETWORK_LOG")


def host_of(event: str, args: tuple) -> object:
    """The address that an event asks for; None for one that asks for none."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        return address[0] if isinstance(address, tuple) else None  # a path is a socket of this machine
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        return args[0]
    if event == "urllib.Request":
        return urlsplit(args[0]).hostname
    return None


def watch(event: str, args: tuple) -> None:
    if not event.startswith(("socket.", "urllib.", "subprocess.Popen", "os.system")):
        return
    if event in (
        "subprocess.Popen",
        "os.system",
    ):  # written down, not refused: a host may look at its hardware
        write("program", args[0])
        return
    host = host_of(event, args)
    host = host.decode() if isinstance(host, bytes) else host
    if host not in LOCAL:
        write("address", host)
        raise PermissionError(f"{event} to {host}: only this machine is allowed here")


def write(kind: str, what: object) -> None:
    """A line: what was asked for, and the files that led there."""
    files = dict.fromkeys(frame.filename for frame in traceback.extract_stack()[:-2])
    with open(LOG, "a") as log:
        log.write(f"{kind}\t{what}\t{' '.join(files)}\n")


if LOG:
    with open(LOG, "a") as started:
        started.write(f"watching\t{os.getpid()}\t\n")
    sys.addaudithook(watch)
