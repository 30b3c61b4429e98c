"""AMED KSampler: choose the number of evaluations, the rest is found."""

import logging

from comfy_api.latest import io

from ..amed.choose import AUTO, Report, choose
from .choice.fingerprint import fingerprint
from .choice.lookup import Wanted, look_up
from .choice.workflow import carried_or, carry, named, noted
from .host.fitting import Prompts
from .host.folders import library
from .host.model import attached, identity
from .host.register import our_sampler
from .host.request import cut, cut_short, request
from .host.running import face, run
from .host.sampling import note
from .schema import SOLVERS, cfg_input, denoise_input, missing_input, nfe_input, schema


class AmedKSampler(io.ComfyNode):
    """MODEL, evaluations, guidance, prompts, LATENT -> LATENT."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDKSampler",
            display_name="AMED KSampler (fast, few steps)",
            search_aliases=["amed", "ksampler", "fast sampler", "few steps", "turbo", "low steps", "speed"],
            description="Sample in a handful of evaluations with a predictor fitted for this model.",
            inputs=[
                io.Model.Input("model", tooltip="your checkpoint, with its LoRAs and patches"),
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
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="of the noise; the same seed gives the same image",
                ),
                nfe_input(),
                cfg_input(),
                io.Conditioning.Input("positive", tooltip="what you want to see"),
                io.Conditioning.Input("negative", tooltip="what you do not; unused at guidance 1"),
                io.Latent.Input("latent_image", tooltip="an empty one for its size, or one to change"),
                denoise_input(),
                missing_input(),
            ],
            outputs=[
                io.Latent.Output(tooltip="for VAE Decode"),
                io.String.Output(display_name="report", tooltip="what ran, and what it took, counted"),
            ],
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
        node_id, png = cls.hidden.unique_id, cls.hidden.extra_pnginfo

        def with_this(fitted):
            return choose(library(), request(model, sampler, guidance, nfe=nfe, fitted=fitted))

        own, said = attached(model.model_options), []
        if predictor != AUTO:
            widgets, who = {"predictor": predictor, "nfe": nfe}, identity(model)
            choice, said = carried_or(
                png, node_id, widgets, who, with_this, lambda: with_this(named(predictor))
            )
            carry(png, node_id, widgets, choice.fitted, who)
        elif own is not None:
            choice = with_this(own)
        else:
            prompts = Prompts([positive], negative, latent_image)
            wanted = Wanted(model, sampler, nfe, guidance, if_missing, prompts, node_id)
            choice = look_up(wanted, png)
        report = Report(remarks=[*said, *choice.remarks])
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
        note(report, *cut_short(nfe, denoise, report.evaluations))
        text = report.text()
        logging.info("AMED KSampler: %s", text.replace("\n", "; "))
        noted(png, node_id, report, guidance)
        return io.NodeOutput(samples, text, ui=face(node_id, text))

    @classmethod
    def validate_inputs(cls, predictor):
        return True  # a workflow from elsewhere may name a file that is not here: `named` says so, in words

    @classmethod
    def fingerprint_inputs(cls, predictor, **inputs):
        return fingerprint("" if predictor == AUTO else predictor, predictor=predictor, **inputs)
