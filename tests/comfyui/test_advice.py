"""Each hint of a run, when followed, disappears and improves the result."""

import re

import pytest
import torch
from comfyui.page_messages import PageMessages
from safetensors.torch import load

from demo.comfyui import RunError

APPLY = re.compile(
    r"Put Apply AMED Predictor before this KSampler \(sampler (\w+), nfe (\d+), guidance (\S+)\)"
)
SET = re.compile(r"In the KSampler: (\w+), (\w+), (\d+) steps, cfg (\S+)")


def run(server, g, latent, *heard_of):
    """Return the samples, and the last text on the sampling node (and on others)."""
    texts = [PageMessages(str(node)) for node in (latent[0], *heard_of)]
    by_node = {}

    def on_event(kind, data):
        if kind == "binary" and int.from_bytes(data["bytes"][:4], "big") == PageMessages.TEXT:
            raw = data["bytes"][4:]
            size = int.from_bytes(raw[:4], "big")
            by_node[raw[4 : 4 + size].decode()] = raw[4 + size :].decode()

    shown = g.add("SaveLatent", samples=latent, filename_prefix="advice")
    result = server.run(g.nodes, on_event)
    latents = load(server.view(result.files("latents", shown)[0]))["latent_tensor"]
    return latents, *(by_node.get(node_id.node, "") for node_id in texts)


def rms_distance(first, other):
    return float((first - other).square().mean(dim=(1, 2, 3)).sqrt().mean())


@pytest.mark.parametrize(("steps", "cfg"), [(4, 1.0), (6, 4.0)])
def test_advice_of_the_ordinary_ksampler_without_apply(server, graph, steps, cfg):
    """The plain solver runs, no worse than the host's iPNDM on the same list.

    Following its advice runs a fitted table in as many evaluations, with less error and no further hint."""

    def sampled(sampler, scheduler="amed", count=steps):
        g = graph(batch=16)
        return run(server, g, g.ksampler(sampler, scheduler, count, cfg=cfg))

    reference, _ = sampled("ipndm", "karras", 60)
    host, _ = sampled("ipndm")
    plain, remark = sampled("amed_multistep")
    assert remark.startswith("the plain solver ipndm-")
    assert rms_distance(plain, reference) <= 1.01 * rms_distance(host, reference)

    sampler, nfe, guidance = APPLY.search(remark).groups()
    g = graph(batch=16)
    inputs = {"sampler": sampler, "nfe": int(nfe), "guidance": float(guidance), "if_missing": "error"}
    applied = g.add("AMEDApplyPredictor", model=g.model, **inputs)
    g.show(g.ksampler("euler", "karras", 1, model=[applied, 0]))
    _, _, text = run(server, g, g.ksampler("euler", "karras", 1, model=[applied, 0]), applied)
    name, scheduler, count, at = SET.search(text).groups()
    g = graph(batch=16)
    applied = g.add("AMEDApplyPredictor", model=g.model, **inputs)
    fitted, remark = run(
        server, g, g.ksampler(name, scheduler, int(count), cfg=float(at), model=[applied, 0])
    )
    assert re.fullmatch(rf"AMED: {steps} evaluations, \d+ passes per image, emoji32-multistep\S+", remark)
    assert rms_distance(fitted, reference) < rms_distance(plain, reference)


@pytest.mark.parametrize("scheduler", ["karras", "normal", "simple"])
@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_no_table_is_stretched_onto_another_list(server, graph, scheduler, denoise):
    """Samplers without a predictor for exactly this list run the plain solver."""
    steps, results = 5, {}
    for name in ("amed", "amed_ipndm", "amed_multistep"):
        g = graph()
        start = g.ksampler("euler", "karras", 6, seed=11)
        latent = g.ksampler(name, scheduler, steps, denoise=denoise, latent_image=start)
        results[name], remark = run(server, g, latent)
        if "plain solver" in remark:
            assert ("Put Apply" in remark or "Calibrate AMED" in remark) == (denoise == 1.0)
        else:
            assert (
                name == "amed" and scheduler == "karras" and denoise == 1.0
            )  # bundled predictors were fitted on exactly this list
    assert torch.equal(results["amed_ipndm"], results["amed_multistep"])


