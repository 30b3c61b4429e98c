"""The accordion, the settings page and the axes of the X/Y/Z plot."""

import html
import re
from dataclasses import replace
from typing import Any

import gradio as gr

from amed import PredictorError
from amed.choose import AUTO, PLAIN, Choice, Identity

from . import host, host_samplers, run
from .run import FALLBACKS, SETTINGS, WITHOUT_FILE, GenerationSettings
from .samplers import LABELS, SamplerEntry, entry_of

SECTION = ("amed", "AMED")  # id and title on the settings page
OTHER_SAMPLER = "Choose one of the AMED samplers to use this."


# --- settings ----------------------------------------------------------------------------------------------


def predictor_choices() -> list[str]:
    """Return the choices for "AMED predictor": auto, plain, untrained, then the predictor files."""
    return [AUTO, *WITHOUT_FILE, *host.listed_predictors()]


def add_settings() -> None:
    """Add AMED's section to the settings page. The API accepts each setting in override_settings."""
    listed = "Samplers to list (the others stay reachable by name; Reload UI to see it)"
    host.add_settings(
        SECTION,
        {
            "amed_predictor": (
                AUTO, "Default predictor", gr.Dropdown, lambda: {"choices": predictor_choices()},
            ),
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
    """Describe what the current settings will run, in one line of Markdown.

    Text from files (e.g. a predictor's name) is escaped, because Gradio renders HTML in Markdown.

    Args:
        label: label of the selected sampler.
        steps, guidance: the WebUI's Steps and CFG scale.
        predictor, nfe: the predictor and the number of evaluations selected in the AMED accordion."""
    entry = entry_of(label)
    if entry is None:
        return html.escape(host_sampler_status(label, predictor), quote=False)
    settings = GenerationSettings.of(None, predictor, nfe)
    steps, scale = int(steps or 1), float(guidance or 1)
    choice, note = preview(entry, settings, steps, scale)
    fitted_at, fit = choice.fitted.spec.guidance, ""
    if choice.fitted.name not in WITHOUT_FILE:
        solver = choice.fitted.name
        fit = f"; fitted at guidance {fitted_at:g}"
        fit += f", CFG scale is {scale:g}" if abs(fitted_at - scale) > 0.01 else ""
    elif settings.predictor in WITHOUT_FILE or host.loaded_model() is not None:
        solver = f"{choice.fitted.name} solver"
    else:
        solver = "no checkpoint is loaded yet"
    count, steps = choice.fitted.nfe, len(choice.sigmas) - 1
    passes = count * host.passes_per_evaluation(scale)
    solver, note = (html.escape(text, quote=False) for text in (solver, f" {note}" if note else ""))
    cost = f"**{count}** evaluations ({steps} steps), {passes} network passes per image"
    return f"{cost} — {solver}{fit}.{note}"


def host_sampler_status(label: str, predictor: str) -> str:
    """Describe which predictor will run with one of the WebUI's own samplers, in one line of text."""
    settings = GenerationSettings.of(None, predictor, 0)
    try:
        named = settings.names_a_file
        fitted = host_samplers.load_predictor(settings.predictor, label) if named else None
    except PredictorError as error:
        return str(error)
    if fitted is None:
        return OTHER_SAMPLER
    steps, guidance = len(fitted.base), fitted.spec.guidance
    return f"**{fitted.nfe}** evaluations ({steps} steps), {fitted.name}; fitted at guidance {guidance:g}."


def preview(
    entry: SamplerEntry, settings: GenerationSettings, steps: int, guidance: float
) -> tuple[Choice, str]:
    """Return what a generation with these settings would run, and a note if no predictor was found for it."""
    model, note = host.loaded_model(), ""
    if model is not None or settings.names_a_file:
        identity = Identity("", "") if model is None else host.identity(model)
        strict = replace(settings, fallback=run.ERROR)
        try:
            return run.preview_choice(entry, strict, identity, guidance, steps), ""
        except PredictorError as error:
            note = "No predictor was fitted for these settings yet: fit one in the AMED tab."
            if settings.names_a_file:
                note = str(error).splitlines()[0]
    kind = settings.fallback if settings.fallback in WITHOUT_FILE else PLAIN
    solver = replace(settings, predictor=kind)
    return run.preview_choice(entry, solver, Identity("", ""), guidance, steps), note


def pasted_count(text: str) -> int:
    """Return the number of evaluations that an infotext states; 0 if the text is not a number."""
    return int(text) if re.fullmatch("[0-9]{1,3}", text) else 0


def refresh_button(dropdown: Any, elem_id: str) -> None:
    """Add a button that reads the predictor folders again and updates the dropdown."""
    button = gr.Button("↻", elem_id=elem_id, min_width=40, scale=0)
    button.click(lambda: gr.update(choices=predictor_choices()), inputs=[], outputs=[dropdown])


class Accordion:
    """The AMED accordion below the WebUI's settings, as the methods of a WebUI script.

    extension.py combines it with the WebUI's Script, whose documentation describes each method (modules/
    scripts.py)."""

    # end of the elem_id of a component of the WebUI -> its key in `host_components`
    watched = {"sampling": "sampler", "steps": "steps", "cfg_scale": "guidance"}

    def __init__(self):
        self.host_components: dict[str, Any] = {}  # the WebUI's components that the status line reads
        self.bound = False  # whether the status line follows the components
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
                    predictor_choices(),
                    value=AUTO,
                    label="AMED predictor",
                    elem_id=f"{tab}_amed_predictor",
                    scale=4,
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
        if not self.bound:  # the API calls ui() again, outside the page, to read the defaults
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
        """Update the status line when an input changes, and Steps when NFE or the predictor changes.

        Args:
            predictor, nfe: the accordion's input components for the predictor and the number of evaluations.
            shown: the component of the status line."""
        host_inputs = [self.host_components.get(role) for role in self.watched.values()]
        if None in host_inputs:
            return
        inputs = [*host_inputs, predictor, nfe]
        for component in inputs:
            component.change(status, inputs=inputs, outputs=[shown], show_progress="hidden")

        def steps_of(label: str, steps: Any, guidance: Any, predictor: str, nfe: Any) -> Any:
            entry, settings = entry_of(label), GenerationSettings.of(None, predictor, nfe)
            if entry is None or not (settings.nfe or settings.names_a_file):
                return gr.update()
            choice, _ = preview(entry, settings, int(steps), float(guidance))
            if choice.fitted.name in WITHOUT_FILE and not settings.nfe:
                return gr.update()
            return gr.update(value=len(choice.sigmas) - 1)

        for component in (predictor, nfe):
            component.change(steps_of, inputs=inputs, outputs=[host_inputs[1]], show_progress="hidden")

    def process(
        self, p: Any, predictor: Any = AUTO, nfe: Any = 0, fallback: Any = SETTINGS, *_more: Any
    ) -> None:
        """Prepare a generation: read AMED's settings and set the number of steps.

        An error is stored in `p.amed` for the sampler to raise, because the WebUI only prints exceptions of
        this method."""
        entry, hires = entry_of(p.sampler_name), entry_of(getattr(p, "hr_sampler_name", None))
        if entry is None and hires is None:
            p.amed = None
            try:
                settings = GenerationSettings.of(p, predictor)
                if settings.names_a_file:
                    host_samplers.prepare(p, settings.predictor)
            except ValueError as error:  # includes PredictorError; the sampler then runs unchanged
                p.comment(f"AMED: {error}")
            return
        try:
            p.amed = GenerationSettings.of(p, predictor, nfe, fallback)
        except ValueError as error:
            p.amed = GenerationSettings(error=error)
            return
        if entry is None:
            return
        if p.amed.nfe:
            p.extra_generation_params["AMED NFE"] = p.amed.nfe
        if fallback not in (None, "", SETTINGS):
            p.extra_generation_params["AMED fallback"] = p.amed.fallback
        try:
            run.prepare(p, entry, p.amed)
        except ValueError as error:  # includes PredictorError
            p.amed.error = error

    def process_before_every_sampling(self, p: Any, *_args: Any, **_more: Any) -> None:
        """Just before a pass samples, apply the named predictor, if any, to the WebUI's own sampler."""
        host_samplers.wrap_sampler(p)


# --- X/Y/Z plot --------------------------------------------------------------------------------------------


def add_axes() -> None:
    """Add the axes [AMED] Predictor and [AMED] NFE to the X/Y/Z plot, unless it has them already."""
    module = host.xyz_module()
    if module is None or any(option.label == "[AMED] NFE" for option in module.axis_options):
        return

    def setter(attribute: str) -> Any:
        return lambda p, x, xs: setattr(p, attribute, x)

    def check_names(p: Any, xs: list[str]) -> None:
        for name in xs:
            if name not in (AUTO, *WITHOUT_FILE, *host.library().names()):
                raise RuntimeError(f"Unknown AMED predictor {name}: choose one listed in the AMED accordion")

    module.axis_options += [
        module.AxisOption(
            "[AMED] Predictor", str, setter("amed_predictor"), confirm=check_names, choices=predictor_choices
        ),
        module.AxisOption("[AMED] NFE", int, setter("amed_nfe")),
    ]
