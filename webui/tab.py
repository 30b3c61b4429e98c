"""The AMED tab, which calibrates, and the HTTP API."""

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
    """The AMED tab: Calibrate."""
    default = calibrate.Form([""])
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Markdown(
            "Fit AMED to the loaded checkpoint: a few dozen constants, by sampling only, saved in "
            "`models/AMED` and found by *auto* from then on. Give prompts, size and CFG scale of the kind "
            "you use."
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
                        list(PRESETS), value="quick", label="Budget", info=f"evaluations: {counts}"
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
            yield from followed(dict(zip(fields, values)))

        def wait(*values: Any) -> tuple[str, list]:
            return list(followed(dict(zip(fields, values))))[-1]

        # a page without Gradio's queue refuses to start if it has an answer in parts
        click = follow if host.has_queue() else wait
        start.click(click, inputs=list(fields.values()), outputs=[text, pictures])
        stop.click(host.interrupt, inputs=[], outputs=[])
    return [(page, "AMED", "amed")]


def followed(filled: dict[str, Any]) -> Iterator[tuple[str, list]]:
    """A calibration's text and pictures, as it goes on."""
    try:
        form = calibrate.Form.of(filled)
    except ValueError as error:
        yield str(error), []
        return
    end: dict[str, Any] = {}

    def work() -> None:
        try:
            end["outcome"] = calibrate.started(form)
        except Exception as error:
            end["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        yield host.progress_text() or "waiting", []
        time.sleep(0.5)
    if "error" in end:
        yield f"{type(end['error']).__name__}: {end['error']}", []
        return
    yield end["outcome"].text, end["outcome"].pictures


def listed() -> dict[str, Any]:
    """The predictors there are, in words, and what is wrong with others."""
    library = host.library()
    labels = {name: fitted.label for name, fitted in library.named().items()}
    return {"predictors": labels, "broken": library.problems()}


def add_api(_page: Any, app: Any) -> None:
    """GET /amed/predictors, POST /amed/calibrate (the tab's fields); the host's progress and interrupt
    serve."""
    from fastapi import Body, HTTPException

    def fit(filled: dict = Body(...)) -> dict[str, Any]:  # noqa: B008 (FastAPI's way)
        try:
            outcome = calibrate.started(calibrate.Form.of(filled))
        except ValueError as error:
            raise HTTPException(status_code=422, detail=str(error)) from None
        return {
            "saved": outcome.saved,
            "text": outcome.text,
            "interrupted": outcome.interrupted,
            "images": [encoded(picture) for picture in outcome.pictures],
        }

    app.add_api_route("/amed/predictors", listed, methods=["GET"])
    app.add_api_route("/amed/calibrate", fit, methods=["POST"])


def encoded(picture: Any) -> str:
    """PNG in base64, as the host's API gives images."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
