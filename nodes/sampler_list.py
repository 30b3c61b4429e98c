"""The list of samplers in the node Compare AMED's input `samplers`."""

import difflib
from dataclasses import dataclass

from ..amed import SAMPLERS
from ..amed.choose import AUTO
from .host.register import dropdown_names
from .host.sampling import SCHEDULER

AMED, PLAIN, REFERENCE = "amed", "plain", "reference"
OWN_SAMPLERS = {AMED: AUTO, "amed_solver": "amed"} | {name: name for name in SAMPLERS if name != AMED}
SUGGESTIONS = 4  # names suggested for an unknown one


@dataclass(frozen=True)
class Entry:
    """A sampler for the node Compare AMED to compare, with its scheduler."""

    sampler: str
    scheduler: str = (
        ""  # name of ComfyUI's scheduler; "": the usual one, or the sampler brings its noise levels
    )


def read_entries(text: str) -> list[Entry]:
    """Parse Compare AMED's list of samplers, one per line. Raises ValueError for an unknown name."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(
            "samplers is empty: write one sampler per line, e.g. amed, plain or dpmpp_2m / karras"
        )
    return list(dict.fromkeys(read_entry(line, number) for number, line in lines))


def read_entry(line: str, number: int) -> Entry:
    """Parse one line of Compare AMED's list of samplers. Raises ValueError for an unknown name.

    number: the line's number, from 1, to name it in error messages."""
    names, schedulers = dropdown_names()
    name, _, scheduler = (part.strip().lower() for part in line.partition("/"))
    own_names = (PLAIN, *OWN_SAMPLERS)
    if name not in own_names and name not in names:
        raise ValueError(
            f"samplers, line {number}: there is no sampler "
            f"{name!r}\n{suggestion(name, [*own_names, *names])}\nWrite amed, plain, or a name from the "
            "KSampler's list, which / and a scheduler may follow"
        )
    if name in own_names and scheduler not in ("", SCHEDULER):
        raise ValueError(
            f"samplers, line {number}: {name} brings its own noise levels: leave out / {scheduler}"
        )
    if name in own_names:
        return Entry(name)
    if scheduler not in ("", *schedulers):
        raise ValueError(
            f"samplers, line {number}: there is no scheduler "
            f"{scheduler!r}\n{suggestion(scheduler, schedulers)}\nWrite a name from the KSampler's list, or "
            f"leave the scheduler out: {name}"
        )
    return Entry(name, scheduler)


def suggestion(name: str, names: list[str]) -> str:
    """Return a sentence for an error message: which of `names` are most similar to a misspelled name."""
    near = difflib.get_close_matches(name, names, SUGGESTIONS, 0.4) or names[:SUGGESTIONS]
    return f"The nearest names are: {', '.join(dict.fromkeys(near))}"
