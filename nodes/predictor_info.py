"""The node AMED Predictor Info."""

from collections.abc import Iterator

from comfy_api.latest import io
from torch import Tensor

from ..amed.files.code import code_of
from ..amed.files.description import describe
from ..pictures import report
from ..pictures.parts import names_of, trimmed
from .host.running import text_ui
from .schema import Predictor, schema


def part_weights(parts: str, weights: Tensor) -> Iterator[tuple[str, list[float]]]:
    """Yield the name of each part of the slopes (dx/dsigma), and the weights of one step on that part.

    Args:
        parts: what each slope is split into, e.g. "bands" (of spatial frequency); "": not split.
        weights: the step's weights on the latest slopes and their parts `[slopes, parts]`, newest first."""
    return zip(names_of(parts, weights.shape[-1]), map(trimmed, weights.T.tolist()))


class PredictorInfo(io.ComfyNode):
    """Describe a predictor as text and as a plot, and return it as text to paste into Load AMED Predictor."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDPredictorInfo",
            display_name="AMED Predictor Info",
            search_aliases=["amed", "inspect", "share predictor"],
            description="Show what a predictor is for, how it was made, its measured errors and its "
            "constants.",
            inputs=[
                Predictor.Input(
                    "predictor", tooltip="The predictor, from Load AMED Predictor or Calibrate AMED."
                )
            ],
            outputs=[
                io.String.Output(
                    display_name="text", tooltip="The header of the predictor's file, then its constants."
                ),
                io.Image.Output(
                    display_name="plot", tooltip="The predictor's constants plotted over the noise levels."
                ),
                io.String.Output(
                    display_name="code",
                    tooltip="The predictor as text, to paste into Load AMED Predictor on another computer.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, predictor):
        text = describe(predictor, part_weights)
        plot = report.as_image(report.constants(predictor))
        return io.NodeOutput(text, plot, code_of(predictor), ui=text_ui(cls.hidden.unique_id, text))
