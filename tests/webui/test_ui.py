"""The status line, the settings page, the X/Y/Z axes, the WebUI's lists, and the loading of the extension."""

import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


def test_installed(webui):
    lists = webui.webui.sd_samplers
    assert set(webui.samplers.LABELS) < set(lists.all_samplers_map)
    assert lists.samplers_map["amed_ipndm"] == "AMED Plugin iPNDM"
    assert lists.samplers_map["amed_uni_pc"] == "AMED Plugin UniPC"
    assert lists.samplers_map["amed_deis"] == "AMED Plugin DEIS"
    assert webui.webui.sd_schedulers.schedulers_map["AMED"].need_inner_model
    assert set(webui.registered) == {"on_model_loaded", "on_ui_tabs", "on_app_started"}


def test_reloading_the_scripts_adds_nothing_twice(webui):
    lists, before = webui.webui.sd_samplers, len(webui.webui.sd_samplers.all_samplers)
    extension = sys.modules["amed_webui.extension"]
    webui.webui.shared.opts.data["amed_samplers"] = ["AMED"]
    extension.install()
    assert len(lists.all_samplers) == before
    assert "AMED Multistep" in lists.samplers_hidden and "AMED" not in lists.samplers_hidden
    assert len([s for s in webui.webui.sd_schedulers.schedulers if s.name == "amed"]) == 1


def test_settings_page(webui):
    opts = webui.webui.shared.opts
    assert {n: opts.data[n] for n in opts.data_labels} == {
        "amed_predictor": "auto", "amed_nfe": 0, "amed_fallback": "plain",
        "amed_samplers": list(webui.samplers.LABELS),
    }  # fmt: skip
    assert "auto" in opts.data_labels["amed_predictor"].component_args()["choices"]


def test_axes(webui):
    Option = namedtuple("Option", "label type apply confirm choices", defaults=[None, None])
    module = SimpleNamespace(AxisOption=Option, axis_options=[Option("Seed", int, None)])
    webui.webui.scripts.scripts_data.append(SimpleNamespace(module=module))
    webui.ui.add_axes()
    webui.ui.add_axes()
    assert [o.label for o in module.axis_options] == ["Seed", "[AMED] Predictor", "[AMED] NFE"]
    p = SimpleNamespace()
    module.axis_options[2].apply(p, 7, [5, 7])
    module.axis_options[1].apply(p, "untrained", ["auto", "untrained"])
    assert (p.amed_nfe, p.amed_predictor) == (7, "untrained")
    module.axis_options[1].confirm(p, ["auto", "emoji32-amed-nfe5-cfg1.safetensors"])
    with pytest.raises(RuntimeError, match="nothing"):
        module.axis_options[1].confirm(p, ["nothing"])


@pytest.mark.parametrize("given, words", [
    (("Euler", 20, 7, "auto", 0), ["Choose one of the AMED samplers"]),
    (("AMED", 20, 7, "auto", 0), ["**20** evaluations (20 steps)", "40 network passes", "plain solver"]),
    (("AMED", 20, 1, "untrained", 5), ["**5** evaluations (3 steps)", "untrained"]),
    (("AMED", 20, 7, "untrained", 0), ["**40** evaluations (20 steps)", "80 network passes", "untrained"]),
    (("AMED Multistep", 6, 1, "auto", 0), ["**6** evaluations (6 steps)", "plain solver"]),
    (("AMED Plugin UniPC", 4, 1, "untrained", 0), ["**8** evaluations (4 steps)", "untrained"]),
    (("AMED Plugin DEIS", 4, 1, "auto", 5), ["**5** evaluations (5 steps)", "fit one in the AMED tab"]),
    (("AMED Plugin DEIS", 4, 1, "plain", 5), ["**5** evaluations (5 steps)", "plain solver."]),
    (("AMED", 3, 2, "emoji32-amed-nfe5-cfg1.safetensors", 0),
     ["**5** evaluations (3 steps)", "10 network passes", "fitted at guidance 1, CFG scale is 2"]),
    (("AMED Multistep", 3, 2, "emoji32-amed-nfe5-cfg1.safetensors", 0), ["choose the sampler AMED"]),
    (("AMED Plugin DPM++ 2M", 5, 7.5, "auto", 10), ["**10** evaluations (5 steps)", "sd15-dpmpp-2m-nfe10"]),
])  # fmt: skip
def test_status(webui, given, words):
    told = webui.ui.status(*given)
    assert all(word in told for word in words), told


