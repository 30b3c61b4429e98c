"""Puts AMED into a WebUI: called once, and again at each reload of the scripts."""

from modules import script_callbacks, scripts

from . import host, run, tab, ui


def install() -> type:
    """Samplers, schedule, settings, tab and API; returns the script's class, which the host looks for."""
    ui.add_settings()
    host.register(run.run, run.times, host.setting("amed_samplers", None))
    script_callbacks.on_model_loaded(host.identity)  # before any LoRA changes its weights
    script_callbacks.on_ui_tabs(tab.tab)
    script_callbacks.on_app_started(tab.add_api)

    class AmedScript(ui.Accordion, scripts.Script):
        """AMED's accordion."""

        def __init__(self) -> None:
            ui.Accordion.__init__(self)

    return AmedScript
