"""Images from a real ComfyUI, and the nodes' reports on them."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load

from amed import SAMPLERS, Constants, Fitted, Spec, sample, save, schedules
from amed import load as load_predictor
from amed.evaluate import FromModule, Guided
from demo.comfyui import ROOT, GraphError, Interrupted, RunError
from demo.model import SIGMA_MAX, load_denoiser

BUNDLED = sorted((ROOT / "predictors").glob("emoji32-*.safetensors"))


def check_image(images):
    """Check that the images are neither blank nor noise clipped to its limits."""
    assert images.ndim == 4 and images.shape[-1] == 3
    assert images.std() > 10 and 0.02 < (images > 235).mean() < 0.98  # a light background
    return images


def latents(result):
    """Return the first saved latent, `[B, 3, H, W]`."""
    entry = result.files("latents")[0]
    return load(result.server.view(entry))["latent_tensor"]


def run_text(server, g, latent):
    g.show(latent)
    return server.run(g.nodes).text(latent[0])


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_ksampler_reports_the_counted_evaluations(server, graph, batch, guidance):
    g = graph(batch=batch)
    latent = g.amed(guidance=guidance)
    shown = g.show(latent)
    result = server.run(g.nodes)
    assert len(result.images(shown)) == batch
    check_image(np.stack(result.images(shown)))
    text = result.text(latent[0])
    assert "predictor: test_amed.safetensors" in text
    assert f"evaluations counted: 4, {4 * int(guidance)} network passes" in text
    assert ("fitted at guidance 1, running at 2" in text) == (guidance == 2.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_a_dropdown_sampler_finds_the_users_predictor(images, graph, sampler, cfg):
    """In the ordinary KSampler, on the amed schedule followed by 0, where the library has such a
    predictor."""
    steps = 5 if sampler == "amed_multistep" else 3
    g = graph(batch=2)
    image = check_image(images(g, g.ksampler(sampler, "amed", steps, cfg=cfg)))
    g = graph(batch=2)
    plain = images(g, g.ksampler("euler", "amed", steps, cfg=cfg))
    assert image.shape == plain.shape and not np.array_equal(image, plain)


class NodeTexts:
    """Collects the texts that the server puts on each node during a run: `texts[node]`."""

    def __init__(self):
        self.texts = {}

    def __call__(self, kind, data):
        if kind != "binary" or int.from_bytes(data["bytes"][:4], "big") != 3:
            return
        raw = data["bytes"][4:]
        size = int.from_bytes(raw[:4], "big")
        self.texts.setdefault(raw[4 : 4 + size].decode(), []).append(raw[4 + size :].decode())


def test_a_dropdown_sampler_without_a_predictor_reports_the_plain_solver(server, graph):
    """The report on the page's node ends with that text."""
    g, messages = graph(), NodeTexts()
    latent = g.ksampler("amed_ipndm", "karras", 20)
    shown = g.show(latent)
    result = server.run(g.nodes, messages)
    check_image(np.stack(result.images(shown)))
    text = messages.texts[latent[0]][-1]
    missing = (
        "no predictor for amed_ipndm, 20 noise levels (about 38 evaluations), guidance 1 and this emoji32"
    )
    assert text.startswith(f"the plain solver ipndm-3 ran: {missing}") and "The nearest is " in text
    assert text.splitlines()[1:] == [
        "AMED: 20 evaluations, 20 passes per image, plain"
    ]  # the last step goes to 0


def test_default_settings_work_for_any_number_of_evaluations(server, graph):
    """AMED KSampler with its defaults, on a model without a predictor for this number."""
    for nfe in (2, 11, 14):
        g = graph()
        latent = g.amed(nfe=nfe, if_missing="plain", sampler="auto", guidance=5.0)
        text = run_text(server, g, latent)
        assert f"evaluations counted: {nfe}, {2 * nfe} network passes per image" in text
        assert "predictor: plain" in text and text.count("note: ") == 1 and "less error" in text
    inputs = server.object_info()["AMEDKSampler"]["input"]["required"]
    assert inputs["if_missing"][1]["default"] == "plain" and inputs["nfe"][1]["default"] == 8
    assert inputs["guidance"][1]["default"] == 5.0


