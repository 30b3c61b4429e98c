"""The node AMED KSampler."""

import logging

from comfy_api.latest import io

from ..amed.choose import AUTO, PLAIN, Report, choose, preferred
from .choice.fingerprint import fingerprint
from .choice.lookup import Wanted, look_up
from .choice.workflow import carried_predictor, load_named, write_predictor, write_report
from .host.fitting import Prompts
from .host.folders import library
from .host.model import applied_predictor, identity
from .host.register import amed_sampler
from .host.request import below_denoise, denoise_remarks, request
from .host.running import run, text_ui
from .host.sampling import add_remarks
from .schema import SOLVERS, cfg_input, denoise_input, missing_input, nfe_input, schema


class AmedKSampler(io.ComfyNode):
    """Sample a LATENT in a given number of evaluations, with the best predictor for the MODEL."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDKSampler",
            display_name="AMED KSampler (fast, few steps)",
            search_aliases=["amed", "ksampler", "fast sampler", "few steps", "turbo", "low steps", "speed"],
            description="Sample in a handful of evaluations with a predictor (learned solver constants) "
            "fitted to this model.",
            inputs=[
                io.Model.Input("model", tooltip="Your checkpoint, with its LoRAs and patches."),
                io.Combo.Input(
                    "predictor",
                    options=[AUTO, *library().names()],
                    default=AUTO,
                    tooltip="The predictor file to use. auto: the predictor applied to the MODEL, else the "
                    "best installed one for this model, sampler and nfe.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=SOLVERS,
                    default=AUTO,
                    tooltip="The sampler to run. auto: the one that the predictor was fitted for.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise. The same seed gives the same image.",
                ),
                nfe_input(),
                cfg_input(),
                io.Conditioning.Input("positive", tooltip="The prompt: what you want to see."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="The negative prompt: what you do not want to see. Not used at guidance 1.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="An empty latent of the image's size, or an image to change (img2img).",
                ),
                denoise_input(),
                missing_input(),
            ],
            outputs=[
                io.Latent.Output(tooltip="The sampled latent, for VAE Decode."),
                io.String.Output(
                    display_name="report",
                    tooltip="Which predictor ran, and the counted evaluations and network passes.",
                ),
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

        def choice_with(fitted):
            return choose(library(), request(model, sampler, guidance, nfe=nfe, fitted=fitted))

        def choice_with_nfe(n):
            if_unfitted = PLAIN if if_missing == PLAIN else "error"
            return choose(library(), request(model, sampler, guidance, nfe=n, if_missing=if_unfitted))

        def from_library():
            prompts = Prompts([positive], negative, latent_image)
            return look_up(Wanted(model, sampler, nfe, guidance, if_missing, prompts, node_id), png)

        sources = {"attached": applied_predictor(model.model_options)}
        if predictor != AUTO:
            widgets, model_identity = {"predictor": predictor, "nfe": nfe}, identity(model)
            sources["named"] = lambda: load_named(predictor)
            sources["carried"] = lambda: carried_predictor(png, node_id, widgets, model_identity)
        choice, remarks = preferred(choice_with, from_library, **sources)
        if predictor != AUTO:
            write_predictor(png, node_id, widgets, choice.fitted, model_identity)
        report = Report(remarks=[*remarks, *choice.remarks])
        samples = run(
            model,
            amed_sampler(choice.sampler, predictor=choice.fitted, report=report),
            below_denoise(choice.sigmas, model, denoise),
            seed,
            guidance,
            positive,
            negative,
            latent_image,
        )
        is_free = predictor == AUTO and sources["attached"] is None
        add_remarks(
            report,
            *denoise_remarks(nfe, denoise, report.evaluations, choice_with_nfe if is_free else None, model),
        )
        text = report.text()
        logging.info("AMED KSampler: %s", text.replace("\n", "; "))
        write_report(png, node_id, report, guidance)
        return io.NodeOutput(samples, text, ui=text_ui(node_id, text))

    @classmethod
    def validate_inputs(cls, predictor):
        return True  # for a file that is not in the list, load_named gives a better message than ComfyUI

    @classmethod
    def fingerprint_inputs(cls, predictor, **inputs):
        return fingerprint("" if predictor == AUTO else predictor, predictor=predictor, **inputs)
