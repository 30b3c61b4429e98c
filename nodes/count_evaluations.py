"""The node AMED Count Evaluations."""

from comfy_api.latest import io

from .host.counting import counting
from .schema import schema


class CountEvaluations(io.ComfyNode):
    """MODEL -> a MODEL that counts what is asked of it."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDCountEvaluations",
            display_name="AMED Count Evaluations",
            search_aliases=["amed", "nfe", "count steps"],
            description="Put before any sampler; read the count with AMED Evaluations Used after it.",
            inputs=[io.Model.Input("model", tooltip="stays as it is: a copy counts")],
            outputs=[io.Model.Output(tooltip="for any sampler, and for AMED Evaluations Used")],
        )

    @classmethod
    def execute(cls, model):
        return io.NodeOutput(counting(model))
