"""The node AMED Predictor Info."""

from comfy_api.latest import io

from ..amed import Fitted
from ..amed.files.code import code_of
from ..amed.files.spec import to_header
from ..amed.files.store import values_of
from ..hosts import report
from ..hosts.parts import names_of, trimmed
from .host.running import text_ui
from .schema import Predictor, schema


def description_of(fitted: Fitted) -> str:
    """Return a predictor's label, its file's header and its constants for each interval, as text."""
    header = {
        name: value for name, value in to_header(fitted.spec).items() if value not in ('""', "{}", "[]")
    }
    lines = [fitted.label, "", *(f"{name}: {value}" for name, value in header.items()), ""]
    sigmas, values = fitted.sigmas().tolist(), dict(values_of(fitted))
    if not values:
        learned = (
            "r, c, a: computed from the image by a network"
            if fitted.wants_bottleneck
            else "nothing learned: a plain solver"
        )
        return "\n".join([*lines, f"sigmas: {', '.join(f'{t:.5g}' for t in sigmas)}", learned])
    weights = values.pop("weights") if fitted.spec.parts else None
    alone = values.pop("alone", None)
    more = "; then the weights of each part, the newest slope's first" if weights is not None else ""
    lines.append("sigma -> next: " + ", ".join(values) + more)
    for n, (start, end) in enumerate(zip(sigmas, sigmas[1:])):
        row = [" ".join(f"{v:.4f}" for v in value[n].reshape(-1).tolist()) for value in values.values()]
        row += ["one pass"] if alone is not None and alone[n] else []
        lines.append(f"{start:.5g} -> {end:.5g}: {', '.join(row)}")
        if weights is not None:
            parts = zip(names_of(fitted.spec.parts, weights.shape[-1]), weights[n].T.tolist())
            lines += [f"  {name}: {' '.join(f'{w:.4f}' for w in trimmed(part))}" for name, part in parts]
    return "\n".join(lines)


class PredictorInfo(io.ComfyNode):
    """Show a predictor as text and as a plot, and as a code to paste."""

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
        text = description_of(predictor)
        plot = report.as_image(report.constants(predictor))
        return io.NodeOutput(text, plot, code_of(predictor), ui=text_ui(cls.hidden.unique_id, text))
