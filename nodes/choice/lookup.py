"""The predictor for what a node's widgets ask: carried by the workflow, the library's, or calibrated now."""

from dataclasses import dataclass, replace
from typing import Any

from ...amed import Fitted, PredictorError
from ...amed.choose import AUTO, PLAIN, Choice, Request, choose, mismatches
from ..calibration import calibrate_now
from ..host.fitting import Prompts
from ..host.folders import library
from ..host.model import identity
from ..host.request import CALIBRATE, request
from .fingerprint import remember
from .workflow import carried_or, carry


@dataclass(frozen=True)
class Wanted:
    """What a node's widgets ask of the library for a MODEL; prompts, node_id: to calibrate with."""

    model: Any
    sampler: str
    nfe: int
    guidance: float
    if_missing: str
    prompts: Prompts
    node_id: str | None

    def request(self, **more: Any) -> Request:
        return request(self.model, self.sampler, self.guidance, nfe=self.nfe, **more)


def look_up(wanted: Wanted, png: Any = None) -> Choice:
    """The predictor that the workflow (in `png`, the host's EXTRA_PNGINFO) carries for this node; else the
    library's for the MODEL, or by `if_missing` one calibrated now, or a plain solver. What is found is put
    into the workflow.

    Raises PredictorError where there is none, ValueError where a calibration lacks what it needs."""
    node_id, who = wanted.node_id, identity(wanted.model)
    widgets = {"sampler": wanted.sampler, "nfe": wanted.nfe, "guidance": wanted.guidance}

    def take(own: Fitted) -> Choice:
        return choose(library(), wanted.request(fitted=own))

    def look() -> Choice:
        choice = found_or(wanted)
        remember(wanted.request())
        return choice

    choice, said = carried_or(png, node_id, widgets, who, take, look)
    carry(png, node_id, widgets, choice.fitted, who)
    return replace(choice, remarks=(*said, *choice.remarks))


def found_or(wanted: Wanted) -> Choice:
    """`look_up` in the library alone. A calibration is for this very checkpoint and guidance: where it is
    asked for, a predictor for others does not count as found."""
    asked, prompts = wanted.request(if_missing=wanted.if_missing), wanted.prompts
    if wanted.if_missing != CALIBRATE:
        return choose(library(), asked)
    try:
        choice = choose(library(), replace(asked, if_missing="error"))
        missing = "; ".join(lacks(choice, asked))
        if not missing:
            return choice
    except PredictorError as error:
        missing = str(error).splitlines()[0]
    if any(v is None for v in (prompts.positives[0], prompts.negative, prompts.latent)):
        raise ValueError(
            "to calibrate now, link positive, negative and latent_image too: the fit needs prompts of the "
            "kind you use and the size of the images"
        )
    kept = calibrate_now(wanted.model, prompts, wanted.sampler, wanted.nfe, wanted.guidance, wanted.node_id)
    if not kept.fitted.spec.usable:
        choice = choose(library(), replace(asked, if_missing=PLAIN))
        return replace(choice, remarks=(f"calibrated now, as asked: {kept.result.text}", *choice.remarks))
    choice = choose(library(), replace(asked, sampler=AUTO, fitted=kept.fitted))
    return replace(choice, remarks=(f"calibrated now, as asked ({missing}); {kept.text}", *choice.remarks))


def lacks(choice: Choice, asked: Request) -> list[str]:
    """Why a choice is not what a calibration for this request would be: it is for another checkpoint, or
    guidance. (That another file was left out, which a choice remarks on too, is no reason.)"""
    theirs = choice.fitted.spec.identity
    unknown = ["this checkpoint cannot be told from others"] if theirs.known and not asked.model.known else []
    return unknown + mismatches(choice.fitted, asked.model, asked.guidance)
