"""The node AMED Count Evaluations."""

from comfy_api.latest import io

from .host.counting import counting
from .schema import schema


class CountEvaluations(io.ComfyNode):
    """Return a copy of a MODEL that counts its evaluations."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDCountEvaluations",
            display_name="AMED Count Evaluations",
            search_aliases=["amed", "nfe", "count steps"],
            description="Count the evaluations of any sampler: put this node before the sampler, and AMED "
            "Evaluations Used after it to read the count.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model whose evaluations are counted. The input itself is not changed.",
                )
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The counting model. Link it to the sampler and to AMED Evaluations Used."
                )
            ],
        )

    @classmethod
    def execute(cls, model):
        return io.NodeOutput(counting(model))
