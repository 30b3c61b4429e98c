"""The accordion, the settings page and the axes of the X/Y/Z plot."""

import html
import re
from dataclasses import replace
from typing import Any

import gradio as gr

from amed import PredictorError
from amed.choose import AUTO, PLAIN, Choice, Identity

from . import host, host_samplers, run
from .run import FALLBACKS, MADE, SETTINGS, Wish
from .samplers import LABELS, Line, line_of

SECTION = ("amed", "AMED")
OTHER_SAMPLER = "Choose one of the AMED samplers to use this."


# --- settings ----------------------------------------------------------------------------------------------


def choices() -> list[str]:
    """What to choose from: the user's predictors, and the bundled that are for models of a WebUI."""
    return [AUTO, *MADE, *host.offered()]


def add_settings() -> None:
    """The settings page; each is also an API override_settings."""
    listed = "Samplers to list (the others stay reachable by name; Reload UI to see it)"
    host.add_settings(
        SECTION,
        {
            "amed_predictor": (AUTO, "Default predictor", gr.Dropdown, lambda: {"choices": choices()}),
            "amed_nfe": (
                0, "Default NFE (evaluations; 0: as many as the steps take)", gr.Slider,
                {"minimum": 0, "maximum": 30, "step": 1},
            ),
            "amed_fallback": (
                PLAIN, "Where no predictor fits: the best plain solver, AMED untrained, an error", gr.Radio,
                {"choices": list(FALLBACKS)},
            ),
            "amed_samplers": (list(LABELS), listed, gr.CheckboxGroup, {"choices": list(LABELS)}),
        },
    )  # fmt: skip


# --- the accordion -----------------------------------------------------------------------------------------


def status(label: str, steps: Any, guidance: Any, predictor: str, nfe: Any) -> str:
    """What these settings will run, in one line of Markdown. Names in it are a file's, and no HTML."""
    line = line_of(label)
    if line is None:
        return html.escape(status_outside(label, predictor), quote=False)
    wish, steps, scale = Wish.of(None, predictor, nfe), int(steps or 1), float(guidance or 1)
    choice, note = foreseen(line, wish, steps, scale)
    at, fit = choice.fitted.spec.guidance, ""
    if choice.fitted.name not in MADE:
        what = choice.fitted.name
        fit = f"; fitted at guidance {at:g}" + (f", CFG scale is {scale:g}" if abs(at - scale) > 0.01 else "")
    elif wish.predictor in MADE or host.loaded_model() is not None:
        what = f"{choice.fitted.name} solver"
    else:
        what = "no checkpoint is loaded yet"
    count, steps = choice.fitted.nfe, len(choice.sigmas) - 1
    passes = count * host.passes_each(scale)
    what, note = (html.escape(text, quote=False) for text in (what, f" {note}" if note else ""))
    return f"**{count}** evaluations ({steps} steps), {passes} network passes an image — {what}{fit}.{note}"


def status_outside(label: str, predictor: str) -> str:
    """The same for a sampler of the host's own."""
    wish = Wish.of(None, predictor, 0)
    try:
        fitted = host_samplers.named(wish.predictor, label) if wish.named else None
    except PredictorError as error:
        return str(error)
    if fitted is None:
        return OTHER_SAMPLER
    steps, at = len(fitted.base), fitted.spec.guidance
    return f"**{fitted.nfe}** evaluations ({steps} steps), {fitted.name}; fitted at guidance {at:g}."


def foreseen(line: Line, wish: Wish, steps: int, scale: float) -> tuple[Choice, str]:
    """What a generation with these settings would take, and why it is a solver without a predictor where
    nobody asked for that."""
    model, note = host.loaded_model(), ""
    if model is not None or wish.named:
        who = Identity("", "") if model is None else host.identity(model)
        try:
            return run.foreseen(line, replace(wish, fallback=run.ERROR), who, scale, steps), ""
        except PredictorError as error:
            none = "No predictor was fitted for these yet: the AMED tab fits one."
            note = str(error).splitlines()[0] if wish.named else none
    kind = wish.fallback if wish.fallback in MADE else PLAIN
    return run.foreseen(line, replace(wish, predictor=kind), Identity("", ""), scale, steps), note


def pasted_count(text: str) -> int:
    """The number of evaluations in an infotext; 0 for what is none."""
    return int(text) if re.fullmatch("[0-9]{1,3}", text) else 0


def refresh_button(dropdown: Any, elem_id: str) -> None:
    button = gr.Button("↻", elem_id=elem_id, min_width=40, scale=0)
    button.click(lambda: gr.update(choices=choices()), inputs=[], outputs=[dropdown])


