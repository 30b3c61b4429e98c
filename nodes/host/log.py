"""ComfyUI's log."""

import logging
from functools import lru_cache


@lru_cache(maxsize=256)  # texts; some name a file
def warn_once(text: str) -> None:
    """Write a warning to ComfyUI's log, only once for the same text."""
    logging.warning("AMED: %s", text)
