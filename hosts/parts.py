"""What the parts of a slope (amed.parts) are called, in pictures and texts."""

BANDS = ("finest", "finer", "coarser", "coarsest")
ADDED = "what guidance adds"
NAMES = {
    "": ("the slopes in hand",),
    "guidance": ("the slopes without guidance", ADDED),
    "halves": ("the prompt's slopes", ADDED),
    "bands": tuple(f"the {band} band" for band in BANDS),
    "halves+bands": tuple(f"{whose}, {band} band" for whose in ("the prompt's", ADDED) for band in BANDS),
}


def names_of(parts: str, count: int) -> tuple[str, ...]:
    """Each part's; numbers where it has none."""
    return NAMES.get(parts) or tuple(f"part {number}" for number in range(1, count + 1))


def trimmed(weights: list[float]) -> list[float]:
    """Without the zeros at the end."""
    last = max((n for n, w in enumerate(weights) if w != 0), default=0)
    return weights[: last + 1]