def test_status_before_a_checkpoint_is_loaded(webui):
    sys.modules["modules.sd_models"].model_data.sd_model = None
    assert "no checkpoint is loaded yet" in webui.ui.status("AMED", 3, 7, "auto", 5)


def test_identity_is_read_once_before_any_lora(webui, tmp_path):
    """A host applies a LoRA to the weights in place; the checkpoint's identity must not change."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    webui.host.read_identity = webui.read_identity
    webui.checkpoint.sd_checkpoint_info.filename = str(file)
    (loaded,) = webui.registered["on_model_loaded"]
    first = loaded(webui.checkpoint)
    weight = webui.checkpoint.network.denoiser.inner_model.input.weight
    kept = weight.clone()
    weight.neg_()
    try:
        assert webui.host.identity(webui.checkpoint) == first and first.family == "sd15"
        assert webui.read_identity(webui.checkpoint) != first
    finally:
        weight.copy_(kept)


# --- loading -----------------------------------------------------------------------------------------------


def run_script(folder: Path, code: str = "") -> subprocess.CompletedProcess:
    """Load scripts/amed_webui.py by its path, as a host does, in another process."""
    load = f"""
import sys
{code}
import importlib.util
spec = importlib.util.spec_from_file_location("amed_webui.py", {str(ROOT / "scripts" / "amed_webui.py")!r})
module = importlib.util.module_from_spec(spec)
before = list(sys.path)
spec.loader.exec_module(module)
assert sys.path == before
print("went on", hasattr(module, "AmedScript"))
"""
    return subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, cwd=folder)


def test_a_failure_at_load_is_one_readable_line(tmp_path):
    done = run_script(tmp_path)  # no WebUI here
    assert done.returncode == 0 and done.stderr == ""
    first, last = done.stdout.splitlines()
    assert first.startswith("AMED: not loaded, the WebUI starts without it: ModuleNotFoundError")
    assert last == "went on False"


def test_another_package_of_our_name(tmp_path):
    (tmp_path / "amed").mkdir()
    (tmp_path / "amed" / "__init__.py").touch()
    done = run_script(tmp_path, "sys.path.insert(0, ''); import amed")
    assert "another package is called amed" in done.stdout and "went on False" in done.stdout


@pytest.mark.parametrize("how", ["webui", "by hand"])
def test_install_py(tmp_path, how):
    """install.py has nothing to do, from any folder, and imports nothing that takes time."""
    import os

    env = dict(os.environ, PYTHONPATH=str(tmp_path)) if how == "webui" else dict(os.environ)
    code = f"""
import runpy, sys
runpy.run_path({str(ROOT / "install.py")!r}, run_name="__main__")
assert {{m.split(".")[0] for m in sys.modules}}.isdisjoint({{"torch", "numpy", "safetensors", "pip", "amed"}})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_predictors_are_read_while_the_host_loads_a_checkpoint(monkeypatch):
    """A1111 patches torch's classes while a thread loads a checkpoint; the page and the API may list
    predictors at that moment."""
    import torch
    from torch import nn

    from amed import load

    file = ROOT / "predictors" / "emoji32-amed-nfe5-cfg2.safetensors"
    before = load(file)
    make, read = nn.Linear.__init__, nn.Module.load_state_dict

    def on_meta(self, *args, **kwargs):
        make(self, *args, **{**kwargs, "device": "meta"})

    monkeypatch.setattr(nn.Linear, "__init__", on_meta)
    monkeypatch.setattr(nn.Module, "to", lambda *args, **kwargs: None)
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, told: read(self, {}, strict=False))
    during = load(file)
    given = [torch.stack(fitted.predictor(3.0, 1.0)) for fitted in (during, before)]
    assert given[0].tolist() == given[1].tolist()