def test_a_wrong_schedule_is_answered_with_the_right_steps(server, graph):
    """With a predictor on the MODEL but another schedule, the remark names the amed schedule's number of
    steps."""
    g, messages = graph(), NodeTexts()
    loaded = g.add("AMEDLoadPredictor", name="test_amed.safetensors")
    applied = g.add("AMEDApplyPredictor", model=g.model, predictor=[loaded, 0])
    latent = g.ksampler("amed", "karras", 20, model=[applied, 0])
    g.show(latent)
    server.run(g.nodes, messages)
    assert messages.texts[latent[0]][-1].startswith(
        "choose the amed schedule with 2 steps, or AMED Scheduler: "
    )
    assert "In the KSampler: amed, amed, 2 steps, cfg 1\n4 evaluations: " in messages.texts[applied][-1]
    right, messages = graph(), NodeTexts()
    loaded = right.add("AMEDLoadPredictor", name="test_amed.safetensors")
    applied = right.add("AMEDApplyPredictor", model=right.model, predictor=[loaded, 0])
    latent = right.ksampler("amed", "amed", 2, model=[applied, 0])
    right.show(latent)
    server.run(right.nodes, messages)
    expected = "AMED: 4 evaluations, 4 passes per image, test_amed.safetensors"
    assert messages.texts[latent[0]][-1] == expected


def test_the_same_seed_gives_the_same_image(server, images, graph):
    def make(seed, pad):
        g = graph(batch=2)
        for _ in range(pad):  # shifts node ids, so that nothing comes from ComfyUI's cache
            g.add("AMEDLoadPredictor", name="test_amed.safetensors")
        return images(g, g.amed(seed=seed, guidance=2.0))

    first, again, other = make(5, 0), make(5, 1), make(6, 0)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_ksampler_equals_sampler_and_scheduler(images, graph):
    g = graph(batch=2)
    loaded = [g.add("AMEDLoadPredictor", name="test_amed_ipndm.safetensors"), 0]
    by_ksampler = g.amed(sampler="amed_ipndm", guidance=2.0, seed=9)
    sampler = g.add("AMEDSampler", sampler="auto", if_missing="error", predictor=loaded)
    sigmas = g.add("AMEDScheduler", model=g.model, sampler="auto", nfe=4, denoise=1.0, predictor=loaded)
    parts = g.custom(sampler, sigmas, cfg=2.0, seed=9)
    looked_up = g.add("AMEDSampler", sampler="amed_ipndm", if_missing="error")
    sigmas = g.add("AMEDScheduler", model=g.model, sampler="amed_ipndm", nfe=4, denoise=1.0)
    unlinked = g.custom(looked_up, sigmas, cfg=2.0, seed=9)
    applied = g.add("AMEDApplyPredictor", model=g.model, predictor=loaded)
    ordinary = g.ksampler("amed_ipndm", "amed", 2, cfg=2.0, seed=9, model=[applied, 0])
    first, *others = images(g, by_ksampler, parts, unlinked, ordinary)
    check_image(first)
    for other in others:
        assert np.array_equal(first, other)


def test_auto_is_the_least_error_in_every_node(server, images, graph):
    """In AMED KSampler, and in AMED Sampler and AMED Scheduler, which choose when they run."""
    g = graph(batch=2)
    by_ksampler = g.amed(5, "auto", seed=9)
    sigmas = g.add("AMEDScheduler", model=g.model, sampler="auto", nfe=5, denoise=1.0)
    parts = g.custom(g.add("AMEDSampler", sampler="auto", if_missing="error"), sigmas, seed=9)
    other = g.amed(5, "amed", seed=9)
    first, second, third = images(g, by_ksampler, parts, other)
    assert np.array_equal(check_image(first), second) and not np.array_equal(first, third)


