"""AMED Predictor Info and Save AMED Predictor."""

from comfy_api.latest import io

from ..amed import Fitted, save
from ..amed.files.code import code_of
from ..amed.files.spec import to_header
from ..amed.files.store import file_name, values_of
from ..pictures import report
from ..pictures.parts import names_of, trimmed
from .folders import user_folder
from .running import face
from .schema import Predictor, schema


def described(fitted: Fitted) -> str:
    """Everything a predictor says of itself: its header, then its constants interval by interval."""
    header = {
        name: value for name, value in to_header(fitted.spec).items() if value not in ('""', "{}", "[]")
    }
    lines = [fitted.label, "", *(f"{name}: {value}" for name, value in header.items()), ""]
    sigmas, values = fitted.sigmas().tolist(), dict(values_of(fitted))
    if not values:
        what = (
            "r, c, a: a network's, from the image"
            if fitted.wants_bottleneck
            else "nothing learned: a plain solver"
        )
        return "\n".join([*lines, f"sigmas: {', '.join(f'{t:.5g}' for t in sigmas)}", what])
    weights = values.pop("weights") if fitted.spec.parts else None
    alone = values.pop("alone", None)
    more = "; then the weights of each part, the newest slope's first" if weights is not None else ""
    lines.append("sigma -> next: " + ", ".join(values) + more)
    for n, (start, end) in enumerate(zip(sigmas, sigmas[1:])):
        row = [" ".join(f"{v:.4f}" for v in value[n].reshape(-1).tolist()) for value in values.values()]
        row += ["one pass"] if alone is not None and alone[n] else []
        lines.append(f"{start:.5g} -> {end:.5g}: {', '.join(row)}")
        if weights is not None:
            named = zip(names_of(fitted.spec.parts, weights.shape[-1]), weights[n].T.tolist())
            lines += [f"  {name}: {' '.join(f'{w:.4f}' for w in trimmed(part))}" for name, part in named]
    return "\n".join(lines)


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
        text = described(predictor)
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
