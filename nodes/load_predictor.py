"""The node Load AMED Predictor."""

from comfy_api.latest import io

from ..amed.files.code import from_code
from .choice.fingerprint import carried_code
from .choice.workflow import carried_or, carry, named
from .host.folders import content, library
from .host.running import executing_node, face, running_prompt
from .schema import Predictor, schema


class LoadPredictor(io.ComfyNode):
    """A predictor file, from models/amed_predictors or the bundled ones, or one pasted as a text."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDLoadPredictor",
            display_name="Load AMED Predictor",
            search_aliases=["amed", "few steps", "open predictor"],
            description="Load a fitted AMED predictor from models/amed_predictors or the pack's own.",
            inputs=[
                io.Combo.Input("name", options=library().names(), tooltip="the predictor file"),
                io.String.Input("code", default="", multiline=True, optional=True,
                                tooltip="a predictor's code, from AMED Predictor Info: in place of the file"),
            ],
            outputs=[Predictor.Output(display_name="predictor", tooltip="for AMED Sampler and Apply")],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(cls, name, code=""):
        if code.strip():
            fitted, said = from_code(code, "pasted"), ""
        else:
            png, node_id, widgets = cls.hidden.extra_pnginfo, cls.hidden.unique_id, {"name": name}
            fitted, said = carried_or(png, node_id, widgets, None, lambda own: own, lambda: named(name))
            carry(png, node_id, widgets, fitted)
        return io.NodeOutput(fitted, ui=face(cls.hidden.unique_id, "\n".join([fitted.label, *said])))

    @classmethod
    def validate_inputs(cls, name):
        return True  # a workflow from elsewhere may name a file that is not here: `named` says so, in words

    @classmethod
    def fingerprint_inputs(cls, name, code=""):
        if (code or "").strip():
            return ""
        return content(name) + carried_code(running_prompt()[1], executing_node() or "")