class Accordion:
    """The script's half that has a face; scripts/amed_webui.py mixes it with the host's Script."""

    watched = {"sampling": "sampler", "steps": "steps", "cfg_scale": "guidance"}

    def __init__(self):
        self.host_components: dict[str, Any] = {}
        self.bound = False
        add_axes()

    def title(self) -> str:
        return "AMED"

    def show(self, is_img2img: bool) -> Any:
        return host.AlwaysVisible

    def after_component(self, component: Any, **kwargs: Any) -> None:
        tab = "img2img" if self.is_img2img else "txt2img"
        for name, role in self.watched.items():
            if kwargs.get("elem_id") == f"{tab}_{name}":
                self.host_components[role] = component

    def ui(self, is_img2img: bool) -> list[Any]:
        tab = "img2img" if is_img2img else "txt2img"
        with gr.Accordion("AMED", open=False, elem_id=f"{tab}_amed"):
            with gr.Row():
                predictor = gr.Dropdown(
                    choices(), value=AUTO, label="AMED predictor", elem_id=f"{tab}_amed_predictor", scale=4
                )
                refresh_button(predictor, f"{tab}_amed_refresh")
            with gr.Row():
                nfe = gr.Slider(
                    0, 30, value=0, step=1, elem_id=f"{tab}_amed_nfe",
                    label="NFE: evaluations (0: by Steps)",
                )  # fmt: skip
                fallback = gr.Dropdown(
                    [SETTINGS, *FALLBACKS], value=SETTINGS, label="Where no predictor fits",
                    elem_id=f"{tab}_amed_fallback",
                )  # fmt: skip
            shown = gr.Markdown(OTHER_SAMPLER, elem_id=f"{tab}_amed_status")
        if not self.bound:  # the API calls this again for the defaults, in a page of its own
            self.bound = True
            self.bind(predictor, nfe, shown)
        self.infotext_fields = [
            (predictor, lambda read: read.get("AMED predictor", AUTO)),
            (nfe, lambda read: pasted_count(read.get("AMED NFE", ""))),
            (fallback, lambda read: read.get("AMED fallback", SETTINGS)),
        ]
        self.paste_field_names = ["AMED predictor", "AMED NFE", "AMED fallback"]
        return [predictor, nfe, fallback]

    def bind(self, predictor: Any, nfe: Any, shown: Any) -> None:
        """Tell what will run whenever something of it changes; NFE and a named predictor move the steps."""
        theirs = [self.host_components.get(role) for role in self.watched.values()]
        if None in theirs:
            return
        inputs = [*theirs, predictor, nfe]
        for component in inputs:
            component.change(status, inputs=inputs, outputs=[shown], show_progress="hidden")

        def steps_of(label: str, steps: Any, guidance: Any, predictor: str, nfe: Any) -> Any:
            line, wish = line_of(label), Wish.of(None, predictor, nfe)
            if line is None or not (wish.nfe or wish.named):
                return gr.update()
            choice, _ = foreseen(line, wish, int(steps), float(guidance))
            if choice.fitted.name in MADE and not wish.nfe:
                return gr.update()
            return gr.update(value=len(choice.sigmas) - 1)

        for component in (predictor, nfe):
            component.change(steps_of, inputs=inputs, outputs=[theirs[1]], show_progress="hidden")

    def process(
        self, p: Any, predictor: Any = AUTO, nfe: Any = 0, fallback: Any = SETTINGS, *_more: Any
    ) -> None:
        """Before a generation. What is wrong is kept for the sampler to raise: the host only prints what a
        script raises here."""
        line, hires = line_of(p.sampler_name), line_of(getattr(p, "hr_sampler_name", None))
        if line is None and hires is None:
            p.amed = None
            try:
                wish = Wish.of(p, predictor)
                if wish.named:
                    host_samplers.prepare(p, wish.predictor)
            except ValueError as error:  # PredictorError is one; the host's sampler runs as it is
                p.comment(f"AMED: {error}")
            return
        try:
            p.amed = Wish.of(p, predictor, nfe, fallback)
        except ValueError as error:
            p.amed = Wish(error=error)
            return
        if line is None:
            return
        if p.amed.nfe:
            p.extra_generation_params["AMED NFE"] = p.amed.nfe
        if fallback not in (None, "", SETTINGS):
            p.extra_generation_params["AMED fallback"] = p.amed.fallback
        try:
            run.prepare(p, line, p.amed)
        except ValueError as error:  # PredictorError is one
            p.amed.error = error

    def process_before_every_sampling(self, p: Any, *_args: Any, **_more: Any) -> None:
        """Just before a pass samples."""
        host_samplers.put_around(p)


# --- X/Y/Z plot --------------------------------------------------------------------------------------------


def add_axes() -> None:
    """Predictor and NFE as axes, once."""
    module = host.xyz_module()
    if module is None or any(option.label == "[AMED] NFE" for option in module.axis_options):
        return

    def apply(name: str) -> Any:
        return lambda p, x, xs: setattr(p, name, x)

    def known(p: Any, xs: list[str]) -> None:
        for x in xs:
            if x not in (AUTO, *MADE, *host.library().names()):
                raise RuntimeError(f"Unknown AMED predictor: {x}")

    module.axis_options += [
        module.AxisOption("[AMED] Predictor", str, apply("amed_predictor"), confirm=known, choices=choices),
        module.AxisOption("[AMED] NFE", int, apply("amed_nfe")),
    ]
