"""The host's log."""

import logging

_warned: set[str] = set()


def warn_once(text: str) -> None:
    """A line in the host's log, once for the same text."""
    if text not in _warned:
        _warned.add(text)
        logging.warning("AMED: %s", text)
