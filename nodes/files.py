"""AMED Predictor Info and Save AMED Predictor."""

from collections.abc import Iterator

from comfy_api.latest import io
from torch import Tensor

from ..amed import save
from ..amed.files.code import code_of
from ..amed.files.description import describe
from ..amed.files.names import file_name
from ..hosts import report
from ..hosts.parts import names_of, trimmed
from .folders import user_folder
from .running import face
from .schema import Predictor, schema


def part_weights(parts: str, weights: Tensor) -> Iterator[tuple[str, list[float]]]:
    """Yield the name and the weights of each part of a slope, from a row's weights `[slopes, parts]`."""
    return zip(names_of(parts, weights.shape[-1]), map(trimmed, weights.T.tolist()))


class PredictorInfo(io.ComfyNode):
    """AMED_PREDICTOR -> text, picture, and itself as a text to paste."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDPredictorInfo",
            display_name="AMED Predictor Info",
            search_aliases=["amed", "inspect", "share predictor"],
            description="What a predictor is for, how it was made and measured, and its constants.",
            inputs=[Predictor.Input("predictor", tooltip="from Load AMED Predictor or Calibrate AMED")],
            outputs=[
                io.String.Output(display_name="text", tooltip="its header, then its constants"),
                io.Image.Output(display_name="plot", tooltip="its constants over the noise levels"),
                io.String.Output(display_name="code", tooltip="to paste into Load AMED Predictor elsewhere"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, predictor):
        text = describe(predictor, part_weights)
        plot = report.as_image(report.constants(predictor))
        return io.NodeOutput(text, plot, code_of(predictor), ui=face(cls.hidden.unique_id, text))


class SavePredictor(io.ComfyNode):
    """AMED_PREDICTOR -> a file in models/amed_predictors."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDSavePredictor",
            display_name="Save AMED Predictor",
            search_aliases=["amed"],
            description="Save a predictor under models/amed_predictors, where auto finds it.",
            inputs=[
                Predictor.Input("predictor", tooltip="of any node that gives one"),
                io.String.Input(
                    "name", default="my predictor", tooltip="the file's, in models/amed_predictors"
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="its name")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, predictor, name):
        path = save(user_folder() / file_name(name), predictor)
        return io.NodeOutput(path.name, ui=face(cls.hidden.unique_id, f"saved as {path.name}"))


NODES = [PredictorInfo, SavePredictor]