def test_auto_without_a_predictor_is_refused_or_untrained(server, graph):
    g = graph()
    sigmas = g.add("KarrasScheduler", steps=26, sigma_max=80.0, sigma_min=0.002, rho=7.0)
    sampler = g.add("AMEDSampler", sampler="auto", if_missing="error")
    g.show(g.custom(sampler, sigmas))
    expected = r"no predictor for 26 noise levels \(about 25 evaluations\)[\s\S]*The nearest is "
    with pytest.raises(RunError, match=expected):
        server.run(g.nodes)
    for instead in ("untrained", "plain"):
        g.nodes[sampler]["inputs"]["if_missing"] = instead
        server.run(g.nodes)


def engine(noise, fitted, guidance, label=0):
    """The same run without a host."""
    denoiser = load_denoiser()
    model, labels = Guided(denoiser, guidance), torch.full((len(noise),), label)
    evaluate = FromModule(denoiser.inner_model.middle_block)
    start = noise * (1 + SIGMA_MAX**2) ** 0.5  # the host's noise_scaling at sigma_max
    extra = {"cond": {"label": labels}, "uncond": {"label": torch.full_like(labels, 10)}}
    return sample(model, start, fitted.sigmas(), fitted.spec.student, extra, disable=True,
                  predictor=fitted.predictor, afs=fitted.spec.afs, evaluate=evaluate)  # fmt: skip


@pytest.mark.parametrize(("file", "nfe"), [("test_amed.safetensors", 4), ("test_mlp.safetensors", 6)])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_host_run_equals_the_engines(server, graph, file, nfe, guidance):
    """The network gets the conditional bottleneck: captured in the host, or by a hook on the module."""
    g = graph(batch=3)
    latent = g.amed(nfe, predictor=file, guidance=guidance, seed=21)
    g.add("SaveLatent", samples=latent, filename_prefix="test")
    result = server.run(g.nodes)
    assert f"evaluations counted: {nfe}," in result.text(latent[0])
    noise = torch.randn(3, 3, 32, 32, generator=torch.manual_seed(21))
    fitted = load_predictor(server.base / "models" / "amed_predictors" / file)
    torch.testing.assert_close(latents(result), engine(noise, fitted, guidance), rtol=1e-4, atol=2e-4)


def test_the_bottleneck_is_that_of_the_positive_prompt(server, graph):
    """Whether the host evaluates the halves together or, for prompts of too different lengths, one by one."""

    def make(repeats, positive=None):
        g = graph(batch=3)
        negative = g.negative
        for _ in range(repeats):
            negative = [
                g.add("ConditioningConcat", conditioning_to=negative, conditioning_from=g.negative),
                0,
            ]
        around = {"negative": negative} | ({"positive": g.negative} if positive else {})
        latent = g.amed(6, predictor="test_mlp.safetensors", guidance=2.0, seed=2, **around)
        g.add("SaveLatent", samples=latent, filename_prefix="test")
        result = server.run(g.nodes)
        assert "no bottleneck could be captured" not in result.text(latent[0])
        return latents(result)

    together, apart, other = make(0), make(6), make(0, positive=True)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=2e-4)
    assert not torch.allclose(together, other, atol=1e-2)


def test_a_missing_bottleneck_becomes_zeros_with_a_warning(server, graph):
    g = graph(batch=2)
    closed = [g.add("TestModel", model=g.model, which="closed"), 0]
    latent = g.amed(6, predictor="test_mlp.safetensors", guidance=2.0, model=closed)
    shown = g.show(latent)
    result = server.run(g.nodes)
    check_image(np.stack(result.images(shown)))
    expected = "no bottleneck could be captured from this model: the AMED predictor is fed zeros"
    assert result.text(latent[0]).count(expected) == 1 and expected in server.log()


