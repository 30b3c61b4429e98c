"""The node Apply AMED Predictor."""

from comfy_api.latest import io

from ..amed.choose import AUTO, PLAIN, choose
from .choice.fingerprint import fingerprint
from .choice.lookup import Wanted, look_up
from .host.counting import put_around
from .host.fitting import Prompts
from .host.folders import library
from .host.model import attach
from .host.outside import around
from .host.register import dropped
from .host.request import request
from .host.running import face
from .host.sampling import SCHEDULER
from .schema import SOLVERS, Predictor, cfg_input, missing_input, nfe_input, schema


class ApplyPredictor(io.ComfyNode):
    """A predictor on a MODEL, for the ordinary KSampler's amed entries."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDApplyPredictor",
            display_name="Apply AMED Predictor",
            search_aliases=["amed", "few steps", "fast sampler", "ksampler"],
            description="Put a predictor on a MODEL: the ordinary KSampler's amed... samplers then use it, "
            "and its amed schedule is the predictor's own. Without one linked, the library's for this model.",
            inputs=[
                io.Model.Input("model", tooltip="stays as it is: a copy carries the predictor"),
                Predictor.Input("predictor", optional=True, tooltip="left open: the library's for it"),
                io.Combo.Input("sampler", options=SOLVERS, default="auto", optional=True,
                               tooltip="which to look up, with no predictor linked"),
                nfe_input(2, optional=True, tooltip="evaluations to look up; a linked predictor has its own"),
                cfg_input(optional=True, tooltip="the cfg you will use; a linked predictor has its own"),
                missing_input(optional=True),
                io.Conditioning.Input("positive", optional=True, tooltip="only to calibrate now"),
                io.Conditioning.Input("negative", optional=True, tooltip="only to calibrate now"),
                io.Latent.Input("latent_image", optional=True, tooltip="only to calibrate now: its size"),
            ],
            outputs=[io.Model.Output(tooltip="for the KSampler: set it as this node says")],
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
        fitted, of = choice.fitted, choice.fitted.spec.of
        steps = fitted.spec.num_steps - (not of)
        lines = [
            f"In the KSampler: {of or choice.sampler}, {SCHEDULER}, {steps} steps, cfg {cfg:g}",
            f"{fitted.nfe} evaluations: {fitted.label}",
            *(f"note: {remark}" for remark in choice.remarks),
        ]
        carrying = attach(model, fitted, dropped(of))
        if of:
            put_around(carrying, around(fitted))
        return io.NodeOutput(carrying, ui=face(node_id, "\n".join(lines)))

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint(**inputs)
