"""The node AMED Evaluations Used."""

from comfy_api.latest import io

from .host.counting import Tally, count_of, read_count, tally_before
from .host.running import executing, text_ui
from .schema import schema


class EvaluationsUsed(io.ComfyNode):
    """Show how many evaluations the node that sampled a LATENT used.

    The LATENT is passed through, so that this node runs after the sampling."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDEvaluationsUsed",
            display_name="AMED Evaluations Used",
            search_aliases=["amed", "nfe", "count steps"],
            description="Show how many evaluations the sampler before this node used, counted at the "
            "network.",
            inputs=[
                io.Model.Input("model", tooltip="The model from AMED Count Evaluations."),
                io.Latent.Input(
                    "samples", tooltip="The output of the sampler whose evaluations are counted."
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="The input samples, unchanged."),
                io.Int.Output(
                    display_name="evaluations",
                    tooltip="Number of evaluations of the model. With guidance, both prompts count as one.",
                ),
                io.Int.Output(
                    display_name="rows",
                    tooltip="Number of images that passed through the network. Guidance doubles it.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, samples):
        count, now = count_of(model), executing()
        if now is None:  # this ComfyUI does not tell which node runs
            tally = Tally(*read_count(model))
        else:
            tally = tally_before(count.name, cls.hidden.dynprompt, now.node, now.item)
        text = f"{tally.evaluations} evaluations, {tally.rows} rows through the network"
        return io.NodeOutput(samples, tally.evaluations, tally.rows, ui=text_ui(cls.hidden.unique_id, text))
