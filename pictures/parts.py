"""Names for the parts into which a predictor splits slopes (see amed.parts), for pictures and texts."""

BANDS = ("finest", "finer", "coarser", "coarsest")
ADDED = "what guidance adds"
NAMES = {  # kind of split, as in a predictor file's field `parts` -> name of each part
    "": ("the slopes so far",),
    "guidance": ("the slopes without guidance", ADDED),
    "halves": ("the prompt's slopes", ADDED),
    "bands": tuple(f"the {band} band" for band in BANDS),
    "halves+bands": tuple(f"{whose}, {band} band" for whose in ("the prompt's", ADDED) for band in BANDS),
}


def names_of(parts: str, count: int) -> tuple[str, ...]:
    """Return display names for the parts into which a slope (dx/dsigma) is split, e.g. frequency bands.

    Args:
        parts: the kind of split as named in predictor files, e.g. "bands" (of spatial frequency) or
            "guidance" (the slope without guidance, and what guidance adds).
        count: number of parts; if the kind is unknown, they are called "part 1", "part 2", ..."""
    return NAMES.get(parts) or tuple(f"part {number}" for number in range(1, count + 1))


def trimmed(weights: list[float]) -> list[float]:
    """Return a list of weights without the zeros at its end, but with at least one weight."""
    last = max((n for n, w in enumerate(weights) if w != 0), default=0)
    return weights[: last + 1]
