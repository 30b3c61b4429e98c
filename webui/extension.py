"""Installs AMED into a running WebUI."""

from modules import script_callbacks, scripts

from . import host, run, tab, ui


def install() -> type:
    """Add AMED's samplers, schedule, settings page, tab and API to the WebUI.

    Called again at each reload of the scripts.

    Returns:
        The script class of the accordion, which the WebUI finds in scripts/amed_webui.py."""
    ui.add_settings()
    host.register(run.sample, run.sigmas, host.setting("amed_samplers", None))
    script_callbacks.on_model_loaded(host.identity)  # before a LoRA changes the checkpoint's weights
    script_callbacks.on_ui_tabs(tab.tab)
    script_callbacks.on_app_started(tab.add_api)

    class AmedScript(ui.Accordion, scripts.Script):
        """AMED's accordion as a script of the WebUI."""

        def __init__(self) -> None:
            ui.Accordion.__init__(self)

    return AmedScript
