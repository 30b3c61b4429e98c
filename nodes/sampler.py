"""The node AMED Sampler (custom)."""

from comfy_api.latest import io

from ..amed.choose import Identity, Request, choose
from .choice.fingerprint import fingerprint, remember_later
from .host import outside
from .host.folders import library
from .host.register import amed_sampler, sampler_by_name
from .host.request import sampler_for
from .schema import DEFAULT_PREDICTOR, SOLVERS, Predictor, missing_input, schema

UNKNOWN = Identity("", "")  # this node has no MODEL


class AmedSampler(io.ComfyNode):
    """Make a SAMPLER that runs a predictor, for SamplerCustom and SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDSampler",
            display_name="AMED Sampler (custom)",
            search_aliases=["amed", "few steps", "SAMPLER"],
            description="A SAMPLER that runs an AMED predictor. Use it with AMED Scheduler.",
            inputs=[
                io.Combo.Input(
                    "sampler",
                    options=SOLVERS,
                    tooltip="The sampler to run. auto: the one that the predictor was fitted for.",
                ),
                missing_input(calibrate=False),
                Predictor.Input("predictor", optional=True, tooltip=DEFAULT_PREDICTOR),
                io.Sampler.Input(
                    "wrapped",
                    optional=True,
                    tooltip="The SAMPLER that the predictor was fitted to. Only needed if that SAMPLER is "
                    "from another pack.",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    tooltip="The sampler with its predictor, for SamplerCustom and SamplerCustomAdvanced."
                )
            ],
        )

    @classmethod
    def execute(cls, sampler, if_missing, predictor=None, wrapped=None):
        if predictor is not None and predictor.spec.of:
            inner = sampler_by_name(predictor.spec.of) if wrapped is None else wrapped
            return io.NodeOutput(outside.wrapped(inner, predictor))
        if predictor is not None:  # also checked during the run; here a wrong predictor is refused at once
            check = Request(UNKNOWN, sampler_for(predictor, sampler), fitted=predictor)
            sampler = choose(library(), check).sampler
        on_request = remember_later() if predictor is None else None
        options = {"predictor": predictor, "if_missing": if_missing, "on_request": on_request}
        return io.NodeOutput(amed_sampler(sampler, **options))

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint(**inputs)
