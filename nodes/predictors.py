"""The modular nodes: load a predictor, put it on a MODEL, make a SAMPLER and SIGMAS of it."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui

from ..amed import SAMPLERS, PredictorError
from ..amed.choose import AUTO, UNTRAINED, Choice, Identity, Request, choose
from ..amed.files.code import from_code
from .calibrate import CALIBRATE, calibrate_now
from .carry import carried_or, carry, named
from .choosing import cut, own_name, request
from .fitting import Prompts
from .folders import library, library_state
from .model import attach, attached
from .register import our_sampler
from .sampling import SCHEDULER
from .schema import Predictor, schema

SOLVERS = [AUTO, *SAMPLERS]
ANY = Identity("", "")  # where no MODEL is at hand


class LoadPredictor(io.ComfyNode):
    """A predictor file, from models/amed_predictors or the bundled ones, or one pasted as a text."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDLoadPredictor",
            display_name="Load AMED Predictor",
            search_aliases=["amed"],
            description="Load a fitted AMED predictor from models/amed_predictors or the pack's own.",
            inputs=[
                io.Combo.Input("name", options=library().names(), tooltip="the predictor file"),
                io.String.Input("code", default="", multiline=True, optional=True,
                                tooltip="a predictor's code, from AMED Predictor Info: in place of the file"),
            ],
            outputs=[Predictor.Output(display_name="predictor")],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(cls, name, code=""):
        if code.strip():
            fitted, said = from_code(code, "pasted"), ""
        else:
            png, node_id, widgets = cls.hidden.extra_pnginfo, cls.hidden.unique_id, {"name": name}
            fitted, said = carried_or(png, node_id, widgets, None, lambda own: own, lambda: named(name))
            carry(png, node_id, widgets, fitted)
        return io.NodeOutput(fitted, ui=ui.PreviewText("\n".join([fitted.label, *said])))

    @classmethod
    def validate_inputs(cls, name):
        return True  # a workflow from elsewhere may name a file that is not here: `named` says so, in words

    @classmethod
    def fingerprint_inputs(cls, **_inputs):
        return library_state()


