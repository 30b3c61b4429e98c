"""The node AMED Scheduler (custom)."""

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..amed.choose import AUTO, PLAIN, choose, preferred
from .choice.fingerprint import fingerprint, remember
from .host.folders import library
from .host.graph import guidance_after
from .host.model import applied_predictor
from .host.request import below_denoise, request
from .host.running import executing_node, running_prompt, text_ui
from .schema import DEFAULT_PREDICTOR, SOLVERS, Predictor, cfg_input, denoise_input, nfe_input, schema


class AmedScheduler(io.ComfyNode):
    """Return the noise levels that a predictor was fitted on, as SIGMAS."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDScheduler",
            display_name="AMED Scheduler (custom)",
            search_aliases=["amed", "schedule", "sigmas", "few steps"],
            description="The noise levels that an AMED predictor was fitted on, for AMED Sampler.",
            inputs=[
                io.Model.Input("model", tooltip="The model that is sampled."),
                io.Combo.Input(
                    "sampler",
                    options=SOLVERS,
                    tooltip="The sampler to find a predictor for. Ignored if a predictor is linked, or if "
                    "Apply AMED Predictor gave the MODEL one. auto: the best predictor of any sampler.",
                ),
                nfe_input(
                    tooltip="Number of evaluations to find a predictor for. Ignored if a predictor is "
                    "linked, or if Apply AMED Predictor gave the MODEL one."
                ),
                denoise_input(),
                Predictor.Input("predictor", optional=True, tooltip=DEFAULT_PREDICTOR),
                cfg_input(
                    optional=True,
                    default=0.0,
                    tooltip="The guidance scale (cfg) you sample with, to find a predictor for. 0: that of "
                    "the node to which these sigmas are linked.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(tooltip="The noise levels, for SamplerCustom and SamplerCustomAdvanced.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, sampler, nfe, denoise, predictor=None, guidance=0.0):
        def choice_with(fitted):
            spec = fitted.spec
            return choose(library(), request(model, AUTO, spec.guidance, fitted=fitted, of=spec.of))

        def from_library():
            cfg = guidance or sampled_at(cls.hidden.unique_id)
            # without an analytic first step, which AMED Sampler could not know of
            wanted = replace(request(model, sampler, cfg, nfe=nfe, if_missing=PLAIN), afs=False)
            remember(wanted)
            return choose(library(), wanted)

        applied = applied_predictor(model.model_options)
        choice, _ = preferred(choice_with, from_library, named=predictor, attached=applied)
        sigmas = below_denoise(choice.sigmas, model, denoise)
        sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]) if choice.fitted.spec.of else sigmas
        text = "\n".join([choice.fitted.label, *(f"note: {remark}" for remark in choice.remarks)])
        return io.NodeOutput(sigmas, ui=text_ui(cls.hidden.unique_id, text))

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint(also=f"{sampled_at(executing_node() or ''):g}", **inputs)


def sampled_at(node: str) -> float:
    """Return the guidance scale (cfg) of the sampling node that uses this node's SIGMAS; 1 if unknown."""
    guidance = guidance_after(running_prompt()[0], node)
    return 1.0 if guidance is None else guidance
