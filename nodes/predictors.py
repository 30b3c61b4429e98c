"""The modular nodes: load a predictor, put it on a MODEL, make a SAMPLER and SIGMAS of it."""

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..amed import SAMPLERS
from ..amed.choose import AUTO, PLAIN, Identity, Request, choose
from ..amed.files.code import from_code
from . import outside
from .carry import carried_or, carry, named
from .choosing import cut, own_name, request
from .counting import put_around
from .fitting import Prompts
from .folders import content, library
from .graph import guidance_after
from .lookup import Wanted, look_up
from .model import attach, attached
from .outside import around
from .recall import carried_code, fingerprint, listener, remember
from .register import dropped, our_sampler, sampler_named
from .running import executing_node, face, running_prompt
from .sampling import SCHEDULER
from .schema import Predictor, cfg_input, denoise_input, missing_input, nfe_input, schema

SOLVERS = [AUTO, *SAMPLERS]
ANY = Identity("", "")  # where no MODEL is at hand


class LoadPredictor(io.ComfyNode):
    """A predictor file, from models/amed_predictors or the bundled ones, or one pasted as a text."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDLoadPredictor",
            display_name="Load AMED Predictor",
            search_aliases=["amed", "few steps", "open predictor"],
            description="Load a fitted AMED predictor from models/amed_predictors or the pack's own.",
            inputs=[
                io.Combo.Input("name", options=library().names(), tooltip="the predictor file"),
                io.String.Input("code", default="", multiline=True, optional=True,
                                tooltip="a predictor's code, from AMED Predictor Info: in place of the file"),
            ],
            outputs=[Predictor.Output(display_name="predictor", tooltip="for AMED Sampler and Apply")],
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
        return io.NodeOutput(fitted, ui=face(cls.hidden.unique_id, "\n".join([fitted.label, *said])))

    @classmethod
    def validate_inputs(cls, name):
        return True  # a workflow from elsewhere may name a file that is not here: `named` says so, in words

    @classmethod
    def fingerprint_inputs(cls, name, code=""):
        if (code or "").strip():
            return ""
        return content(name) + carried_code(running_prompt()[1], executing_node() or "")


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


class AmedSampler(io.ComfyNode):
    """SAMPLER, for SamplerCustom and SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDSampler",
            display_name="AMED Sampler (custom)",
            search_aliases=["amed", "few steps", "SAMPLER"],
            description="A SAMPLER that runs an AMED predictor. Pair it with AMED Scheduler.",
            inputs=[
                io.Combo.Input(
                    "sampler",
                    options=SOLVERS,
                    tooltip="auto: the predictor's own; without one, the best there is for the MODEL",
                ),
                missing_input(calibrate=False),
                Predictor.Input(
                    "predictor",
                    optional=True,
                    tooltip="left open: the one applied to the MODEL, or the library's for it",
                ),
                io.Sampler.Input(
                    "wrapped",
                    optional=True,
                    tooltip="for a predictor fitted to another pack's sampler: that SAMPLER",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="for SamplerCustom and SamplerCustomAdvanced")],
        )

    @classmethod
    def execute(cls, sampler, if_missing, predictor=None, wrapped=None):
        if predictor is not None and predictor.spec.of:
            own = sampler_named(predictor.spec.of) if wrapped is None else wrapped
            return io.NodeOutput(outside.wrapped(own, predictor))
        if predictor is not None:  # here and not only in the run, so that a wrong one is refused at once
            asked = Request(ANY, own_name(sampler, predictor), fitted=predictor)
            sampler = choose(library(), asked).sampler
        asked = listener() if predictor is None else None
        return io.NodeOutput(our_sampler(sampler, predictor=predictor, if_missing=if_missing, asked=asked))

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint(**inputs)


class AmedScheduler(io.ComfyNode):
    """SIGMAS a predictor was fitted on."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDScheduler",
            display_name="AMED Scheduler (custom)",
            search_aliases=["amed", "schedule", "sigmas", "few steps"],
            description="The noise levels a predictor was fitted on.",
            inputs=[
                io.Model.Input("model", tooltip="the one that is sampled"),
                io.Combo.Input(
                    "sampler",
                    options=SOLVERS,
                    tooltip="for which sampler to look up a predictor; auto: the best there is",
                ),
                nfe_input(tooltip="evaluations: which predictor to look up; a linked one has its own"),
                denoise_input(),
                Predictor.Input(
                    "predictor",
                    optional=True,
                    tooltip="left open: the one applied to the MODEL, or the library's for it",
                ),
                cfg_input(
                    optional=True,
                    default=0.0,
                    tooltip="the cfg you sample with; 0: that of the node these sigmas are linked to",
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="for SamplerCustom and SamplerCustomAdvanced")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, sampler, nfe, denoise, predictor=None, guidance=0.0):
        predictor = predictor or attached(model.model_options)
        if predictor is None:
            cfg = guidance or sampled_at(cls.hidden.unique_id)
            # without an analytic first step, which AMED Sampler could not know of
            asked = replace(request(model, sampler, cfg, nfe=nfe, if_missing=PLAIN), afs=False)
            remember(asked)
        else:
            guidance, of = predictor.spec.guidance, predictor.spec.of
            asked = request(model, AUTO, guidance, fitted=predictor, of=of)
        choice = choose(library(), asked)
        sigmas = cut(choice.sigmas, model, denoise)
        sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]) if choice.fitted.spec.of else sigmas
        text = "\n".join([choice.fitted.label, *(f"note: {remark}" for remark in choice.remarks)])
        return io.NodeOutput(sigmas, ui=face(cls.hidden.unique_id, text))

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint(also=f"{sampled_at(executing_node() or ''):g}", **inputs)


def sampled_at(node: str) -> float:
    """The guidance scale that a node's SIGMAS are sampled at, by the graph that runs; 1 where it does not
    say."""
    found = guidance_after(running_prompt()[0], node)
    return 1.0 if found is None else found


NODES = [LoadPredictor, ApplyPredictor, AmedSampler, AmedScheduler]
