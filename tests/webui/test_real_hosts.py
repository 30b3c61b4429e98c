"""AMED in a real AUTOMATIC1111, Forge and reForge, found by A1111_PATH, FORGE_PATH and REFORGE_PATH."""

import base64
import io
import json
import os
import re
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from real_webui import FLAGS, Refused, Server
from safetensors.torch import load_file

from amed import Fitted, Multistep, Solver, Spec, load, save, schedules
from amed.constants import as_multistep
from amed.fingerprint import fingerprint
from amed.fit import smallest_budget

SAMPLERS = ("AMED", "AMED Plugin Euler", "AMED Plugin DPM2", "AMED Plugin DPM++ 2M", "AMED Plugin DPM++ 3M",
            "AMED Plugin iPNDM", "AMED Plugin UniPC", "AMED Plugin DEIS", "AMED Multistep")  # fmt: skip
MLP = "emoji32-amed-nfe5-cfg2.safetensors"
FAMILY = "fitted for a model of the family emoji32, this is sd15"


@pytest.fixture(scope="module", params=sorted(FLAGS))
def server(request, tmp_path_factory):
    if not os.environ.get(request.param):
        warning = f"{request.param} is not set: AMED was NOT tested in that host (docs/WEBUI.md says how)"
        warnings.warn(warning, stacklevel=1)
        pytest.skip(warning)
    running_server = Server(request.param, tmp_path_factory.mktemp("webui"))
    yield running_server
    running_server.stop()


def generate(server, kind="txt2img", amed=None, **settings):
    """Return (image, infotext as a dictionary, the complete answer)."""
    payload = {
        "prompt": "a cat", "negative_prompt": "a dog", "steps": 3, "width": 64, "height": 64, "cfg_scale": 2,
        "seed": 1, "sampler_name": "AMED", **settings,
    }  # fmt: skip
    if amed is not None:
        payload["alwayson_scripts"] = {"amed": {"args": amed}}
    answer = server.post(f"/sdapi/v1/{kind}", payload)
    info = json.loads(answer["info"])
    return picture(answer["images"][0]), fields(info["infotexts"][0]), answer


