"""AMED KSampler: choose the number of evaluations, the rest is found."""

import logging

from comfy_api.latest import io, ui

from ..amed.choose import AUTO, UNTRAINED, Report, choose
from .calibrate import CALIBRATE
from .choosing import cut, request
from .fitting import Prompts
from .folders import library, library_state
from .model import attached
from .predictors import SOLVERS, look_up
from .register import our_sampler
from .running import run, show_text
from .schema import schema


class AmedKSampler(io.ComfyNode):
    """MODEL, evaluations, guidance, prompts, LATENT -> LATENT."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDKSampler",
            display_name="AMED KSampler",
            search_aliases=["amed", "few steps", "fast sampler"],
            description="Sample in a handful of evaluations with a predictor fitted for this model.",
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input(
                    "predictor",
                    options=[AUTO, *library().names()],
                    default=AUTO,
                    tooltip="auto: the one on the MODEL, or the library's for this model, sampler and nfe",
                ),
                io.Combo.Input(
                    "sampler",
                    options=SOLVERS,
                    default=AUTO,
                    tooltip="auto: the predictor's own; without a predictor on the MODEL, the best there is",
                ),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
                io.Int.Input(
                    "nfe",
                    default=5,
                    min=1,
                    max=100,
                    tooltip="network evaluations, one after the other; guidance makes each cost two passes",
                ),
                io.Float.Input(
                    "guidance",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="classifier-free guidance (cfg); 1 is none and half the work",
                ),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent_image"),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="below 1: start from the given latent, on the lower part of the schedule",
                ),
                io.Combo.Input(
                    "if_missing",
                    options=["error", CALIBRATE, UNTRAINED],
                    default="error",
                    tooltip="no predictor fits: stop and say what there is, fit one first (a quick "
                    "calibration, kept for next time), or run the plain solver",
                ),
            ],
            outputs=[io.Latent.Output(), io.String.Output(display_name="report")],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        model,
        predictor,
        sampler,
        seed,
        nfe,
        guidance,
        positive,
        negative,
        latent_image,
        denoise,
        if_missing,
    ):
        node_id = cls.hidden.unique_id
        fitted = attached(model.model_options) if predictor == AUTO else library().load(predictor)
        if fitted is None:
            prompts = Prompts([positive], negative, latent_image)
            choice = look_up(model, sampler, nfe, guidance, if_missing, prompts, node_id)
        else:
            choice = choose(library(), request(model, sampler, guidance, nfe=nfe, fitted=fitted))
        report = Report(remarks=list(choice.remarks))
        samples = run(
            model,
            our_sampler(choice.sampler, predictor=choice.fitted, report=report),
            cut(choice.sigmas, model, denoise),
            seed,
            guidance,
            positive,
            negative,
            latent_image,
        )
        text = report.text()
        logging.info("AMED KSampler: %s", text.replace("\n", "; "))
        show_text(node_id, text)
        if isinstance(cls.hidden.extra_pnginfo, dict):  # what SaveImage writes into the file
            cls.hidden.extra_pnginfo.setdefault("amed", {})[str(node_id)] = text
        return io.NodeOutput(samples, text, ui=ui.PreviewText(text))

    @classmethod
    def fingerprint_inputs(cls, **_inputs):
        return library_state()


NODES = [AmedKSampler]
