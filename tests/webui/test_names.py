"""No name from the page, the API, a setting, an X/Y/Z plot or an infotext leaves the folder of predictors."""

import json
from types import SimpleNamespace

import pytest
from trust import hostile_names as names

QUICK = {
    "prompts": "0\n1",
    "width": 32,
    "height": 32,
    "nfe": "3",
    "budget": "quick",
    "guidance": 2.0,
    "batch": 8,
}
SOME = [*names.OUT, *names.DEVICES, *names.combined(100, 2)]


def secret(webui):
    """A valid file beside the folder, and names that would reach it."""
    folder = webui.host.user_folder()
    folder.mkdir(parents=True, exist_ok=True)
    good = webui.host.BUNDLED / "sd15-dpmpp-2m-nfe10.safetensors"
    beside = folder.parent / "secret.safetensors"
    beside.write_bytes(good.read_bytes())
    return [str(beside), "../secret.safetensors", "x/../../secret.safetensors", "..\\secret.safetensors"]


def test_a_generation_uses_only_listed_predictors(webui):
    """The accordion and the API's script arguments."""
    line = webui.samplers.entry_of("AMED Plugin DPM++ 2M")
    for name in [*secret(webui), *SOME]:
        if name in ("", " "):  # an empty name means auto
            continue
        p = webui.Processing(sampler_name=line.label, cfg_scale=2.0)
        webui.script.process(p, name, 0, "error")
        assert "no predictor named" in str(p.amed.error), name
        with pytest.raises(ValueError, match="no predictor named"):
            webui.run.load_predictor(name, line)


class Option:
    def __init__(self, label, kind, apply, confirm=None, choices=None):
        self.label, self.confirm = label, confirm


def test_a_plot_axis_uses_only_listed_predictors(webui, monkeypatch):
    plot = SimpleNamespace(AxisOption=Option, axis_options=[])
    monkeypatch.setattr(webui.host, "xyz_module", lambda: plot)
    webui.ui.add_axes()
    option = next(o for o in plot.axis_options if o.label == "[AMED] Predictor")
    for name in [*secret(webui), *SOME]:
        with pytest.raises(RuntimeError, match="Unknown AMED predictor"):
            option.confirm(None, [name])


def test_an_infotext_can_only_name_a_listed_predictor(webui):
    nfe = webui.ui.pasted_count
    for name in secret(webui):
        p = webui.Processing(sampler_name="AMED Plugin DPM++ 2M", cfg_scale=2.0)
        webui.script.process(p, name, nfe(name), name)
        assert "fallback" in str(p.amed.error)
        webui.script.process(p, name, nfe(name), webui.run.SETTINGS)
        assert "no predictor named" in str(p.amed.error)
    odd = ("²", "٣", "9" * 5000, "-1", "1e9", "", "5.0", "0x5", "\0", " 5")
    assert [nfe(text) for text in odd] == [0] * len(odd) and nfe("12") == 12


@pytest.mark.parametrize("nfe", [float("inf"), float("nan"), "9" * 5000, "²", -1, 10**400, [], "x", 1e308])
def test_an_invalid_number_is_an_error_with_a_message(webui, nfe):
    p = webui.Processing(sampler_name="AMED Multistep", cfg_scale=2.0)
    webui.script.process(p, "auto", nfe, "error")
    assert p.amed.error is None or "NFE" in str(p.amed.error)
    assert p.amed.error is not None or nfe == []


@pytest.mark.parametrize("field", ["width", "height", "batch", "seed", "guidance", "nfe", "name", "budget"])
def test_an_invalid_calibration_request_is_an_error_with_a_message(webui, field):
    for value in json.loads('[1e999, -1e999, NaN, null, [], {}, "", "x", "../x", true, [[1]]]'):
        try:
            form = webui.calibrate.Form.of({**QUICK, field: value})
        except ValueError as error:
            assert len(str(error)) < 1000
        else:
            assert form.nfe and 64 <= form.width <= 4096 or form.width


def test_a_calibration_is_saved_in_its_folder(webui):
    """Under the given name, or the checkpoint's, which comes from a file and may be anything."""
    form = webui.calibrate.Form.of({**QUICK, "width": 64, "height": 64})
    for name in SOME:
        for named, checkpoint in ((name, "c"), ("", name)):
            form_with_name = webui.calibrate.Form(**{**vars(form), "name": named})
            try:
                file = form_with_name.file_name(5, checkpoint)
            except ValueError as error:
                assert "not a valid file name" in str(error) and (named.strip() or "device" in str(error))
                continue
            path = webui.host.user_folder() / file
            assert path.parent == webui.host.user_folder() and path.suffix == ".safetensors"
            assert not set("/\\:\0\n") & set(file) and len(file.encode()) < 230


def test_lists_show_good_files_and_name_links_and_broken_ones(webui):
    """GET /amed/predictors, and the page's dropdown."""
    secret(webui)
    folder = webui.host.user_folder()
    (folder / "link.safetensors").symlink_to(folder.parent / "secret.safetensors")
    (folder / "gone.safetensors").symlink_to(folder / "nothing")
    (folder / "mine.safetensors").write_bytes((folder.parent / "secret.safetensors").read_bytes())
    (folder / "<img src=x onerror=alert(1)>.safetensors").write_bytes(b"x")
    with open(bytes(folder) + b"/\xff.safetensors", "wb") as file:
        file.write(b"x")
    assert "mine.safetensors" in webui.ui.predictor_choices()
    assert not {"link.safetensors", "gone.safetensors"} & set(webui.ui.predictor_choices())
    told = webui.tab.list_predictors()
    json.dumps(told, ensure_ascii=False).encode()
    broken = " ".join(told["broken"])
    assert all(name in broken for name in ("link.safetensors", "gone.safetensors", "?.safetensors"))


def test_names_are_escaped_as_html(webui):
    """The line below the accordion is Markdown, which may contain HTML, and names come with files."""
    shown = webui.ui.status("AMED Plugin DPM++ 2M", 10, 2.0, "<img src=x onerror=alert(1)>", 0)
    assert "<" not in shown and "&lt;img" in shown
