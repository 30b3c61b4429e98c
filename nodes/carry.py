"""A predictor that travels with an image: in the workflow that SaveImage writes into the file.

The page gives its workflow with each prompt and keeps the `extra` of one that it has read from an image. So
a node that has chosen puts its predictor there, as a code, and one that finds it there again, its widgets
as they were and on the same checkpoint, takes it, with no such file too. A node whose result the host takes
from its cache puts nothing: an image made with a cached Load or Apply then carries only what others put."""

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, TypeVar

from ..amed import Fitted, PredictorError
from ..amed.choose import Identity, Report
from ..amed.files.code import code_of, from_code
from .folders import FOLDER, library

T = TypeVar("T")
KEY, FROM = "amed", ", from the workflow"


def named(name: str) -> Fitted:
    """A predictor file of the library. Raises PredictorError, with the nearest name where it is not there."""
    if name not in (names := library().names()):
        near = "".join(f" The nearest is {n!r}." for n in get_close_matches(name, names, n=1, cutoff=0.3))
        raise PredictorError(
            f"there is no predictor {name!r} in models/{FOLDER}, nor with this pack.{near}\n"
            "Choose another, put that file there, or paste its code into Load AMED Predictor."
        )
    return library().load(name)


def entries(png: Any, make: bool = False) -> dict:
    """What a prompt's workflow carries, by node id; made where it is not there yet, if asked."""
    here = png.get("workflow") if isinstance(png, dict) else None
    for key in ("extra", KEY):
        if not isinstance(here, dict):
            return {}
        if make and not isinstance(here.get(key), dict):
            here[key] = {}
        here = here.get(key)
    return here if isinstance(here, dict) else {}


def carry(png: Any, node_id: str | None, widgets: dict, fitted: Fitted, who: Identity | None = None) -> None:
    """Put a node's predictor into this prompt's workflow, and the checkpoint that it ran on. What any
    installation makes itself stays out."""
    if fitted.spec.model_family or fitted.spec.model_fingerprint:
        own = {"name": fitted.name.removesuffix(FROM), "code": code_of(fitted), "for": widgets}
        own["checkpoint"] = who.fingerprint if who else ""
        if who and who.signature and not who.same(fitted.spec.identity):  # or the code has it
            own["signature"] = who.signature
        entries(png, make=True)[str(node_id)] = own


def carried(png: Any, node_id: str | None, widgets: dict, who: Identity | None = None) -> Fitted | None:
    """The predictor that the workflow carries for a node whose widgets are as they were then; None where
    there is none. who: the checkpoint it must be for. Raises PredictorError for a broken one, and for
    another's."""
    entry = entries(png).get(str(node_id))
    if not isinstance(entry, dict) or entry.get("for") != widgets:
        return None
    fitted = from_code(str(entry.get("code")), "the workflow's predictor")
    spec = fitted.spec
    if who is not None:
        ran = Identity("", str(entry.get("checkpoint")), str(entry.get("signature", "")))
        known = who.same(spec.identity) or who.same(ran)
        if not known and (spec.identity.known or spec.model_family != who.family):
            raise PredictorError(f"the workflow's predictor is for another checkpoint ({spec.model_name})")
    return replace(fitted, name=str(entry.get("name"))[:100] + FROM)


def noted(png: Any, node_id: str | None, report: Report, guidance: float) -> None:
    """What a run did, under "amed" in the images' metadata: JSON by node id."""
    if not isinstance(png, dict):
        return
    spec = report.fitted.spec if report.fitted else None
    said = {
        "predictor": report.fitted.name if report.fitted else None,
        "solver": spec.sampler if spec and spec.learned else spec and spec.solver,
        "evaluations": report.evaluations,
        "passes": report.passes,
        "guidance": guidance,
        "checkpoint": spec.model_fingerprint if spec else "",
        "notes": list(report.remarks),
        "text": report.text(),
    }
    png.setdefault(KEY, {})[str(node_id)] = said


def carried_or(
    png: Any,
    node_id: str | None,
    widgets: dict,
    who: Identity | None,
    take: Callable[[Fitted], T],
    otherwise: Callable[[], T],
) -> tuple[T, list[str]]:
    """What `take` makes of the predictor that the workflow carries; `otherwise()` where there is none, or
    where it is refused, and then why."""
    said = []
    try:
        fitted = carried(png, node_id, widgets, who)
        if fitted is not None:
            return take(fitted), []
    except PredictorError as error:
        said.append(f"not taken from the workflow: {error}")
    return otherwise(), said
