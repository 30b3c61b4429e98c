"""The node Save AMED Predictor."""

from comfy_api.latest import io

from ..amed import save
from ..amed.files.names import file_name
from .host.folders import user_folder
from .host.running import text_ui
from .schema import Predictor, schema


class SavePredictor(io.ComfyNode):
    """Save a predictor to a file in models/amed_predictors."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDSavePredictor",
            display_name="Save AMED Predictor",
            search_aliases=["amed"],
            description="Save a predictor in models/amed_predictors, where nodes set to auto find it.",
            inputs=[
                Predictor.Input(
                    "predictor", tooltip="The predictor to save, from any node that outputs one."
                ),
                io.String.Input(
                    "name", default="my predictor", tooltip="Name of the file in models/amed_predictors."
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="Name of the saved file.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, predictor, name):
        path = save(user_folder() / file_name(name), predictor)
        return io.NodeOutput(path.name, ui=text_ui(cls.hidden.unique_id, f"saved as {path.name}"))