class ApplyPredictor(io.ComfyNode):
    """A predictor on a MODEL, for the ordinary KSampler's amed entries."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDApplyPredictor",
            display_name="Apply AMED Predictor",
            description="Put a predictor on a MODEL: the ordinary KSampler's amed... samplers then use it, "
            "and its amed schedule is the predictor's own. Without one linked, the library's for this model.",
            inputs=[
                io.Model.Input("model"),
                Predictor.Input("predictor", optional=True, tooltip="left open: the library's for it"),
                io.Combo.Input("sampler", options=SOLVERS, default="auto", optional=True,
                               tooltip="which to look up, with no predictor linked"),
                io.Int.Input("nfe", default=5, min=2, max=100, optional=True,
                             tooltip="evaluations to look up, with no predictor linked"),
                io.Float.Input("guidance", default=1.0, min=0.0, max=100.0, step=0.1, optional=True,
                               tooltip="the cfg you will sample with, with no predictor linked"),
                io.Combo.Input("if_missing", options=["error", CALIBRATE, UNTRAINED], default="error",
                               optional=True, tooltip="when the library has none for this model"),
                io.Conditioning.Input("positive", optional=True, tooltip="only to calibrate now"),
                io.Conditioning.Input("negative", optional=True, tooltip="only to calibrate now"),
                io.Latent.Input("latent_image", optional=True, tooltip="only to calibrate now: its size"),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model,
        predictor=None,
        sampler="auto",
        nfe=5,
        guidance=1.0,
        if_missing="error",
        positive=None,
        negative=None,
        latent_image=None,
    ):
        if predictor is None:
            prompts = Prompts([positive], negative, latent_image)
            choice = look_up(model, sampler, nfe, guidance, if_missing, prompts, cls.hidden.unique_id)
        else:
            choice = choose(library(), request(model, AUTO, predictor.spec.guidance, fitted=predictor))
        fitted = choice.fitted
        lines = [
            fitted.label,
            f"KSampler: sampler {choice.sampler}, scheduler {SCHEDULER}, steps {fitted.spec.num_steps - 1}, "
            f"cfg {fitted.spec.guidance:g}: {fitted.nfe} evaluations",
            *(f"note: {remark}" for remark in choice.remarks),
        ]
        return io.NodeOutput(attach(model, fitted), ui=ui.PreviewText("\n".join(lines)))

    @classmethod
    def fingerprint_inputs(cls, **_inputs):
        return library_state()


def look_up(
    model: Any,
    sampler: str,
    nfe: int,
    guidance: float,
    if_missing: str,
    prompts: Prompts,
    node_id: str | None,
) -> Choice:
    """The library's predictor for a MODEL, or by `if_missing` one calibrated now, or the untrained solver. A
    calibration is for this very checkpoint and guidance: where it is asked for, a predictor for others does
    not count as found.

    Raises PredictorError where there is none, ValueError where a calibration lacks what it needs."""
    asked = request(model, sampler, guidance, nfe=nfe, if_missing=if_missing)
    if if_missing != CALIBRATE:
        return choose(library(), asked)
    try:
        choice = choose(library(), asked)
        if not choice.remarks:
            return choice
        missing = "; ".join(choice.remarks)
    except PredictorError as error:
        missing = str(error).splitlines()[0]
    if any(v is None for v in (prompts.positives[0], prompts.negative, prompts.latent)):
        raise ValueError(
            "to calibrate now, link positive, negative and latent_image too: the fit needs prompts of the "
            "kind you use and the size of the images"
        )
    kept = calibrate_now(model, prompts, sampler, nfe, guidance, node_id)
    choice = choose(library(), replace(asked, sampler=AUTO, fitted=kept.fitted))
    return replace(choice, remarks=(f"calibrated now, as asked ({missing}); {kept.text}", *choice.remarks))


class AmedSampler(io.ComfyNode):
    """SAMPLER, for SamplerCustom and SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDSampler",
            display_name="AMED Sampler",
            description="A SAMPLER that runs an AMED predictor. Pair it with AMED Scheduler.",
            inputs=[
                io.Combo.Input(
                    "sampler",
                    options=SOLVERS,
                    tooltip="auto: the predictor's own; without one, the best there is for the MODEL",
                ),
                io.Combo.Input(
                    "if_missing",
                    options=["error", UNTRAINED],
                    tooltip="when there is no predictor for the model: stop, or run the plain solver",
                ),
                Predictor.Input(
                    "predictor",
                    optional=True,
                    tooltip="left open: the one applied to the MODEL, or the library's for it",
                ),
            ],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, sampler, if_missing, predictor=None):
        if predictor is not None:  # here and not only in the run, so that a wrong one is refused at once
            asked = Request(ANY, own_name(sampler, predictor), fitted=predictor)
            sampler = choose(library(), asked).sampler
        return io.NodeOutput(our_sampler(sampler, predictor=predictor, if_missing=if_missing))

    @classmethod
    def fingerprint_inputs(cls, **_inputs):
        return library_state()


class AmedScheduler(io.ComfyNode):
    """SIGMAS a predictor was fitted on."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDScheduler",
            display_name="AMED Scheduler",
            description="The noise levels a predictor was fitted on.",
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input(
                    "sampler",
                    options=SOLVERS,
                    tooltip="for which sampler to look up a predictor; auto: the best there is",
                ),
                io.Int.Input(
                    "nfe",
                    default=5,
                    min=1,
                    max=100,
                    tooltip="evaluations: which predictor to look up. Unused with a predictor linked",
                ),
                io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01),
                Predictor.Input(
                    "predictor",
                    optional=True,
                    tooltip="left open: the one applied to the MODEL, or the library's for it",
                ),
            ],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, model, sampler, nfe, denoise, predictor=None):
        predictor = predictor or attached(model.model_options)
        if predictor is None:
            asked = request(model, sampler, 1.0, nfe=nfe)
        else:
            asked = request(model, AUTO, predictor.spec.guidance, fitted=predictor)
        choice = choose(library(), asked)
        return io.NodeOutput(cut(choice.sigmas, model, denoise), ui=ui.PreviewText(choice.fitted.label))

    @classmethod
    def fingerprint_inputs(cls, **_inputs):
        return library_state()


NODES = [LoadPredictor, ApplyPredictor, AmedSampler, AmedScheduler]
