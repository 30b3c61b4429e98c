"""A predictor that travels with an image: in the workflow that SaveImage writes into the file.

The page gives its workflow with each prompt and keeps the `extra` of one that it has read from an image. So
a node that has chosen puts its predictor there, as a code, and one that finds it there again, its widgets
as they were and on the same checkpoint, takes it, with no such file too. It takes what the workflow held when
it was sent, never what a node of the same run has put in. A node whose result the host takes
from its cache puts nothing: an image made with a cached Load or Apply then carries only what others put."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, TypeVar

from ...amed import Fitted, PredictorError
from ...amed.choose import Identity, Report
from ...amed.files.code import code_of, from_code
from ..host.folders import FOLDER, library

T = TypeVar("T")
KEY, FROM = "amed", ", from the workflow"
LATEST = 4  # runs whose metadata are known: the host runs one at a time


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
    """What a prompt's workflow holds of ours, by node id; made where it is not there yet, if asked."""
    here = png.get("workflow") if isinstance(png, dict) else None
    for key in ("extra", KEY):
        if not isinstance(here, dict):
            return {}
        if make and not isinstance(here.get(key), dict):
            here[key] = {}
        here = here.get(key)
    return here if isinstance(here, dict) else {}


@dataclass
class Metadata:
    """The EXTRA_PNGINFO of one run of the host, which its nodes write into: what it carried when it was sent,
    and what each of our nodes has put in since, one for each item of its list of inputs."""

    png: dict
    opened: dict
    put: dict[str, list[dict]] = field(default_factory=dict)
    reports: dict[str, list[dict]] = field(default_factory=dict)


_metadata: list[Metadata] = []  # of the latest runs, the newest last


def metadata_of(png: Any) -> Metadata | None:
    """Of a run, by the very object that the host hands to all of its nodes; None where there is none."""
    if not isinstance(png, dict):
        return None
    found = next((one for one in _metadata if one.png is png), None)
    if found is None:
        found = Metadata(png, copy.deepcopy(entries(png)))
        _metadata[:] = [*_metadata[1 - LATEST :], found]
    return found


def carry(png: Any, node_id: str | None, widgets: dict, fitted: Fitted, who: Identity | None = None) -> None:
    """Put a node's predictor into this prompt's workflow, and the checkpoint `who` that it ran on; of a node
    that runs for each item of a list, a list of those that differ. What any installation makes itself stays
    out."""
    metadata = metadata_of(png)
    if metadata is None or not (fitted.spec.model_family or fitted.spec.model_fingerprint):
        return
    own = {"name": fitted.name.removesuffix(FROM), "code": code_of(fitted), "for": widgets}
    own["checkpoint"] = who.fingerprint if who else ""
    if who and who.signature and not who.same(fitted.spec.identity):  # or the code has it
        own["signature"] = who.signature
    put = metadata.put.setdefault(str(node_id), [])
    if own not in put:
        put.append(own)
    entries(png, make=True)[str(node_id)] = put[0] if len(put) == 1 else list(put)


def carried(png: Any, node_id: str | None, widgets: dict, who: Identity | None = None) -> Fitted | None:
    """The predictor that the workflow carried, when it was sent, for a node whose widgets are as they were
    then; None where there is none. who: the checkpoint it must be for. Raises PredictorError for a broken
    one, and for another's."""
    metadata = metadata_of(png)
    entry = metadata.opened.get(str(node_id)) if metadata else None
    refused = None
    for one in entry if isinstance(entry, list) else [entry]:
        if not isinstance(one, dict) or one.get("for") != widgets:
            continue
        try:
            return opened_entry(one, who)
        except PredictorError as error:
            refused = refused or error
    if refused is not None:
        raise refused
    return None


def opened_entry(entry: dict, who: Identity | None) -> Fitted:
    """The predictor of an entry. Raises PredictorError for a broken one, and for another checkpoint's."""
    fitted = from_code(str(entry.get("code")), "the workflow's predictor")
    spec = fitted.spec
    if who is not None:
        ran = Identity("", str(entry.get("checkpoint")), str(entry.get("signature", "")))
        known = who.same(spec.identity) or who.same(ran)
        if not known and (spec.identity.known or spec.model_family != who.family):
            raise PredictorError(f"the workflow's predictor is for another checkpoint ({spec.model_name})")
    return replace(fitted, name=str(entry.get("name"))[:100] + FROM)


def noted(png: Any, node_id: str | None, report: Report, guidance: float) -> None:
    """What a run did, under "amed" in the images' metadata: JSON by node id; of a node that runs for each
    item of a list, a list of them."""
    metadata = metadata_of(png)
    if metadata is None:
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
    reports = metadata.reports.setdefault(str(node_id), [])
    reports.append(said)
    png.setdefault(KEY, {})[str(node_id)] = said if len(reports) == 1 else list(reports)


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
