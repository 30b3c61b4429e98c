"""Each hint of a run is followed, and then it is gone and something is better."""

import re

import pytest
import torch
from comfyui.page_messages import Heard
from safetensors.torch import load

from demo.comfyui import RunError

APPLY = re.compile(
    r"Put Apply AMED Predictor before this KSampler \(sampler (\w+), nfe (\d+), guidance (\S+)\)"
)
SET = re.compile(r"In the KSampler: (\w+), (\w+), (\d+) steps, cfg (\S+)")


def run(server, g, latent, *heard_of):
    """The samples, and the last text on the node (and on others)."""
    texts = [Heard(str(node)) for node in (latent[0], *heard_of)]
    by_node = {}

    def hear(kind, data):
        if kind == "binary" and int.from_bytes(data["bytes"][:4], "big") == Heard.TEXT:
            raw = data["bytes"][4:]
            size = int.from_bytes(raw[:4], "big")
            by_node[raw[4 : 4 + size].decode()] = raw[4 + size :].decode()

    shown = g.add("SaveLatent", samples=latent, filename_prefix="advice")
    result = server.run(g.nodes, hear)
    made = load(server.view(result.files("latents", shown)[0]))["latent_tensor"]
    return made, *(by_node.get(one.node, "") for one in texts)


def away(one, other):
    return float((one - other).square().mean(dim=(1, 2, 3)).sqrt().mean())


@pytest.mark.parametrize(("steps", "cfg"), [(4, 1.0), (6, 1.0), (7, 2.0), (6, 4.0)])
def test_the_ordinary_ksampler_without_apply(server, graph, steps, cfg):
    """The plain solver runs, no worse than the host's iPNDM on the same list; what it advises runs a fitted
    table in as many evaluations, with less error and nothing to say."""

    def made(sampler, scheduler="amed", count=steps):
        g = graph(batch=16)
        return run(server, g, g.ksampler(sampler, scheduler, count, cfg=cfg))

    reference, _ = made("ipndm", "karras", 60)
    host, _ = made("ipndm")
    plain, told = made("amed_multistep")
    assert told.startswith("the plain solver ipndm-")
    assert away(plain, reference) <= 1.01 * away(host, reference)

    sampler, nfe, guidance = APPLY.search(told).groups()
    g = graph(batch=16)
    asked = {"sampler": sampler, "nfe": int(nfe), "guidance": float(guidance), "if_missing": "error"}
    applied = g.add("AMEDApplyPredictor", model=g.model, **asked)
    g.show(g.ksampler("euler", "karras", 1, model=[applied, 0]))
    _, _, text = run(server, g, g.ksampler("euler", "karras", 1, model=[applied, 0]), applied)
    name, scheduler, count, at = SET.search(text).groups()
    g = graph(batch=16)
    applied = g.add("AMEDApplyPredictor", model=g.model, **asked)
    fitted, told = run(server, g, g.ksampler(name, scheduler, int(count), cfg=float(at), model=[applied, 0]))
    assert re.fullmatch(rf"AMED: {steps} evaluations, \d+ passes an image, emoji32-multistep\S+", told)
    assert away(fitted, reference) < away(plain, reference)


@pytest.mark.parametrize("scheduler", ["karras", "normal", "simple"])
@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_no_table_is_stretched_onto_another_list(server, graph, scheduler, denoise):
    """Of all our samplers, those without a predictor for this very list run the plain solver."""
    steps, made = 5, {}
    for name in ("amed", "amed_ipndm", "amed_multistep"):
        g = graph()
        start = g.ksampler("euler", "karras", 6, seed=11)
        latent = g.ksampler(name, scheduler, steps, denoise=denoise, latent_image=start)
        made[name], told = run(server, g, latent)
        if "plain solver" in told:
            assert ("Put Apply" in told or "Calibrate AMED" in told) == (denoise == 1.0)
        else:
            assert name == "amed" and scheduler == "karras" and denoise == 1.0  # bundled on this very list
    assert torch.equal(made["amed_ipndm"], made["amed_multistep"])


def test_what_to_choose_is_what_helps(server, graph):
    """A predictor on a MODEL, and its noise levels changed after it: the amed schedule is not its own any
    more, so AMED Scheduler alone is advised; on the MODEL itself both are."""
    for after in (False, True):
        g = graph()
        loaded = [g.add("AMEDLoadPredictor", name="emoji32-multistep-nfe5-cfg1.safetensors"), 0]
        model = [g.add("AMEDApplyPredictor", model=g.model, predictor=loaded), 0]
        if after:
            model = [g.add("ModelSamplingContinuousEDM", model=model, sampling="edm", sigma_max=80.0,
                           sigma_min=0.002), 0]  # fmt: skip
        _, told = run(server, g, g.ksampler("amed_multistep", "karras", 8, model=model))
        advised = told.split(":")[0]
        way = re.fullmatch(r"choose (?:the amed schedule with (\d+) steps, or )?AMED Scheduler", advised)
        assert way and (way[1] is None) == after
        if way[1]:
            _, told = run(server, g, g.ksampler("amed_multistep", "amed", int(way[1]), model=model))
            assert told.startswith("AMED: 5 evaluations")
        g.model = model
        sigmas = g.add("AMEDScheduler", model=model, sampler="auto", nfe=5, denoise=1.0)
        sampler = g.add("AMEDSampler", sampler="auto", if_missing="error")
        _, told = run(server, g, g.custom(sampler, sigmas))
        assert told.startswith("AMED: 5 evaluations")


def test_an_error_names_only_what_the_node_has(server, graph):
    """AMED Sampler has no calibration to choose."""
    g = graph()
    sigmas = g.add("KarrasScheduler", steps=26, sigma_max=80.0, sigma_min=0.002, rho=7.0)
    sampler = g.add("AMEDSampler", sampler="auto", if_missing="error")
    latent = g.custom(sampler, sigmas)
    with pytest.raises(RunError, match="Set if_missing to plain, or fit one") as caught:
        run(server, g, latent)
    assert "calibrate now" not in str(caught.value)
    g.nodes[sampler]["inputs"]["if_missing"] = "plain"
    run(server, g, latent)
