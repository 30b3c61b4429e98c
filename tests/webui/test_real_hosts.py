"""AMED in a real AUTOMATIC1111, Forge and reForge, where A1111_PATH, FORGE_PATH and REFORGE_PATH say where
they are."""

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
from real import FLAGS, Refused, Server
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
        told = f"{request.param} is not set: AMED was NOT tested in that host (docs/WEBUI.md says how)"
        warnings.warn(told, stacklevel=1)
        pytest.skip(told)
    made = Server(request.param, tmp_path_factory.mktemp("webui"))
    yield made
    made.stop()


def generate(server, kind="txt2img", amed=None, **settings):
    """(image, infotext as a dictionary, the whole answer)."""
    told = {
        "prompt": "a cat", "negative_prompt": "a dog", "steps": 3, "width": 64, "height": 64, "cfg_scale": 2,
        "seed": 1, "sampler_name": "AMED", **settings,
    }  # fmt: skip
    if amed is not None:
        told["alwayson_scripts"] = {"amed": {"args": amed}}
    answer = server.post(f"/sdapi/v1/{kind}", told)
    info = json.loads(answer["info"])
    return picture(answer["images"][0]), fields(info["infotexts"][0]), answer


def picture(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


def fields(infotext):
    """`Key: value, Key: "a value, quoted"` of an infotext's last line."""
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', infotext.splitlines()[-1])
    return {k: json.loads(v) if v.startswith('"') else v for k, v in found}


def base64_of(colour, size=64):
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def axes(server):
    """The X/Y/Z plot's axes, by its API."""
    plot = next(s for s in server.get("/sdapi/v1/script-info") if s["name"] == "x/y/z plot")
    return next(a["choices"] for a in plot["args"] if a["label"] == "X type"), plot["args"]


def test_it_loads(server):
    assert "AMED: " not in server.log  # only failures are told
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
    if server.kind == "A1111_PATH":  # Forge's API tells no extension's options
        options = server.get("/sdapi/v1/options")
        assert options["amed_nfe"] == 0 and options["amed_samplers"] == list(SAMPLERS)


def test_the_page(server):
    """Accordion and tab stand in the page."""
    ids = {c["props"].get("elem_id") for c in server.get("/config")["components"]}
    for tab in ("txt2img", "img2img"):
        assert {f"{tab}_amed", f"{tab}_amed_predictor", f"{tab}_amed_nfe", f"{tab}_amed_status"} <= ids
    assert {"amed_calibrate", "amed_interrupt", "amed_result"} <= ids


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler(server, name):
    image, told, _ = generate(server, amed=["auto", 0, "untrained"], sampler_name=name)
    each = 1 if name == "AMED Multistep" else 2
    assert image.shape == (64, 64, 3) and image.std() > 5
    assert (told["Sampler"], told["Schedule type"], told["Steps"]) == (name, "AMED", "3")
    assert told["AMED predictor"] == "untrained" and "no predictor" in told["AMED note"]
    assert int(told["AMED evaluations"]) == 3 * each
    assert int(told["AMED network passes"]) == 6 * each


def test_first_click(server):
    """No predictor, nothing set: the plain solver at as many evaluations as steps, in one line."""
    image, told, _ = generate(server, sampler_name="AMED", steps=5)
    assert image.std() > 5 and (told["AMED predictor"], told["AMED evaluations"]) == ("plain", "5")
    assert "no predictor" in told["AMED note"] and int(told["AMED network passes"]) == 10


def test_like_the_hosts_own(server):
    """The untrained plugin on DPM++ 2M at many steps ends where the host's own does."""
    plugin = {"amed": ["auto", 0, "untrained"], "sampler_name": "AMED Plugin DPM++ 2M"}
    ours, _, _ = generate(server, steps=30, **plugin)
    theirs, _, _ = generate(server, sampler_name="DPM++ 2M", scheduler="Karras", steps=60)
    other, _, _ = generate(server, sampler_name="DPM++ 2M", scheduler="Karras", steps=60, seed=2)
    assert abs(ours - theirs).mean() < 0.2 * abs(other - theirs).mean()


@pytest.mark.parametrize("settings, passes", [
    ({}, 10), ({"cfg_scale": 1}, None), ({"prompt": "a cat AND a house :0.5"}, 15), ({"batch_size": 3}, 10),
    ({"prompt": "a cat " * 90}, 10), ({"height": 72, "width": 80}, 10),
])  # fmt: skip
def test_the_network_is_read(server, settings, passes):
    """A predictor that looks at the U-Net gets the prompt's rows: the note has no complaint of it."""
    _, told, answer = generate(server, amed=[MLP], **settings)
    assert told["AMED predictor"] == MLP and told["AMED evaluations"] == "5" and told["Steps"] == "3"
    assert "zeros" not in told["AMED note"] and FAMILY in told["AMED note"]
    assert passes is None or int(told["AMED network passes"]) == passes


def test_a_batch_is_its_images(server):
    """Image 2 of a batch is the image of seed + 1 alone: each was given its own rows."""
    _, _, answer = generate(server, amed=[MLP], batch_size=2)
    pair = [picture(image) for image in answer["images"]][-2:]
    alone, _, _ = generate(server, amed=[MLP], seed=2)
    assert abs(pair[1] - alone).mean() < 2 < abs(pair[0] - alone).mean()


def test_the_halves_of_guidance(server):
    """A predictor with 1.5 times the weight on what guidance adds does at CFG scale 2 what a plain one does
    at 3, and costs the same; so in a batch, for AND, and in inpainting."""
    times = schedules.make("discrete", 5, 0.03, 14.6)
    whole = as_multistep(Solver("ipndm", 2), times)
    weights = torch.cat([whole.weights, 1.5 * whole.weights], dim=-1)
    for name, table in (("whole", whole), ("halves", Multistep(times, weights, parts="guidance"))):
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
        own = {"sampler_name": "AMED Multistep", **more}
        # first: the picture is encoded with noise that the generation before leaves to be drawn
        other, _, _ = generate(server, kind, ["whole.safetensors"], **own, cfg_scale=2)
        image, told, _ = generate(server, kind, ["halves.safetensors"], **own, cfg_scale=2)
        expected, plain, _ = generate(server, kind, ["whole.safetensors"], **own, cfg_scale=3)
        assert abs(image - expected).mean() < 0.1 * abs(other - expected).mean(), more
        assert told["AMED network passes"] == plain["AMED network passes"]


def test_nfe(server):
    for fallback, steps in (("plain", "7"), ("untrained", "4")):
        _, told, _ = generate(server, amed=["auto", 7, fallback])
        assert (told["AMED evaluations"], told["Steps"], told["AMED NFE"]) == ("7", steps, "7")
        assert told["AMED predictor"] == fallback
    name = "AMED Plugin DPM++ 2M"
    _, told, _ = generate(server, sampler_name=name, override_settings={"amed_nfe": 10})
    assert told["AMED predictor"] == "sd15-dpmpp-2m-nfe10.safetensors" and told["AMED evaluations"] == "10"
    assert told["AMED note"] == "fitted at guidance 7.5, running at 2"
    _, told, _ = generate(server, sampler_name=name)  # for that one generation
    assert (told["AMED predictor"], told["AMED evaluations"]) == ("plain", "3") and "AMED NFE" not in told


@pytest.mark.parametrize("amed, words", [
    (["auto", 5, "error"], "no predictor for"), (["auto", "x"], "whole number"),
    (["none.safetensors"], "there are"), ([MLP, 9], "takes 5 evaluations, not 9"),
])  # fmt: skip
def test_bad_input(server, amed, words):
    with pytest.raises(Refused, match=words):
        generate(server, amed=amed)
    generate(server)


def test_infotext_is_read_back(server):
    """What an image says of itself makes it again."""
    image, told, answer = generate(server, amed=[MLP])
    text = json.loads(answer["info"])["infotexts"][0]
    read = server.post("/sdapi/v1/png-info", {"image": "data:image/png;base64," + answer["images"][0]})
    assert read["info"] == text and read["parameters"]["AMED predictor"] == MLP
    if server.kind == "FORGE_PATH":  # whose API fails on any infotext that sets an option
        again, new, _ = generate(server, amed=[read["parameters"]["AMED predictor"]])
    else:
        answer = server.post("/sdapi/v1/txt2img", {"infotext": text})
        again, new = picture(answer["images"][0]), fields(json.loads(answer["info"])["infotexts"][0])
    assert (again == image).all() and new == told


def test_img2img_and_inpainting(server):
    start = {"init_images": [base64_of("red")], "denoising_strength": 0.6}
    _, told, _ = generate(server, "img2img", amed=[MLP], **start)
    assert told["AMED evaluations"] == "4" and told["AMED note"] == FAMILY  # 2 of 3 steps
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    painted = {"mask": base64.b64encode(file.getvalue()).decode(), "mask_blur": 0, "inpainting_fill": 1}
    image, told, _ = generate(server, "img2img", amed=[MLP], **start, **painted)
    assert told["AMED predictor"] == MLP
    assert abs(image[:, :16] - [255, 0, 0]).mean() < 3 < abs(image[:, 48:] - [255, 0, 0]).mean()


def test_hires_fix(server):
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    forge = {"hr_additional_modules": ["Use same choices"], "hr_cfg": 2}
    image, told, _ = generate(server, amed=[MLP], **hires, **(forge if server.kind == "FORGE_PATH" else {}))
    assert image.shape == (96, 96, 3) and told["AMED evaluations"] == "5"
    assert told["AMED hires predictor"] == MLP and "interpolated" in told["AMED hires note"]


def test_refiner(server):
    """The checkpoint is another one in mid-run; the rows are found in whichever runs."""
    swap = {"refiner_checkpoint": "other", "refiner_switch_at": 0.5}
    image, told, _ = generate(server, amed=[MLP], **swap)
    assert told["Refiner"].startswith("other") and told["AMED evaluations"] == "5" and image.std() > 5
    plain, _, _ = generate(server, amed=[MLP])
    assert abs(plain - image).mean() > 1


def test_karras_and_our_schedule_elsewhere(server):
    _, told, _ = generate(server, amed=[MLP], scheduler="Karras")
    assert told["Schedule type"] == "Karras" and "choose the AMED schedule" in told["AMED note"]
    image, told, _ = generate(server, sampler_name="Euler", scheduler="AMED")
    assert told["Schedule type"] == "AMED" and image.std() > 5 and "AMED predictor" not in told


def test_plot(server):
    """An X/Y/Z plot over NFE and predictor."""
    names, arguments = axes(server)
    given = [a["value"] if a.get("value") is not None else "" for a in arguments]
    labels = [a["label"] for a in arguments]
    at = {name: labels.index(name) for name in ("X type", "X values", "Y type", "Y values", "Z type")}
    given[at["Z type"]] = names.index("Nothing")
    given[labels.index("Include Sub Images")] = True
    given[at["X type"]], given[at["X values"]] = names.index("[AMED] NFE"), "3, 5"
    given[at["Y type"]], given[at["Y values"] + 1] = names.index("[AMED] Predictor"), ["auto", "untrained"]
    _, _, answer = generate(server, script_name="x/y/z plot", script_args=given)
    told = [fields(text) for text in json.loads(answer["info"])["infotexts"]]
    assert sorted(int(t["AMED evaluations"]) for t in told)[:1] == [3]
    assert {t["AMED evaluations"] for t in told} == {"3", "5"}


def test_interrupt(server):
    """It stops at once; the generation after it runs."""
    done = {}
    thread = threading.Thread(target=lambda: done.update(answer=generate(server, steps=150)))
    thread.start()
    while not server.get("/sdapi/v1/progress")["state"]["sampling_step"] >= 3:
        assert thread.is_alive()
        time.sleep(0.1)
    state = server.get("/sdapi/v1/progress")["state"]
    assert state["sampling_steps"] == 150
    server.post("/sdapi/v1/interrupt")
    thread.join()
    _, told, _ = done["answer"]
    assert int(told["AMED evaluations"]) < 150
    generate(server, amed=[MLP])


@pytest.mark.parametrize("amed, own", [
    ([MLP], {}), (["auto", 3, "untrained"], {"sampler_name": "AMED Plugin iPNDM"}),
    (["auto", 3, "plain"], {"sampler_name": "AMED Multistep"}),
])  # fmt: skip
def test_out_of_memory(server, amed, own):
    """At each evaluation: the host's own error, nothing left on the U-Net, the same image after it."""
    before, told, _ = generate(server, amed=amed, **own)
    for call in range(1, int(told["AMED evaluations"]) + 1):
        hooks = server.get(f"/failing?call={call}")["hooks"]
        with pytest.raises(Refused, match="OutOfMemoryError|Tried to allocate"):
            generate(server, amed=amed, **own)
        assert server.get("/failing")["hooks"] == hooks, call
    after, _, _ = generate(server, amed=amed, **own)
    assert (after == before).all()


def test_a_fit_out_of_memory(server):
    """It is told, nothing is saved or left, and the next generation runs."""
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


def test_calibrate(server):
    """Fitted in the host for its checkpoint, saved, and found from then on; an interruption stops it."""
    request = {
        "prompts": "a cat\na dog", "width": 64, "height": 64, "guidance": 2, "nfe": "2",
        "budget": smallest_budget(2),
    }  # fmt: skip
    with pytest.raises(Refused, match="1 to 8"):
        server.post("/amed/calibrate", {"prompts": ""})
    done = {}
    thread = threading.Thread(target=lambda: done.update(answer=server.post("/amed/calibrate", request)))
    thread.start()
    while not server.get("/sdapi/v1/progress")["state"]["sampling_step"] >= 50:
        assert thread.is_alive()
        time.sleep(0.2)
    state = server.get("/sdapi/v1/progress")["state"]
    assert state["job"] == "AMED calibration" and state["sampling_steps"] == request["budget"]
    server.post("/sdapi/v1/interrupt")
    thread.join()
    assert done["answer"]["interrupted"] and done["answer"]["saved"] == []

    answer = server.post("/amed/calibrate", request)
    assert answer["saved"] == ["tiny-multistep-nfe2-cfg2.safetensors"] and not answer["interrupted"]
    assert picture(answer["images"][0]).shape[1] > 400
    fitted = load(server.data / "models" / "AMED" / answer["saved"][0])
    weights = load_file(server.models / "tiny.safetensors")
    network = {k: v for k, v in weights.items() if k.startswith("model.diffusion_model.")}
    assert fitted.spec.model_fingerprint == fingerprint(network.items())  # as ComfyUI reads it too
    _, told, _ = generate(server, sampler_name="AMED Multistep", amed=["auto", 2, "error"])
    assert told["AMED predictor"] == answer["saved"][0] and "AMED note" not in told
    assert server.get("/amed/predictors")["broken"] == []


def test_a_sampler_of_the_hosts(server):
    """DPM++ 2M with a predictor around it, fitted in the host: another image, and without it the very image
    of before."""
    own = {"sampler_name": "DPM++ 2M", "scheduler": "Automatic", "steps": 4}
    before, told, _ = generate(server, **own)
    assert not any(key.startswith("AMED") for key in told)
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

    image, told, _ = generate(server, amed=[name], **own | {"steps": 20})
    assert (told["Sampler"], told["Schedule type"], told["Steps"]) == ("DPM++ 2M", "AMED", "4")
    assert (told["AMED predictor"], told["AMED evaluations"]) == (name, "4") and "AMED note" not in told
    assert image.std() > 5 and abs(image - before).mean() > 1
    again, _, _ = generate(server, amed=[name], **own)
    assert (again == image).all()
    _, told, _ = generate(server, amed=[name], **own | {"scheduler": "Karras"})
    assert "choose the AMED schedule" in told["AMED note"]
    euler, told, _ = generate(server, **own | {"sampler_name": "Euler"})
    other, told, _ = generate(server, amed=[name], **own | {"sampler_name": "Euler"})
    assert (other == euler).all() and told["Sampler"] == "Euler"  # not its sampler: left out

    after, told, _ = generate(server, **own)
    assert (after == before).all() and not any(key.startswith("AMED") for key in told)
