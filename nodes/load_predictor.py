"""The node Load AMED Predictor."""

from comfy_api.latest import io

from ..amed.choose import preferred
from ..amed.files.code import from_code
from .choice.fingerprint import carried_hash
from .choice.workflow import carried_predictor, load_named, write_predictor
from .host.folders import content_hash, library
from .host.running import executing_node, running_prompt, text_ui
from .schema import Predictor, schema


class LoadPredictor(io.ComfyNode):
    """Load a predictor from a file in models/amed_predictors or in this pack, or from pasted text."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDLoadPredictor",
            display_name="Load AMED Predictor",
            search_aliases=["amed", "few steps", "open predictor"],
            description="Load an AMED predictor (learned solver constants) from a file in "
                        "models/amed_predictors or in this pack.",
            inputs=[
                io.Combo.Input("name", options=library().names(), tooltip="The predictor file to load."),
                io.String.Input("code", default="", multiline=True, optional=True,
                                tooltip="A predictor as text, copied from AMED Predictor Info. It is used in "
                                "place of the file. Empty: the file is loaded."),
            ],
            outputs=[
                Predictor.Output(
                    display_name="predictor", tooltip="The predictor, for AMED Sampler or Apply AMED "
                                                      "Predictor."
                )
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(cls, name, code=""):
        if code.strip():
            fitted, remarks = from_code(code, "pasted"), ""
        else:
            png, node_id, widgets = cls.hidden.extra_pnginfo, cls.hidden.unique_id, {"name": name}
            fitted, remarks = preferred(
                lambda predictor: predictor,
                lambda: load_named(name),
                carried=lambda: carried_predictor(png, node_id, widgets, None),
            )
            write_predictor(png, node_id, widgets, fitted)
        return io.NodeOutput(fitted, ui=text_ui(cls.hidden.unique_id, "\n".join([fitted.label, *remarks])))

    @classmethod
    def validate_inputs(cls, name):
        return True  # for a file that is not in the list, load_named gives a better message than ComfyUI

    @classmethod
    def fingerprint_inputs(cls, name, code=""):
        if (code or "").strip():
            return ""
        return content_hash(name) + carried_hash(running_prompt()[1], executing_node() or "")