def test_the_predictors_network_is_on_the_images_device(server, graph):
    """A predictor's network must be on the images' device, or a GPU waits at every interval."""
    g = graph()
    look = g.add("TestDevice", cfg=2.0, file="test_mlp.safetensors", **g.around())
    assert server.run(g.nodes).text(look) == "meta"


def test_several_positive_prompts(images, graph):
    g = graph(batch=2)
    flags = g.add("AMEDDemoModel", category="Flags", width=32, height=32, batch_size=1)
    area = g.add(
        "ConditioningSetMask",
        conditioning=[flags, 1],
        strength=1.0,
        set_cond_area="default",
        mask=[g.add("SolidMask", value=1.0, width=16, height=32), 0],
    )
    both = [g.add("ConditioningCombine", conditioning_1=g.positive, conditioning_2=[area, 0]), 0]
    check_image(images(g, g.amed(6, predictor="test_mlp.safetensors", guidance=2.0, positive=both)))


@pytest.mark.skipif(not BUNDLED, reason="no bundled predictors for the demo model")
@pytest.mark.parametrize("file", BUNDLED, ids=lambda file: file.stem)
def test_bundled_predictor_equals_the_engine(server, graph, file):
    """With the bottleneck captured in the host, at the guidance it was fitted for."""
    fitted = load_predictor(file)
    g = graph(batch=2)
    latent = g.amed(fitted.nfe, "auto", fitted.spec.guidance, 31, predictor=file.name)
    g.add("SaveLatent", samples=latent, filename_prefix="test")
    result = server.run(g.nodes)
    assert f"evaluations counted: {fitted.nfe}," in result.text(latent[0])
    assert "note:" not in result.text(latent[0])
    noise = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(31))
    torch.testing.assert_close(
        latents(result), engine(noise, fitted, fitted.spec.guidance), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("sigma", [0.05, 2.0, 30.0])
def test_the_demo_model_equals_its_denoiser(server, graph, sigma):
    """One Euler step to 0 gives the denoised image, for the MODEL as for demo.model."""
    g = graph(batch=2, category="Flags")
    sigmas = g.add("KarrasScheduler", steps=1, sigma_max=sigma, sigma_min=0.01, rho=7.0)
    euler = g.add("KSamplerSelect", sampler_name="euler")
    node = g.add(
        "SamplerCustom",
        add_noise=True,
        noise_seed=4,
        cfg=1.0,
        sampler=[euler, 0],
        sigmas=[sigmas, 0],
        **g.around(),
    )
    g.add("SaveLatent", samples=[node, 0], filename_prefix="test")
    got = latents(server.run(g.nodes))
    noise = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(4)) * sigma
    with torch.no_grad():
        expected = load_denoiser()(noise, torch.full((2,), sigma), torch.full((2,), 8))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_other_sizes(images, graph):
    g = graph(batch=2, width=36, height=28)
    results = images(g, g.amed(guidance=2.0), g.ksampler("amed_dpmpp_2m", "amed", 3))
    assert [m.shape for m in results] == [(2, 28, 36, 3)] * 2


def test_partial_denoise_keeps_the_picture(server, images, graph):
    g = graph(batch=2)
    start = g.ksampler("euler", "karras", 12)
    again = g.amed(denoise=0.5, latent_image=start)
    dropdown = g.ksampler("amed", "amed", 3, denoise=0.5, latent_image=start)
    before, after, other = (m.astype(float) for m in images(g, start, again, dropdown))
    g = graph(batch=2)
    unrelated = images(g, g.amed(seed=77)).astype(float)
    distance = np.abs(before - after).mean()
    assert 0 < distance < 0.6 * np.abs(before - unrelated).mean()
    assert 0 < np.abs(before - other).mean() < 0.6 * np.abs(before - unrelated).mean()


