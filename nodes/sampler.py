"""AMED KSampler: choose the number of evaluations, the rest is found."""

import logging

from comfy_api.latest import io, ui

from ..amed import Fitted
from . import host
from .calibrate import CALIBRATE, Job
from .predictors import SOLVERS, cut, look_up
from .schema import schema

AUTO = "auto"


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
                    options=[AUTO, *host.library().names()],
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
                    options=["error", CALIBRATE, "untrained"],
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
        report = host.Report()
        job = Job([positive], negative, latent_image, sampler, (nfe,), guidance, "quick", 0, "auto")
        fitted = choose(model, predictor, job, if_missing, report, cls.hidden.unique_id)
        samples = host.run(
            model,
            host.sampler_object(host.sampler_for(fitted), predictor=fitted, report=report),
            cut(fitted.sigmas(), model, denoise),
            seed,
            guidance,
            positive,
            negative,
            latent_image,
        )
        text = report.text()
        logging.info("AMED KSampler: %s", text.replace("\n", "; "))
        host.show_text(cls.hidden.unique_id, text)
        if isinstance(cls.hidden.extra_pnginfo, dict):  # what SaveImage writes into the file
            cls.hidden.extra_pnginfo.setdefault("amed", {})[str(cls.hidden.unique_id)] = text
        return io.NodeOutput(samples, text, ui=ui.PreviewText(text))

    @classmethod
    def fingerprint_inputs(cls, **_inputs):
        return host.library_state()


def choose(
    model: object, name: str, job: Job, if_missing: str, report: host.Report, node_id: str | None
) -> Fitted:
    """The predictor to run: the named file, or the one on the MODEL, or what `look_up` gives.

    Raises ValueError or PredictorError where these do not agree with sampler and nfe."""
    carried, sampler, (nfe,) = host.attached(model), job.sampler, job.nfe
    if name != AUTO or carried is not None:
        fitted = host.library().load(name) if name != AUTO else carried
        if sampler not in (AUTO, host.sampler_for(fitted)):
            raise ValueError(
                f"{fitted.label} was fitted for {host.sampler_for(fitted)}, not for {sampler}: set sampler "
                "to auto, or choose another predictor"
            )
        if fitted.nfe != nfe:
            raise ValueError(
                f"{fitted.label} takes {fitted.nfe} evaluations, not {nfe}: set nfe to {fitted.nfe}, or "
                "choose another predictor"
            )
        return fitted
    return look_up(model, job, if_missing, report, node_id)


NODES = [AmedKSampler]