def test_only_choices_that_help_are_advised(server, graph):
    """If the noise levels are changed after a predictor was applied, only AMED Scheduler is advised.

    On the unchanged MODEL both the amed schedule and AMED Scheduler are advised."""
    for after in (False, True):
        g = graph()
        loaded = [g.add("AMEDLoadPredictor", name="emoji32-multistep-nfe5-cfg1.safetensors"), 0]
        model = [g.add("AMEDApplyPredictor", model=g.model, predictor=loaded), 0]
        if after:
            model = [g.add("ModelSamplingContinuousEDM", model=model, sampling="edm", sigma_max=80.0,
                           sigma_min=0.002), 0]  # fmt: skip
        _, remark = run(server, g, g.ksampler("amed_multistep", "karras", 8, model=model))
        advised = remark.split(":")[0]
        way = re.fullmatch(r"choose (?:the amed schedule with (\d+) steps, or )?AMED Scheduler", advised)
        assert way and (way[1] is None) == after
        if way[1]:
            _, remark = run(server, g, g.ksampler("amed_multistep", "amed", int(way[1]), model=model))
            assert remark.startswith("AMED: 5 evaluations")
        g.model = model
        sigmas = g.add("AMEDScheduler", model=model, sampler="auto", nfe=5, denoise=1.0)
        sampler = g.add("AMEDSampler", sampler="auto", if_missing="error")
        _, remark = run(server, g, g.custom(sampler, sigmas))
        assert remark.startswith("AMED: 5 evaluations")


def test_an_error_names_only_options_of_the_node(server, graph):
    """AMED Sampler cannot calibrate, so its error does not suggest it."""
    g = graph()
    sigmas = g.add("KarrasScheduler", steps=26, sigma_max=80.0, sigma_min=0.002, rho=7.0)
    sampler = g.add("AMEDSampler", sampler="auto", if_missing="error")
    latent = g.custom(sampler, sigmas)
    with pytest.raises(RunError, match="Set if_missing to plain, or fit one") as caught:
        run(server, g, latent)
    assert "calibrate now" not in str(caught.value)
    g.nodes[sampler]["inputs"]["if_missing"] = "plain"
    run(server, g, latent)


@pytest.mark.parametrize(("nfe", "denoise"), [(5, 0.5), (5, 0.3), (8, 0.7)])
def test_the_advised_nfe_restores_the_evaluations_below_denoise(server, graph, nfe, denoise):
    """A schedule that begins above the start loses evaluations; both ways that the remark names give them
    back."""

    def evaluations(g, latent):
        _, text = run(server, g, latent)
        return int(re.search(r"(?:evaluations counted|AMED): (\d+)", text)[1]), text

    def start(g):
        return g.ksampler("euler", "karras", 6, seed=11)

    g = graph()
    ran, text = evaluations(
        g, g.amed(nfe, "auto", denoise=denoise, if_missing="plain", latent_image=start(g))
    )
    pattern = r"For (\d+) evaluations, (?:set nfe to (\d+), or )?use the ordinary KSampler with (\d+) steps"
    about, more, steps = re.search(pattern, text).groups()
    assert ran < nfe == int(about) == int(steps) and (more is None) == (denoise == 0.3)

    if more is not None:  # no schedule up to nfe 50 has 5 evaluations below denoise 0.3
        g = graph()
        latent = g.amed(int(more), "auto", denoise=denoise, if_missing="plain", latent_image=start(g))
        assert ran < nfe <= evaluations(g, latent)[0] <= nfe + 2
    g = graph()
    latent = g.ksampler("amed_multistep", "amed", int(steps), denoise=denoise, latent_image=start(g))
    assert evaluations(g, latent)[0] == nfe


def test_the_advised_change_lets_the_plain_solver_run(server, graph):
    """Heun takes two evaluations per interval: another nfe, or the analytic first step, makes 5 possible."""

    def plain(**changed):
        g = graph()
        settings = {"solver": "Heun", "nfe": 5, "schedule": "time_uniform", "rho": 1.0, "afs": False}
        node = g.add("AMEDPlainSolver", model=g.model, **settings | changed)
        latent = [g.add("SamplerCustom", add_noise=True, noise_seed=3, cfg=1.0, sampler=[node, 0],
                        sigmas=[node, 1], **g.around()), 0]  # fmt: skip
        return run(server, g, latent)[0]

    with pytest.raises(RunError, match="cannot take 5 evaluations, only even numbers: change nfe or afs"):
        plain()
    assert plain(nfe=6).isfinite().all() and plain(afs=True).isfinite().all()
