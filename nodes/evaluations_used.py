"""The node AMED Evaluations Used."""

from comfy_api.latest import io

from .host.counting import Tally, count_of, read_count, used
from .host.running import executing, face
from .schema import schema


class EvaluationsUsed(io.ComfyNode):
    """The count of the node that made a LATENT, which goes through, so that it is read after sampling."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDEvaluationsUsed",
            display_name="AMED Evaluations Used",
            search_aliases=["amed", "nfe", "count steps"],
            description="How many evaluations the sampler before it took, counted around the network.",
            inputs=[
                io.Model.Input("model", tooltip="from AMED Count Evaluations"),
                io.Latent.Input("samples", tooltip="of the sampler that is counted"),
            ],
            outputs=[
                io.Latent.Output(tooltip="the same samples"),
                io.Int.Output(display_name="evaluations", tooltip="one after the other"),
                io.Int.Output(
                    display_name="rows", tooltip="images through the network; guidance doubles them"
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, samples):
        count, now = count_of(model), executing()
        if now is None:  # a host that does not say which node runs
            tally = Tally(*read_count(model))
        else:
            tally = used(count.name, cls.hidden.dynprompt, now.node, now.item)
        text = f"{tally.evaluations} evaluations, {tally.rows} rows through the network"
        return io.NodeOutput(samples, tally.evaluations, tally.rows, ui=face(cls.hidden.unique_id, text))
