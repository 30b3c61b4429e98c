"""AMED KSampler: choose the number of evaluations, the rest is found."""

import logging

from comfy_api.latest import io, ui

from ..amed import Fitted, PredictorError
from . import host
from .predictors import SOLVERS, asked, cut
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
                    options=["error", "untrained"],
                    default="error",
                    tooltip="no predictor fits: stop and say what there is, or run the plain solver",
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
        fitted = choose(model, predictor, sampler, nfe, guidance, if_missing, report)
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


def choose(model: object, name: str, sampler: str, nfe: int, guidance: float, if_missing: str,
           report: host.Report) -> Fitted:
    """The predictor to run: the named file, or the one on the MODEL, or the library's, or the untrained
    solver.

    Raises ValueError or PredictorError where these do not agree with sampler and nfe."""
    carried = host.attached(model)
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
    solver, order = asked(sampler)
    try:
        return host.find(host.identity(model), solver, nfe, guidance, order)
    except PredictorError as error:
        if if_missing != "untrained":
            raise
        report.remarks.append(f"untrained, as asked: {str(error).splitlines()[0]}")
        return plain(model, sampler if sampler != AUTO else "amed", nfe)


def plain(model: object, sampler: str, nfe: int) -> Fitted:
    """The untrained solver at `nfe` evaluations, with the analytic first step if nfe is odd.

    Raises ValueError for a number the solver cannot take."""
    model_sampling = host.sampling_of(model)
    flow = host.is_flow(model_sampling)
    if sampler == "amed_multistep":
        return host.untrained(sampler, host.base_times(model_sampling, nfe + 1))
    if nfe < 2 - (not flow) or (flow and nfe % 2):
        raise ValueError(f"the untrained {sampler} cannot take {nfe} evaluations on this model: set nfe to "
                         f"{'an even number' if flow else 'at least 1'}")
    times = host.base_times(model_sampling, (nfe + 1) // 2 + 1)
    return host.untrained(sampler, times, afs=nfe % 2 == 1)


NODES = [AmedKSampler]