def picture(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


def fields(infotext):
    """Parse the `Key: value, Key: "a value, quoted"` of an infotext's last line."""
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', infotext.splitlines()[-1])
    return {k: json.loads(v) if v.startswith('"') else v for k, v in pairs}


def base64_of(colour, size=64):
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def axes(server):
    """Return the X/Y/Z plot's axes, from its API."""
    plot = next(s for s in server.get("/sdapi/v1/script-info") if s["name"] == "x/y/z plot")
    return next(a["choices"] for a in plot["args"] if a["label"] == "X type"), plot["args"]


def test_the_extension_loads(server):
    assert "AMED: " not in server.log  # the host logs only failures
    listed = {s["name"]: s for s in server.get("/sdapi/v1/samplers")}
    assert set(SAMPLERS) <= set(listed)
    assert listed["AMED"]["options"]["scheduler"] == "amed"
    assert "AMED" in [s["label"] for s in server.get("/sdapi/v1/schedulers")]
    ours = [s for s in server.get("/sdapi/v1/script-info") if s["name"] == "amed"]
    assert sorted(s["is_img2img"] for s in ours) == [False, True] and all(s["is_alwayson"] for s in ours)
    choices = ours[0]["args"][0]["choices"]
    assert choices[:3] == ["auto", "plain", "untrained"] and not any("emoji" in name for name in choices)
    assert {"[AMED] Predictor", "[AMED] NFE"} <= set(axes(server)[0])
    assert MLP in server.get("/amed/predictors")["predictors"]
    if server.kind == "A1111_PATH":  # Forge's API does not list extensions' options
        options = server.get("/sdapi/v1/options")
        assert options["amed_nfe"] == 0 and options["amed_samplers"] == list(SAMPLERS)


def test_the_page_has_accordion_and_tab(server):
    """The page contains the accordion and the tab."""
    ids = {c["props"].get("elem_id") for c in server.get("/config")["components"]}
    for tab in ("txt2img", "img2img"):
        assert {f"{tab}_amed", f"{tab}_amed_predictor", f"{tab}_amed_nfe", f"{tab}_amed_status"} <= ids
    assert {"amed_calibrate", "amed_interrupt", "amed_result"} <= ids


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler(server, name):
    image, infotext, _ = generate(server, amed=["auto", 0, "untrained"], sampler_name=name)
    each = 1 if name == "AMED Multistep" else 2
    assert image.shape == (64, 64, 3) and image.std() > 5
    assert (infotext["Sampler"], infotext["Schedule type"], infotext["Steps"]) == (name, "AMED", "3")
    assert infotext["AMED predictor"] == "untrained" and "no predictor" in infotext["AMED note"]
    assert int(infotext["AMED evaluations"]) == 3 * each
    assert int(infotext["AMED network passes"]) == 6 * each


def test_default_settings_run_the_plain_solver(server):
    """With the default settings the plain solver runs, with as many evaluations as steps, and one line says
    so."""
    image, infotext, _ = generate(server, sampler_name="AMED", steps=5)
    assert image.std() > 5 and (infotext["AMED predictor"], infotext["AMED evaluations"]) == ("plain", "5")
    assert "no predictor" in infotext["AMED note"] and int(infotext["AMED network passes"]) == 10


def test_untrained_dpmpp_2m_ends_like_the_hosts(server):
    """The untrained plugin on DPM++ 2M with many steps ends where the host's sampler does."""
    plugin = {"amed": ["auto", 0, "untrained"], "sampler_name": "AMED Plugin DPM++ 2M"}
    ours, _, _ = generate(server, steps=30, **plugin)
    theirs, _, _ = generate(server, sampler_name="DPM++ 2M", scheduler="Karras", steps=60)
    other, _, _ = generate(server, sampler_name="DPM++ 2M", scheduler="Karras", steps=60, seed=2)
    assert abs(ours - theirs).mean() < 0.2 * abs(other - theirs).mean()


@pytest.mark.parametrize("settings, passes", [
    ({}, 10), ({"cfg_scale": 1}, None), ({"prompt": "a cat AND a house :0.5"}, 15), ({"batch_size": 3}, 10),
    ({"prompt": "a cat " * 90}, 10), ({"height": 72, "width": 80}, 10),
])  # fmt: skip
def test_the_bottleneck_is_captured(server, settings, passes):
    """A predictor that reads the bottleneck gets the prompt's rows: there is no remark about it."""
    _, infotext, answer = generate(server, amed=[MLP], **settings)
    assert (
        infotext["AMED predictor"] == MLP and infotext["AMED evaluations"] == "5" and infotext["Steps"] == "3"
    )
    assert "zeros" not in infotext["AMED note"] and FAMILY in infotext["AMED note"]
    assert passes is None or int(infotext["AMED network passes"]) == passes


def test_a_batch_equals_its_single_images(server):
    """Image 2 of a batch equals the single image of seed + 1, so each image got its own rows."""
    _, _, answer = generate(server, amed=[MLP], batch_size=2)
    pair = [picture(image) for image in answer["images"]][-2:]
    alone, _, _ = generate(server, amed=[MLP], seed=2)
    assert abs(pair[1] - alone).mean() < 2 < abs(pair[0] - alone).mean()


def test_the_halves_of_guidance(server):
    """1.5 times the weight on what guidance adds at CFG scale 2 equals a plain predictor at 3, at the same
    cost.

    Also in a batch, for AND, and in inpainting."""
    times = schedules.make("discrete", 5, 0.03, 14.6)
    plain_table = as_multistep(Solver("ipndm", 2), times)
    weights = torch.cat([plain_table.weights, 1.5 * plain_table.weights], dim=-1)
    for name, table in (("whole", plain_table), ("halves", Multistep(times, weights, parts="guidance"))):
        spec = Spec.on(Solver("multistep"), times, parts=table.parts, guidance=2.0, model_family="sd15")
        save(server.data / "models" / "AMED" / f"{name}.safetensors", Fitted(spec, table, times))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    painted = {
        "init_images": [base64_of("red")], "denoising_strength": 0.8, "inpainting_fill": 1, "mask_blur": 0,
        "mask": base64.b64encode(file.getvalue()).decode(),
    }  # fmt: skip
    for kind, more in (
        ("txt2img", {}),
        ("txt2img", {"prompt": "a cat AND a house", "batch_size": 2}),
        ("img2img", painted),
    ):
        settings = {"sampler_name": "AMED Multistep", **more}
        # first, because the picture is encoded with noise that depends on the previous generation
        other, _, _ = generate(server, kind, ["whole.safetensors"], **settings, cfg_scale=2)
        image, infotext, _ = generate(server, kind, ["halves.safetensors"], **settings, cfg_scale=2)
        expected, plain, _ = generate(server, kind, ["whole.safetensors"], **settings, cfg_scale=3)
        assert abs(image - expected).mean() < 0.1 * abs(other - expected).mean(), more
        assert infotext["AMED network passes"] == plain["AMED network passes"]


def test_nfe_sets_the_evaluations(server):
    for fallback, steps in (("plain", "7"), ("untrained", "4")):
        _, infotext, _ = generate(server, amed=["auto", 7, fallback])
        assert (infotext["AMED evaluations"], infotext["Steps"], infotext["AMED NFE"]) == ("7", steps, "7")
        assert infotext["AMED predictor"] == fallback
    name = "AMED Plugin DPM++ 2M"
    _, infotext, _ = generate(server, sampler_name=name, override_settings={"amed_nfe": 10})
    assert (
        infotext["AMED predictor"] == "sd15-dpmpp-2m-nfe10.safetensors"
        and infotext["AMED evaluations"] == "10"
    )
    assert infotext["AMED note"] == "fitted at guidance 7.5, running at 2"
    _, infotext, _ = generate(server, sampler_name=name)  # for this generation only
    assert (infotext["AMED predictor"], infotext["AMED evaluations"]) == (
        "plain",
        "3",
    ) and "AMED NFE" not in infotext


@pytest.mark.parametrize("amed, words", [
    (["auto", 5, "error"], "no predictor for"), (["auto", "x"], "whole number"),
    (["none.safetensors"], "there are"), ([MLP, 9], "takes 5 evaluations, not 9"),
])  # fmt: skip
def test_bad_input_is_an_error(server, amed, words):
    with pytest.raises(Refused, match=words):
        generate(server, amed=amed)
    generate(server)


def test_an_infotext_reproduces_its_image(server):
    """An image's infotext reproduces it."""
    image, infotext, answer = generate(server, amed=[MLP])
    text = json.loads(answer["info"])["infotexts"][0]
    read = server.post("/sdapi/v1/png-info", {"image": "data:image/png;base64," + answer["images"][0]})
    assert read["info"] == text and read["parameters"]["AMED predictor"] == MLP
    if server.kind == "FORGE_PATH":  # its API fails on any infotext that sets an option
        again, new, _ = generate(server, amed=[read["parameters"]["AMED predictor"]])
    else:
        answer = server.post("/sdapi/v1/txt2img", {"infotext": text})
        again, new = picture(answer["images"][0]), fields(json.loads(answer["info"])["infotexts"][0])
    assert (again == image).all() and new == infotext


def test_img2img_and_inpainting(server):
    start = {"init_images": [base64_of("red")], "denoising_strength": 0.6}
    _, infotext, _ = generate(server, "img2img", amed=[MLP], **start)
    assert infotext["AMED evaluations"] == "4" and infotext["AMED note"] == FAMILY  # 2 of 3 steps run
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    painted = {"mask": base64.b64encode(file.getvalue()).decode(), "mask_blur": 0, "inpainting_fill": 1}
    image, infotext, _ = generate(server, "img2img", amed=[MLP], **start, **painted)
    assert infotext["AMED predictor"] == MLP
    assert abs(image[:, :16] - [255, 0, 0]).mean() < 3 < abs(image[:, 48:] - [255, 0, 0]).mean()


def test_hires_fix(server):
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    forge = {"hr_additional_modules": ["Use same choices"], "hr_cfg": 2}
    image, infotext, _ = generate(
        server, amed=[MLP], **hires, **(forge if server.kind == "FORGE_PATH" else {})
    )
    assert image.shape == (96, 96, 3) and infotext["AMED evaluations"] == "5"
    assert infotext["AMED hires predictor"] == MLP and "interpolated" in infotext["AMED hires note"]


def test_refiner(server):
    """The checkpoint changes in mid-run; rows are found in both."""
    swap = {"refiner_checkpoint": "other", "refiner_switch_at": 0.5}
    image, infotext, _ = generate(server, amed=[MLP], **swap)
    assert infotext["Refiner"].startswith("other") and infotext["AMED evaluations"] == "5" and image.std() > 5
    plain, _, _ = generate(server, amed=[MLP])
    assert abs(plain - image).mean() > 1


def test_karras_and_our_schedule_for_other_samplers(server):
    _, infotext, _ = generate(server, amed=[MLP], scheduler="Karras")
    assert infotext["Schedule type"] == "Karras" and "choose the AMED schedule" in infotext["AMED note"]
    image, infotext, _ = generate(server, sampler_name="Euler", scheduler="AMED")
    assert infotext["Schedule type"] == "AMED" and image.std() > 5 and "AMED predictor" not in infotext


def test_an_xyz_plot(server):
    """An X/Y/Z plot over NFE and predictor."""
    names, arguments = axes(server)
    values = [a["value"] if a.get("value") is not None else "" for a in arguments]
    labels = [a["label"] for a in arguments]
    at = {name: labels.index(name) for name in ("X type", "X values", "Y type", "Y values", "Z type")}
    values[at["Z type"]] = names.index("Nothing")
    values[labels.index("Include Sub Images")] = True
    values[at["X type"]], values[at["X values"]] = names.index("[AMED] NFE"), "3, 5"
    values[at["Y type"]], values[at["Y values"] + 1] = names.index("[AMED] Predictor"), ["auto", "untrained"]
    _, _, answer = generate(server, script_name="x/y/z plot", script_args=values)
    infotexts = [fields(text) for text in json.loads(answer["info"])["infotexts"]]
    assert sorted(int(t["AMED evaluations"]) for t in infotexts)[:1] == [3]
    assert {t["AMED evaluations"] for t in infotexts} == {"3", "5"}


def test_an_interruption(server):
    """The run stops at once, and the next generation works."""
    results = {}
    thread = threading.Thread(target=lambda: results.update(answer=generate(server, steps=150)))
    thread.start()
    while not server.get("/sdapi/v1/progress")["state"]["sampling_step"] >= 3:
        assert thread.is_alive()
        time.sleep(0.1)
    state = server.get("/sdapi/v1/progress")["state"]
    assert state["sampling_steps"] == 150
    server.post("/sdapi/v1/interrupt")
    thread.join()
    _, infotext, _ = results["answer"]
    assert int(infotext["AMED evaluations"]) < 150
    generate(server, amed=[MLP])


@pytest.mark.parametrize("amed, settings", [
    ([MLP], {}), (["auto", 3, "untrained"], {"sampler_name": "AMED Plugin iPNDM"}),
    (["auto", 3, "plain"], {"sampler_name": "AMED Multistep"}),
])  # fmt: skip
def test_out_of_memory(server, amed, settings):
    """At each evaluation: the host's own error, nothing left on the U-Net, and the same image afterwards."""
    before, infotext, _ = generate(server, amed=amed, **settings)
    for call in range(1, int(infotext["AMED evaluations"]) + 1):
        hooks = server.get(f"/failing?call={call}")["hooks"]
        with pytest.raises(Refused, match="OutOfMemoryError|Tried to allocate"):
            generate(server, amed=amed, **settings)
        assert server.get("/failing")["hooks"] == hooks, call
    after, _, _ = generate(server, amed=amed, **settings)
    assert (after == before).all()


def test_a_fit_out_of_memory(server):
    """The error is shown, nothing is saved or left behind, and the next generation works."""
    request = {"prompts": "a cat", "width": 64, "height": 64, "nfe": "2", "budget": smallest_budget(2)}
    before, _, _ = generate(server)
    folder = server.data / "models" / "AMED"
    listed = sorted(folder.glob("*"))
    for call in (1, 30):
        hooks = server.get(f"/failing?call={call}")["hooks"]
        with pytest.raises(Refused, match="OutOfMemoryError|Tried to allocate"):
            server.post("/amed/calibrate", request)
        assert server.get("/failing")["hooks"] == hooks and sorted(folder.glob("*")) == listed
        assert not server.get("/sdapi/v1/progress")["state"]["job"]
    after, _, _ = generate(server)
    assert (after == before).all()


def test_calibrate_in_the_host(server):
    """A predictor is fitted in the host for its checkpoint, saved and found; an interruption stops the
    fit."""
    request = {
        "prompts": "a cat\na dog", "width": 64, "height": 64, "guidance": 2, "nfe": "2",
        "budget": smallest_budget(2),
    }  # fmt: skip
    with pytest.raises(Refused, match="1 to 8"):
        server.post("/amed/calibrate", {"prompts": ""})
    results = {}
    thread = threading.Thread(target=lambda: results.update(answer=server.post("/amed/calibrate", request)))
    thread.start()
    while not server.get("/sdapi/v1/progress")["state"]["sampling_step"] >= 50:
        assert thread.is_alive()
        time.sleep(0.2)
    state = server.get("/sdapi/v1/progress")["state"]
    assert state["job"] == "AMED calibration" and state["sampling_steps"] == request["budget"]
    server.post("/sdapi/v1/interrupt")
    thread.join()
    assert results["answer"]["interrupted"] and results["answer"]["saved"] == []

    answer = server.post("/amed/calibrate", request)
    assert answer["saved"] == ["tiny-multistep-nfe2-cfg2.safetensors"] and not answer["interrupted"]
    assert picture(answer["images"][0]).shape[1] > 400
    fitted = load(server.data / "models" / "AMED" / answer["saved"][0])
    weights = load_file(server.models / "tiny.safetensors")
    network = {k: v for k, v in weights.items() if k.startswith("model.diffusion_model.")}
    assert fitted.spec.model_fingerprint == fingerprint(network.items())  # in the form that ComfyUI reads too
    _, infotext, _ = generate(server, sampler_name="AMED Multistep", amed=["auto", 2, "error"])
    assert infotext["AMED predictor"] == answer["saved"][0] and "AMED note" not in infotext
    assert server.get("/amed/predictors")["broken"] == []


def test_a_predictor_around_a_host_sampler(server):
    """DPM++ 2M with a predictor fitted around it gives another image; without it, the same image as
    before."""
    settings = {"sampler_name": "DPM++ 2M", "scheduler": "Automatic", "steps": 4}
    before, infotext, _ = generate(server, **settings)
    assert not any(key.startswith("AMED") for key in infotext)
    request = {
        "prompts": "a cat\na dog", "width": 64, "height": 64, "guidance": 2, "nfe": "4",
        "budget": smallest_budget(4), "sampler": "DPM++ 2M",
    }  # fmt: skip
    with pytest.raises(Refused, match="choose one of .*DPM\\+\\+ 2M"):
        server.post("/amed/calibrate", request | {"sampler": "Euler a"})
    (name,) = server.post("/amed/calibrate", request)["saved"]
    fitted = load(server.data / "models" / "AMED" / name)
    assert (fitted.spec.of, fitted.nfe, len(fitted.base)) == ("dpmpp_2m", 4, 4)
    assert fitted.spec.metrics["error"] <= fitted.spec.metrics["plain_error"]

    image, infotext, _ = generate(server, amed=[name], **settings | {"steps": 20})
    assert (infotext["Sampler"], infotext["Schedule type"], infotext["Steps"]) == ("DPM++ 2M", "AMED", "4")
    assert (infotext["AMED predictor"], infotext["AMED evaluations"]) == (
        name,
        "4",
    ) and "AMED note" not in infotext
    assert image.std() > 5 and abs(image - before).mean() > 1
    again, _, _ = generate(server, amed=[name], **settings)
    assert (again == image).all()
    _, infotext, _ = generate(server, amed=[name], **settings | {"scheduler": "Karras"})
    assert "choose the AMED schedule" in infotext["AMED note"]
    euler, infotext, _ = generate(server, **settings | {"sampler_name": "Euler"})
    other, infotext, _ = generate(server, amed=[name], **settings | {"sampler_name": "Euler"})
    assert (other == euler).all() and infotext[
        "Sampler"
    ] == "Euler"  # another sampler: the predictor is not used

    after, infotext, _ = generate(server, **settings)
    assert (after == before).all() and not any(key.startswith("AMED") for key in infotext)
