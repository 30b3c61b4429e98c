"""The node Apply AMED Predictor."""

from comfy_api.latest import io

from ..amed.choose import AUTO, PLAIN, choose
from .choice.fingerprint import fingerprint
from .choice.lookup import Wanted, look_up
from .host.counting import wrap_sampling
from .host.fitting import Prompts
from .host.folders import library
from .host.model import apply_predictor
from .host.outside import sampling_wrapper
from .host.register import drops_last_level
from .host.request import request
from .host.running import text_ui
from .host.sampling import SCHEDULER
from .schema import SOLVERS, Predictor, cfg_input, missing_input, nfe_input, schema


class ApplyPredictor(io.ComfyNode):
    """Apply a predictor to a MODEL, so that the amed samplers of the ordinary KSampler use it."""

    @classmethod
    def define_schema(cls):
        calibration_only = "Only needed to calibrate now"
        return schema(
            node_id="AMEDApplyPredictor",
            display_name="Apply AMED Predictor",
            search_aliases=["amed", "few steps", "fast sampler", "ksampler"],
            description="Apply a predictor (learned solver constants) to a MODEL. The ordinary KSampler's "
            "amed samplers then use it, and its amed scheduler gives the predictor's noise levels. If none "
            "is linked, the best installed predictor for this model is applied.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to apply the predictor to. The input itself is not changed."
                ),
                Predictor.Input(
                    "predictor",
                    optional=True,
                    tooltip="The predictor to apply. Not linked: the best installed one for the MODEL.",
                ),
                io.Combo.Input("sampler", options=SOLVERS, default="auto", optional=True,
                               tooltip="The sampler to find a predictor for, if none is linked. auto: the "
                                       "best predictor of any sampler."),
                nfe_input(2, optional=True, tooltip="Number of evaluations to find a predictor for, if none "
                          "is linked."),
                cfg_input(optional=True, tooltip="The guidance scale (cfg) you will sample with, to find a "
                          "predictor for, if none is linked."),
                missing_input(optional=True),
                io.Conditioning.Input("positive", optional=True,
                                      tooltip=f"{calibration_only}: a prompt of the kind you use."),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip=f"{calibration_only}: the negative prompt you use."),
                io.Latent.Input("latent_image", optional=True,
                                tooltip=f"{calibration_only}: a latent of the size you sample at."),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model with the predictor, for the KSampler. This node shows the sampler, "
                    "scheduler, steps and cfg to set there."
                )
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model,
        predictor=None,
        sampler="auto",
        nfe=8,
        guidance=5.0,
        if_missing=PLAIN,
        positive=None,
        negative=None,
        latent_image=None,
    ):
        node_id, cfg = cls.hidden.unique_id, guidance
        if predictor is None:
            prompts = Prompts([positive], negative, latent_image)
            wanted = Wanted(model, sampler, nfe, guidance, if_missing, prompts, node_id)
            choice = look_up(wanted, cls.hidden.extra_pnginfo)
        else:
            cfg = predictor.spec.guidance
            choice = choose(library(), request(model, AUTO, cfg, fitted=predictor, of=predictor.spec.of))
        fitted, host_sampler = choice.fitted, choice.fitted.spec.of
        steps = fitted.spec.num_steps - (not host_sampler)
        lines = [
            f"In the KSampler: {host_sampler or choice.sampler}, {SCHEDULER}, {steps} steps, cfg {cfg:g}",
            f"{fitted.nfe} evaluations: {fitted.label}",
            *(f"note: {remark}" for remark in choice.remarks),
        ]
        applied = apply_predictor(model, fitted, drops_last_level(host_sampler))
        if host_sampler:
            wrap_sampling(applied, sampling_wrapper(fitted))
        return io.NodeOutput(applied, ui=text_ui(node_id, "\n".join(lines)))

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint(**inputs)
