"""The predictor for a node's inputs: carried by the workflow, from the library, or calibrated now."""

from dataclasses import dataclass, replace
from typing import Any

from ...amed import Fitted, PredictorError
from ...amed.choose import AUTO, PLAIN, Choice, Request, choose, mismatches, preferred
from ..calibration import calibrate_now
from ..host.fitting import Prompts
from ..host.folders import library
from ..host.model import identity
from ..host.request import CALIBRATE, request
from .fingerprint import remember
from .workflow import carried_predictor, write_predictor


@dataclass(frozen=True)
class Wanted:
    """The inputs of a node that determine which predictor it uses, e.g. its MODEL, sampler and nfe."""

    model: Any  # the MODEL
    sampler: str  # name of the sampler, or "auto"
    nfe: int  # evaluations
    guidance: float  # guidance scale (cfg)
    if_missing: str  # what to do without a predictor, one of the options of the input of that name
    prompts: Prompts  # for a calibration; its fields may be None
    node_id: str | None  # the node, which shows the progress of a calibration

    def request(self, **fields: Any) -> Request:
        """Return a Request for the library's best predictor for this node's MODEL, sampler, nfe and guidance.

        fields: values for other fields of the Request, e.g. `if_missing`."""
        return request(self.model, self.sampler, self.guidance, nfe=self.nfe, **fields)


def look_up(wanted: Wanted, png: Any = None) -> Choice:
    """Choose the predictor for a node, and write it into the workflow.

    Take the predictor stored in the workflow for this node, else the best predictor file for the MODEL, else
    what the node's input `if_missing` says, e.g. calibrate a predictor now or run a plain solver.

    Args:
        wanted: the node's inputs, e.g. MODEL, sampler, nfe and `if_missing`.
        png: ComfyUI's EXTRA_PNGINFO, which has the workflow.

    Raises:
        PredictorError: if there is no predictor and `if_missing` is "error".
        ValueError: if inputs that a calibration needs are not linked."""
    node_id, model_identity = wanted.node_id, identity(wanted.model)
    widgets = {"sampler": wanted.sampler, "nfe": wanted.nfe, "guidance": wanted.guidance}

    def use(fitted: Fitted) -> Choice:
        return choose(library(), wanted.request(fitted=fitted))

    def from_library() -> Choice:
        choice = library_or_calibration(wanted)
        remember(wanted.request())
        return choice

    def carried() -> Fitted | None:
        return carried_predictor(png, node_id, widgets, model_identity)

    choice, remarks = preferred(use, from_library, carried=carried)
    write_predictor(png, node_id, widgets, choice.fitted, model_identity)
    return replace(choice, remarks=(*remarks, *choice.remarks))


def library_or_calibration(wanted: Wanted) -> Choice:
    """Choose a node's predictor from the installed files, else do what its input `if_missing` says.

    If `if_missing` is "calibrate now", a predictor fitted to another checkpoint or another guidance scale is
    not used, and a new one is calibrated."""
    node_request, prompts = wanted.request(if_missing=wanted.if_missing), wanted.prompts
    if wanted.if_missing != CALIBRATE:
        return choose(library(), node_request)
    try:
        choice = choose(library(), replace(node_request, if_missing="error"))
        missing = "; ".join(reasons_to_calibrate(choice, node_request))
        if not missing:
            return choice
    except PredictorError as error:
        missing = str(error).splitlines()[0]
    if any(v is None for v in (prompts.positives[0], prompts.negative, prompts.latent)):
        raise ValueError(
            "to calibrate now, link positive, negative and latent_image too: a calibration needs prompts of "
            "the kind you use and the size of the images"
        )
    saved = calibrate_now(wanted.model, prompts, wanted.sampler, wanted.nfe, wanted.guidance, wanted.node_id)
    if not saved.fitted.spec.usable:
        choice = choose(library(), replace(node_request, if_missing=PLAIN))
        return replace(choice, remarks=(f"calibrated now, as asked: {saved.result.text}", *choice.remarks))
    choice = choose(library(), replace(node_request, sampler=AUTO, fitted=saved.fitted))
    return replace(choice, remarks=(f"calibrated now, as asked ({missing}); {saved.text}", *choice.remarks))


def reasons_to_calibrate(choice: Choice, node_request: Request) -> list[str]:
    """Return the reasons to calibrate although an installed predictor was found; empty if there are none.

    A reason is that the predictor was fitted to another checkpoint or another guidance scale, or that the
    MODEL's checkpoint is unknown."""
    identified = choice.fitted.spec.identity.known
    unknown = (
        ["this checkpoint cannot be told from others"] if identified and not node_request.model.known else []
    )
    return unknown + mismatches(choice.fitted, node_request.model, node_request.guidance)
