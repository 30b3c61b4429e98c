"""The host's log."""

import logging
from functools import lru_cache


@lru_cache(maxsize=256)  # of texts; some name a file
def warn_once(text: str) -> None:
    """A line in the host's log, once for the same text."""
    logging.warning("AMED: %s", text)
