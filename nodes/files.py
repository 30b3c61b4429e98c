"""AMED Predictor Info and Save AMED Predictor."""

from comfy_api.latest import io, ui

from ..amed import Fitted, report, store
from . import host
from .schema import Predictor, schema


def described(fitted: Fitted) -> str:
    """Everything a predictor says of itself: its header, then its constants interval by interval."""
    told = {f: v for f, v in store.to_header(fitted.spec).items() if v not in ('""', "{}")}
    lines = [fitted.label, ""] + [f"{name}: {value}" for name, value in told.items()]
    tensors = store.tensors_of(fitted)
    if fitted.wants_bottleneck:
        sigmas = ", ".join(f"{t:.5g}" for t in tensors["sigmas"].tolist())
        return "\n".join([*lines, "", f"sigmas: {sigmas}", "r, c, a: a network's, from the image"])
    names = [name for name in ("r", "c", "a", "g", "weights") if name in tensors]
    lines += ["", "sigma -> next: " + ", ".join(names)]
    for n in range(fitted.spec.num_steps - 1):
        values = [" ".join(f"{v:.4f}" for v in tensors[name][n].reshape(-1).tolist()) for name in names]
        lines.append(f"{tensors['sigmas'][n]:.5g} -> {tensors['sigmas'][n + 1]:.5g}: {', '.join(values)}")
    return "\n".join(lines)


class PredictorInfo(io.ComfyNode):
    """AMED_PREDICTOR -> text and picture."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDPredictorInfo",
            display_name="AMED Predictor Info",
            search_aliases=["amed"],
            description="What a predictor is for, how it was made and measured, and its constants.",
            inputs=[Predictor.Input("predictor")],
            outputs=[io.String.Output(display_name="text"), io.Image.Output(display_name="plot")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, predictor):
        text = described(predictor)
        return io.NodeOutput(text, report.as_image(report.constants(predictor)), ui=ui.PreviewText(text))


class SavePredictor(io.ComfyNode):
    """AMED_PREDICTOR -> a file in models/amed_predictors."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDSavePredictor",
            display_name="Save AMED Predictor",
            search_aliases=["amed"],
            description="Save a predictor under models/amed_predictors, where auto finds it.",
            inputs=[Predictor.Input("predictor"), io.String.Input("name", default="my predictor")],
            outputs=[io.String.Output(display_name="file")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, predictor, name):
        path = store.save(host.user_folder() / store.file_name(name), predictor)
        return io.NodeOutput(path.name, ui=ui.PreviewText(f"saved as {path.name}"))


NODES = [PredictorInfo, SavePredictor]
