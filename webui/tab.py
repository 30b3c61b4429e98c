"""The AMED tab, which runs calibrations, and the HTTP API."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from amed.fit import PRESETS

from . import calibrate, host


def tab() -> list[tuple[Any, str, str]]:
    """Build the AMED tab; returns (page, title, id) in a list, as the WebUI expects it."""
    default = calibrate.Form([""])
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Markdown(
            "Fit AMED to the loaded checkpoint. This fits a few dozen numbers by sampling, and saves them as "
            "a predictor in `models/AMED`, where *auto* finds it. Use prompts, a size and a CFG scale like "
            "those of your images."
        )
        with gr.Row():
            with gr.Column():
                prompts = gr.Textbox(
                    calibrate.DEFAULT_PROMPTS, lines=4, label="Prompts, a line each (1 to 8)"
                )
                negative = gr.Textbox("", label="Negative prompt")
                with gr.Row():
                    width = gr.Slider(64, 2048, value=default.width, step=8, label="Width")
                    height = gr.Slider(64, 2048, value=default.height, step=8, label="Height")
                    guidance = gr.Slider(1, 30, value=default.guidance, step=0.5, label="CFG scale")
                with gr.Row():
                    sampler = gr.Dropdown(calibrate.choices(), value=default.sampler, label="Sampler")
                    nfe = gr.Textbox("5", label="NFE: evaluations, one or several (5, 7, 9)")
                with gr.Row():
                    counts = ", ".join(f"{count:,}" for count in PRESETS.values())
                    budget = gr.Dropdown(
                        list(PRESETS), value="quick", label="Budget", info=f"evaluations per NFE: {counts}"
                    )
                    batch = gr.Slider(1, 16, value=default.batch, step=1, label="Images at once")
                    seed = gr.Number(0, precision=0, label="Seed")
                name = gr.Textbox("", label="Name to save under (empty: the checkpoint's)")
                with gr.Row():
                    start = gr.Button("Calibrate", variant="primary", elem_id="amed_calibrate")
                    stop = gr.Button("Interrupt", elem_id="amed_interrupt")
            with gr.Column():
                text = gr.Textbox("", lines=12, label="Result", interactive=False, elem_id="amed_result")
                pictures = gr.Gallery(label="Report", columns=1, object_fit="contain", elem_id="amed_report")
        fields = {
            "prompts": prompts, "negative": negative, "width": width, "height": height, "guidance": guidance,
            "sampler": sampler, "nfe": nfe, "budget": budget, "batch": batch, "seed": seed, "name": name,
        }  # fmt: skip

        def follow(*values: Any) -> Iterator[tuple[str, list]]:
            yield from calibration_updates(dict(zip(fields, values)))

        def wait(*values: Any) -> tuple[str, list]:
            return list(calibration_updates(dict(zip(fields, values))))[-1]

        # without Gradio's queue a page with a generator as callback does not start
        click = follow if host.has_gradio_queue() else wait
        start.click(click, inputs=list(fields.values()), outputs=[text, pictures])
        stop.click(host.interrupt, inputs=[], outputs=[])
    return [(page, "AMED", "amed")]


def calibration_updates(fields: dict[str, Any]) -> Iterator[tuple[str, list]]:
    """Run a calibration in a thread; yield its progress, and at the end its result, as (text, pictures).

    Args:
        fields: the values of the tab's fields, named as in calibrate.Form."""
    try:
        form = calibrate.Form.of(fields)
    except ValueError as error:
        yield str(error), []
        return
    result: dict[str, Any] = {}

    def work() -> None:
        try:
            result["outcome"] = calibrate.calibrate_in_queue(form)
        except Exception as error:
            result["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        yield host.progress_text() or "waiting", []
        time.sleep(0.5)
    if "error" in result:
        yield f"{type(result['error']).__name__}: {result['error']}", []
        return
    yield result["outcome"].text, result["outcome"].pictures


def list_predictors() -> dict[str, Any]:
    """Return a description of each predictor, and the error of each predictor file that cannot be read."""
    library = host.library()
    labels = {name: fitted.label for name, fitted in library.named().items()}
    return {"predictors": labels, "broken": library.problems()}


def add_api(_page: Any, app: Any) -> None:
    """Add GET /amed/predictors and POST /amed/calibrate, which takes the tab's fields as JSON.

    The WebUI's own API gives the progress of a calibration and interrupts it."""
    from fastapi import Body, HTTPException

    def fit(fields: dict = Body(...)) -> dict[str, Any]:  # noqa: B008 (FastAPI requires a call here)
        try:
            outcome = calibrate.calibrate_in_queue(calibrate.Form.of(fields))
        except ValueError as error:
            raise HTTPException(status_code=422, detail=str(error)) from None
        return {
            "saved": outcome.saved,
            "text": outcome.text,
            "interrupted": outcome.interrupted,
            "images": [png_base64(picture) for picture in outcome.pictures],
        }

    app.add_api_route("/amed/predictors", list_predictors, methods=["GET"])
    app.add_api_route("/amed/calibrate", fit, methods=["POST"])


def png_base64(picture: Any) -> str:
    """Encode a PIL image as a PNG in base64, like the images of the WebUI's API."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
