"""The node AMED Sampler (custom)."""

from comfy_api.latest import io

from ..amed.choose import Identity, Request, choose
from .choice.fingerprint import fingerprint, listener
from .host import outside
from .host.folders import library
from .host.register import our_sampler, sampler_named
from .host.request import own_name
from .schema import SOLVERS, Predictor, missing_input, schema

ANY = Identity("", "")  # where no MODEL is at hand


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
