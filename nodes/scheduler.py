"""The node AMED Scheduler (custom)."""

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..amed.choose import AUTO, PLAIN, choose
from .choice.fingerprint import fingerprint, remember
from .host.folders import library
from .host.graph import guidance_after
from .host.model import attached
from .host.request import cut, request
from .host.running import executing_node, face, running_prompt
from .schema import SOLVERS, Predictor, cfg_input, denoise_input, nfe_input, schema


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
