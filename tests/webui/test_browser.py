"""The accordion in the WebUI's own page, in this machine's Chromium, if A1111_PATH, FORGE_PATH or
REFORGE_PATH names a WebUI."""

import os
import warnings

import pytest
from real_webui import FLAGS, Server

from demo import browser

UP = 120_000  # milliseconds until a Gradio page has loaded


@pytest.fixture(scope="module", params=sorted(FLAGS))
def tab(request, tmp_path_factory):
    """The page's tab; without a host or a Chromium the tests are skipped, with the reason."""
    reason = browser.missing() if os.environ.get(request.param) else f"{request.param} is not set"
    if reason:
        warning = f"{reason}: AMED's accordion was NOT tested in that page (docs/WEBUI.md says how)"
        warnings.warn(warning, stacklevel=1)
        pytest.skip(warning)
    server = Server(request.param, tmp_path_factory.mktemp("webui-page"))
    try:
        with browser.Chromium(f"http://127.0.0.1:{server.port}") as page:
            page.tab.locator("#txt2img_amed").wait_for(timeout=UP)
            yield page.tab
    finally:
        server.stop()


def choose(tab, sampler):
    box = tab.locator("#txt2img_sampling input")
    box.click()
    box.fill(sampler)
    tab.locator("#txt2img_sampling ul.options li").filter(has_text=sampler).first.click()


def set_slider(tab, name, value):
    box = tab.locator(f"#txt2img_{name} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def steps_become(tab, value):
    condition = "value => document.querySelector('#txt2img_steps input[type=number]').value === value"
    tab.wait_for_function(condition, arg=str(value))


def status_says(tab, text):
    condition = "text => document.querySelector('#txt2img_amed_status').innerText.includes(text)"
    tab.wait_for_function(condition, arg=text)


def open_accordion(tab):
    status = tab.locator("#txt2img_amed_status").first  # some versions of Gradio give two elements this id
    if not status.is_visible():
        tab.locator("#txt2img_amed > .label-wrap, #txt2img_amed > button").first.click()
    status.wait_for()


def test_the_accordion_follows_the_sampler_and_nfe(tab):
    """With another sampler the line says what to do; with ours NFE sets the steps, and the line says what
    will run."""
    open_accordion(tab)
    status_says(tab, "Choose one of the AMED samplers")
    choose(tab, "AMED Multistep")
    status_says(tab, "evaluations")
    set_slider(tab, "amed_nfe", 6)  # one evaluation per step
    steps_become(tab, 6)
    status_says(tab, "6 evaluations (6 steps), 12 network passes")
    set_slider(tab, "amed_nfe", 9)
    steps_become(tab, 9)
    status_says(tab, "9 evaluations (9 steps)")