def test_too_little_denoise_is_refused(server, graph):
    g = graph()
    g.show(g.amed(denoise=0.01, predictor="test_amed.safetensors"))
    text = ""
    try:
        text = server.run(g.nodes).text()
    except RunError as error:
        assert "Raise denoise" in str(error)
    else:
        assert "evaluations counted" in text


def test_inpainting_changes_only_the_masked_half(images, graph):
    g = graph(batch=2)
    start = g.ksampler("euler", "karras", 12)
    masked = g.right_half_masked(start)
    before, after = images(g, start, g.amed(latent_image=masked, seed=8))
    difference = np.abs(before.astype(int) - after)
    assert difference[:, :, :16].max() <= 1 and difference[:, :, 18:].mean() > 5


def test_an_unfitted_nfe_names_the_nearest_and_what_to_do(server, graph):
    g = graph()
    g.show(g.amed(nfe=47))
    with pytest.raises(
        RunError, match=r"amed, nfe 47[\s\S]*nearest is emoji32-multistep-nfe10-cfg1"
    ) as caught:
        server.run(g.nodes)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and "test_broken.safetensors" in lines[1] and "calibrate now (quick)" in lines[2]
    g = graph()
    g.show(g.amed(nfe=7, predictor="test_amed.safetensors"))
    with pytest.raises(RunError, match="takes 4 evaluations, not 7: set nfe to 4"):
        server.run(g.nodes)


def test_untrained_runs_only_on_request_and_is_reported(server, graph):
    for nfe in (6, 11):
        g = graph()
        text = run_text(server, g, g.amed(nfe=nfe, sampler="amed_euler", if_missing="untrained"))
        assert "predictor: untrained" in text and "note: untrained, as asked" in text
        assert f"evaluations counted: {nfe}," in text


def test_predictor_of_another_sampler_is_refused(server, graph):
    g = graph()
    g.show(g.amed(sampler="amed_ipndm", predictor="test_amed.safetensors"))
    with pytest.raises(RunError, match="fitted for amed, not for amed_ipndm"):
        server.run(g.nodes)


def test_broken_predictor_is_named(server, graph):
    g = graph()
    g.show(g.amed(predictor="test_broken.safetensors"))
    with pytest.raises(RunError, match="test_broken.safetensors: incomplete, or not a safetensors file"):
        server.run(g.nodes)


def test_missing_predictor_is_named(server, graph):
    """Newer hosts refuse the graph themselves; otherwise the node lists the existing predictors."""
    g = graph()
    g.show(g.amed(predictor="gone.safetensors"))
    with pytest.raises((GraphError, RunError), match=r"gone\.safetensors") as caught:
        server.run(g.nodes)
    assert isinstance(caught.value, GraphError) or "The nearest is 'test_" in str(caught.value)


def test_a_patched_checkpoint_is_recognised(server, graph):
    """Patches that change weights in place while sampling, as a LoRA's, do not change the checkpoint's
    identity."""
    g = graph()
    patched = [g.add("TestModel", model=g.model, which="lora"), 0]
    merged = [g.add("ModelMergeSubtract", model1=g.model, model2=g.model, multiplier=2.0), 0]
    before = g.amed(6, predictor="test_mlp.safetensors", guidance=2.0)
    during = g.amed(6, predictor="test_mlp.safetensors", guidance=2.0, model=patched)
    again = g.amed(6, predictor="test_mlp.safetensors", guidance=2.0, model=patched, seed=4)
    other = g.amed(6, "auto", predictor="test_other_checkpoint.safetensors", guidance=2.0)
    merge = g.amed(6, predictor="test_mlp.safetensors", guidance=2.0, model=merged)
    shown = [g.show(latent) for latent in (before, during, again, other, merge)]
    result = server.run(g.nodes)
    assert not np.array_equal(result.images(shown[0]), result.images(shown[1])), "the patch has no effect"
    for latent in (before, during, again):
        assert "note:" not in result.text(latent[0])
    assert "note: fitted for another checkpoint of this family" in result.text(other[0])
    assert re.search(
        "fitted for another checkpoint of this family .*, this is a merge", result.text(merge[0])
    )


