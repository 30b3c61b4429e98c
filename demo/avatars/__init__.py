"""The second demo model: a flow model of avatars that follows a prompt.

python -m amed calibrate --model demo.avatars:target --nfe 6 --guidance 4"""

from typing import Any


def target(guidance: float, **options: Any) -> Any:
    """Return the avatar model at a guidance scale as a Target; see `targets.target`.

    Imported when it is called, because ComfyUI loads this package without `amed` on the import path."""
    from .targets import target as avatars

    return avatars(guidance, **options)
