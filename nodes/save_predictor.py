"""The node Save AMED Predictor."""

from comfy_api.latest import io

from ..amed import save
from ..amed.files.store import file_name
from .host.folders import user_folder
from .host.running import face
from .schema import Predictor, schema


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
