"""The example workflows that need a checkpoint, run in the real server with small random checkpoints under
the expected names (tiny_files.py).

Unlike in a user's run, the pictures are small (SIDE), and the prompts of SDXL and Flux come from TestPrompt
(test_nodes/inspection.py), because their text encoders are missing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file

from amed import Fitted, Solver, Spec, save, schedules
from amed.constants import as_multistep
from amed.fingerprint import fingerprint
from demo import comfyui
from demo.comfyui import WORKFLOWS, Interrupted, RunError
from demo.examples import SUBGRAPHS
from demo.workflows import to_api

SIDE = 64


@pytest.fixture(scope="module")
def files(server):
    """The checkpoints, and a picture with a masked right half, in the server's folders."""
    script, models = Path(__file__).with_name("tiny_files.py"), server.base / "models"
    before = set(models.rglob("*"))  # folders are not removed: a host that has listed one fails if it is gone
    subprocess.run([sys.executable, str(script), str(comfyui.find()), str(models)], check=True)
    write_picture(server.base / "input" / "example.png", 0)
    write_picture(server.base / "input" / "other.png", 1)
    yield
    for path in set(models.rglob("*")) - before:
        if not path.is_dir():
            path.unlink()


def write_picture(file, seed):
    """Write a picture of large soft colours; LoadImage reads its transparent part as the mask."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(colours).resize((SIDE, SIDE), Image.BICUBIC).convert("RGBA")
    opaque = np.full((SIDE, SIDE), 255, np.uint8)
    opaque[:, SIDE // 2 :] = 0
    picture.putalpha(Image.fromarray(opaque))
    picture.save(file)


def read(server, name):
    """Return the API graph of an example, with small pictures."""
    graph = to_api(json.loads((WORKFLOWS / f"{name}.json").read_text()), server.object_info())
    for node in nodes(graph, "EmptyLatentImage", "EmptySD3LatentImage"):
        node["inputs"] |= {"width": SIDE, "height": SIDE}
    return graph


def nodes(graph, *kinds):
    return [node for node in graph.values() if node["class_type"] in kinds]


def only_node(graph, kind):
    (node,) = nodes(graph, kind)
    return node


def run_graph(server, graph):
    """Run the graph; return (the saved image, the sampler's report)."""
    result = server.run(graph)
    (entry,) = result.files("images")
    assert entry["filename"].startswith("AMED") and entry["type"] == "output"
    (image,) = result.images()
    assert image.shape == (SIDE, SIDE, 3) and image.std() > 2
    return image.astype(float), result.text()


def test_stable_diffusion_uses_the_published_values(server, files):
    graph = read(server, "04 Stable Diffusion 1.5")
    assert nodes(graph, "CLIPTextEncode")[0]["inputs"]["text"] == (
        "A Corgi on the grass surrounded by a cluster of colorful balloons"
    )
    image, report = run_graph(server, graph)
    assert "predictor: sd15-dpmpp-2m-nfe10.safetensors" in report and "note:" not in report
    assert "evaluations counted: 10, 20 network passes" in report
    nodes(graph, "CLIPTextEncode")[0]["inputs"]["text"] = "a lighthouse"
    other, _ = run_graph(server, graph)
    assert np.abs(image - other).max() > 2, "the prompt does not reach the network"


def test_image_to_image_starts_from_the_picture(server, files):
    graph = read(server, "07 Image to image")
    image, report = run_graph(server, graph)
    assert "predictor: sd15-dpmpp-2m-nfe10.safetensors" in report
    only_node(graph, "LoadImage")["inputs"]["image"] = "other.png"
    other, _ = run_graph(server, graph)
    assert np.abs(image - other).max() > 10


def test_inpainting_keeps_the_unmasked_part(server, files):
    """The LATENT equals the picture's outside the mask."""
    graph = read(server, "08 Inpaint")
    shown = {}
    for kind in ("VAEEncode", "AMEDKSampler"):
        (giver,) = [key for key, node in graph.items() if node["class_type"] == kind]
        shown[kind] = f"of {kind}"
        inputs = {"samples": [giver, 0], "filename_prefix": "inpaint"}
        graph[shown[kind]] = {"class_type": "SaveLatent", "inputs": inputs}
    result = server.run(graph)
    picture, inpainted = (
        load(server.view(result.files("latents", node)[0]))["latent_tensor"] for node in shown.values()
    )
    half = inpainted.shape[-1] // 2
    assert torch.allclose(inpainted[..., : half - 1], picture[..., : half - 1], atol=1e-4)
    assert (inpainted[..., half:] - picture[..., half:]).abs().mean() > 0.1
    assert "predictor: sd15-dpmpp-2m-nfe10.safetensors" in result.text()


def test_controlnet_changes_the_image(server, files):
    graph = read(server, "09 ControlNet")
    image, report = run_graph(server, graph)
    assert "predictor: sd15-dpmpp-2m-nfe10.safetensors" in report
    only_node(graph, "ControlNetApplyAdvanced")["inputs"]["strength"] = 0.0
    without, _ = run_graph(server, graph)
    assert np.abs(image - without).max() > 10


def with_prompts(server, graph, **sizes):
    """Replace the missing text encoder's prompts.

    The server accepts the original graph and runs it up to the missing text encoder."""
    with pytest.raises(RunError, match="clip input is invalid: None") as stopped:
        server.run(graph)
    assert stopped.value.node == "CLIPTextEncode"
    for seed, node in enumerate(nodes(graph, "CLIPTextEncode")):
        node |= {"class_type": "TestPrompt", "inputs": {"seed": seed, "repeats": 1} | sizes}
    return graph


def fitted_for(checkpoint, file):
    """Write the file that a calibration of this checkpoint for 8 evaluations at guidance 5 leaves."""
    weights = load_file(checkpoint)
    mark = fingerprint((k, v) for k, v in weights.items() if k.startswith("model.diffusion_model."))
    low, high = 0.029167158151720367, 14.614641229333639
    times = schedules.make("time_uniform", 9, low, high)
    spec = Spec(solver="multistep", num_steps=9, schedule="time_uniform", sigma_min=low, sigma_max=high,
                prediction_type="eps", model_family="segmind_vega", model_fingerprint=mark, guidance=5.0,
                how="for a test")  # fmt: skip
    save(file, Fitted(spec, as_multistep(Solver("ipndm", 3), times), times))


def test_sdxl_is_calibrated_once(server, files):
    """The first run begins a calibration, which is interrupted here because it takes minutes.

    With the file that a complete one leaves, the next run samples at once (test_calibrate.py runs one to its
    end)."""
    folder = server.base / "models" / "amed_predictors"
    graph = with_prompts(server, read(server, "05 SDXL, calibrated once"), width=2048, pooled=1280)
    bar = []

    def stop(kind, data):
        if kind == "progress":
            bar.append(data)
            server.interrupt()

    with pytest.raises(Interrupted):
        server.run(graph, stop)
    assert 2500 <= bar[0]["max"] < 2800 and bar[0]["value"] < 100
    fitted_for(
        server.base / "models/checkpoints/sd_xl_base_1.0.safetensors", folder / "as-fitted.safetensors"
    )
    before = set(folder.iterdir())
    _, report = run_graph(server, graph)
    assert "predictor: as-fitted.safetensors" in report and "note:" not in report
    assert "evaluations counted: 8, 16 network passes" in report
    assert set(folder.iterdir()) == before


def test_flux_takes_one_pass_per_evaluation(server, files):
    graph = with_prompts(server, read(server, "06 Flux"), width=4096, pooled=768)
    _, report = run_graph(server, graph)
    assert "evaluations counted: 8, 8 network passes" in report


def test_the_subgraph_samples(server, files):
    """Run the subgraph's contents, with its three inputs from a checkpoint."""
    blueprint = json.loads((SUBGRAPHS / "AMED text to image.json").read_text())
    (inside,) = blueprint["definitions"]["subgraphs"]
    assert [entry["name"] for entry in inside["inputs"]] == ["model", "clip", "vae"]
    sd15, giver, taker = 100, inside["inputNode"]["id"], inside["outputNode"]["id"]
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [[link[k] for k in keys] for link in inside["links"] if link["target_id"] != taker]
    links = [[n, sd15 if start == giver else start, *rest] for n, start, *rest in links]
    checkpoint = {
        "id": sd15,
        "type": "CheckpointLoaderSimple",
        "widgets_values": ["v1-5-pruned-emaonly-fp16.safetensors"],
    }
    graph = to_api({"nodes": [*inside["nodes"], checkpoint], "links": links}, server.object_info())
    only_node(graph, "EmptyLatentImage")["inputs"] |= {"width": SIDE, "height": SIDE}
    (last,) = [key for key, node in graph.items() if node["class_type"] == "VAEDecode"]
    inputs = {"images": [last, 0], "filename_prefix": "AMED"}
    graph["save"] = {"class_type": "SaveImage", "inputs": inputs}
    _, report = run_graph(server, graph)
    assert "evaluations counted: 8, 16 network passes" in report