def test_a_new_file_is_used_at_once(server, graph):
    """ComfyUI's cached result of the same graph must not be used."""
    folder = server.base / "models" / "amed_predictors"
    times = schedules.make("time_uniform", 8, 0.002, 80.0)
    spec = Spec(
        solver="amed",
        num_steps=8,
        schedule="time_uniform",
        sigma_min=0.002,
        sigma_max=80.0,
        prediction_type="edm",
        model_family="emoji32",
        how="for a test",
    )
    g = graph()
    latent = g.amed(nfe=14, if_missing="untrained")
    g.show(latent)
    assert "predictor: untrained" in server.run(g.nodes).text(latent[0])
    try:
        save(folder / "test_late.safetensors", Fitted(spec, Constants(times), times))
        assert "predictor: test_late.safetensors" in server.run(g.nodes).text(latent[0])
    finally:
        (folder / "test_late.safetensors").unlink()


def test_the_report_is_in_the_images_metadata(server, graph):
    g = graph()
    latent = g.amed(seed=41)
    image = g.add("AMEDDemoDecode", samples=latent, enlarge=1)
    g.add("SaveImage", images=[image, 0], filename_prefix="meta")
    (entry,) = server.run(g.nodes, workflow={}).files("images")
    assert b"evaluations counted: 4" in server.view(entry)


def test_an_interruption_stops_a_run(server, graph):
    """After the first progress of a long run the rest is not executed.

    The MODEL waits for the interruption, which may arrive late."""
    g = graph()
    g.model = [g.add("TestStops", model=g.model, at=9, wait=True), 0]
    g.show(g.amed(nfe=99, sampler="amed", if_missing="untrained", seed=13))
    steps = []

    def on_event(kind, data):
        if kind == "progress":
            steps.append(data["value"])
            if len(steps) == 1:
                server.interrupt()

    with pytest.raises(Interrupted):
        server.run(g.nodes, on_event)
    assert 1 <= max(steps) <= 5, "the run continued after the interruption"  # two evaluations per step
    g = graph()
    assert re.search("evaluations counted: 4", run_text(server, g, g.amed()))  # and the next run works


@pytest.mark.parametrize("nfe", [6, 8])
def test_sampler_and_scheduler_without_a_predictor_take_the_requested_evaluations(server, graph, nfe):
    """The plain solver, at any guidance, takes the evaluations that AMED Scheduler was set to."""
    g = graph()
    g.model = [g.add("AMEDCountEvaluations", model=g.model), 0]
    sigmas = g.add("AMEDScheduler", model=g.model, sampler="amed_deis", nfe=nfe, denoise=1.0)
    sampler = g.add("AMEDSampler", sampler="amed_deis", if_missing="plain")
    used = g.add("AMEDEvaluationsUsed", model=g.model, samples=g.custom(sampler, sigmas, cfg=4.0))
    image = g.show([used, 0])
    result = server.run(g.nodes)
    check_image(np.stack(result.images(image)))
    assert result.text(used).startswith(f"{nfe} evaluations, {2 * nfe} rows")


def test_a_plain_solver_runs_img2img_and_odd_sizes(server, graph):
    """img2img uses the lower part of the schedule; a batch of 5 of 36 x 28."""
    g = graph(batch=5, width=36, height=28)
    start = g.ksampler("euler", "karras", 12)
    latent = g.amed(nfe=20, sampler="auto", guidance=3.0, if_missing="plain", denoise=0.5, latent_image=start)
    shown = g.show(latent)
    result = server.run(g.nodes)
    sampled_images = np.stack(result.images(shown))
    assert check_image(sampled_images).shape == (5, 28, 36, 3) and "predictor: plain" in result.text(
        latent[0]
    )
    counted = int(result.text(latent[0]).split("evaluations counted: ")[1].split(",")[0])
    assert 2 <= counted < 20
