"""A node's face, on hosts that know more or fewer fields than this pack."""

import inspect
from typing import Any

from comfy_api.latest import io

CATEGORY = "sampling/AMED"
Predictor = io.Custom("AMED_PREDICTOR")


def schema(**fields: Any) -> io.Schema:
    """io.Schema of the fields this host's Schema takes; newer ones (search_aliases) are left out on older
    hosts."""
    known = inspect.signature(io.Schema).parameters
    return io.Schema(**{"category": CATEGORY} | {k: v for k, v in fields.items() if k in known})
