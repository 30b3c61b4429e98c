"""Fit MODELs under features that keep a state while the host samples: caches, context windows, hooks."""

import json

import pytest
from comfyui.page_messages import PageMessages

from amed import load
from demo.comfyui import RunError

LEAST = 1780  # the evaluations that a fit at NFE 4 takes


class Small:
    """A graph on a small network of the host, with the interface of Graph."""

    def __init__(self, graph, which, size=(64, 48), length=17):
        self.g, self.which = graph(), which
        g = self.g
        g.nodes.clear()
        self.bare = self.model = [g.add("SmallModel", which=which, dtype="fp32"), 0]
        self.positive, self.other, self.negative = (
            [g.add("TestPrompt", seed=seed, repeats=1, width=64), 0] for seed in (1, 4, 2)
        )
        if which == "wan":
            latent = g.add(
                "EmptyHunyuanLatentVideo", width=size[0], height=size[1], length=length, batch_size=1
            )
        else:
            latent = g.add("EmptyLatentImage", width=96, height=64, batch_size=1)
        self.latent = [latent, 0]

    def patch(self, kind, **inputs):
        self.model = [self.g.add(kind, model=self.model, **inputs), 0]
        return self

    def hooked(self, keyframes):
        self.positive = [
            self.g.add("TestHooks", model=self.bare, conditioning=self.positive, keyframes=keyframes), 0
        ]  # fmt: skip
        return self

    def around(self):
        return {"model": self.model, "positive": self.positive, "negative": self.negative,
                "latent_image": self.latent}  # fmt: skip

    def denoiser_errors(self, server, real=None, cfg=2.0, steps=6):
        node = self.g.add("TestAsked", **self.around(), cfg=cfg, real=real or self.model, steps=steps)
        return json.loads(server.run(self.g.nodes).text(node))

    def calibrate(self, name, nfe="4", **other):
        inputs = {"sampler": "amed_multistep", "guidance": 2.0, "budget": "custom", "evaluations": LEAST,
                  "seed": 0}  # fmt: skip
        return self.g.add("AMEDCalibrate", **self.around() | inputs | other, nfe=nfe, name=name)


def cache(kind, start):
    return kind, {"reuse_threshold": 0.2, "start_percent": start, "end_percent": 0.95, "verbose": False}


def windows(schedule, kind="WanContextWindowsManual", **more):
    inputs = {"context_length": 9, "context_overlap": 4, "context_schedule": schedule, "context_stride": 2,
              "closed_loop": schedule == "looped_uniform", "fuse_method": "pyramid"}  # fmt: skip
    return kind, inputs | more


CACHES = [cache(kind, start) for kind in ("EasyCache", "LazyCache") for start in (0.15, 0.0)]
STEP = ("TestStepCache", {"resets": "step"})
WINDOWS = [
    *(windows(name) for name in ("standard_static", "standard_uniform", "looped_uniform", "batched")),
    windows("standard_uniform", "ContextWindowsManual", context_length=3, context_overlap=1, dim=2),
]


@pytest.mark.parametrize("put", [
    *(("sd15", one) for one in CACHES), *(("wan", one) for one in CACHES), ("wan", STEP),
], ids=str)  # fmt: skip
def test_a_fit_is_not_answered_by_a_cache(server, graph, put):
    """At every noise level, in any order, the network itself answers."""
    which, (kind, inputs) = put
    small = Small(graph, which)
    away = small.patch(kind, **inputs).denoiser_errors(server, real=small.bare)
    assert max(away.values()) < 1e-5, away


@pytest.mark.parametrize("put", WINDOWS, ids=str)
def test_a_fit_uses_the_windows_of_each_step(server, graph, put):
    kind, inputs = put
    small = Small(graph, "wan", length=33).patch(kind, **inputs)
    away = small.denoiser_errors(server)
    assert max(away.values()) < 1e-5, away
    long_video = Small(graph, "wan", length=33)
    other = long_video.patch(kind, **inputs).denoiser_errors(server, real=long_video.bare)
    assert min(other.values()) > 1e-3, other


@pytest.mark.parametrize("which", ["sd15", "wan"])
@pytest.mark.parametrize(
    "keyframes", ["0 1", "0 0, 0.5 1", "0 0, 0.3 1, 0.6 -1", "0.2 1, 0.4 0.5, 0.6 0, 0.8 -1"]
)
def test_a_fit_uses_the_hooks_of_each_step(server, graph, which, keyframes):
    away = Small(graph, which).hooked(keyframes).denoiser_errors(server)
    assert max(away.values()) < 1e-5, away


def folder(server):
    return server.base / "models" / "amed_predictors"


@pytest.mark.parametrize("put", [cache("LazyCache", 0.0), cache("EasyCache", 0.15)], ids=str)
def test_calibrate_fits_the_model_itself_under_a_cache(server, graph, put):
    """The saved file equals that of the MODEL without the cache."""
    specs = []
    for name, on in (("bare", False), ("cached", True)):
        small = Small(graph, "wan", length=1)
        if on:
            small.patch(put[0], **put[1])
        small.calibrate(name, "2", evaluations=1340)
        server.run(small.g.nodes)
        specs.append(load(folder(server) / f"{name}-nfe2-cfg2.safetensors"))
    assert specs[0].spec.metrics == specs[1].spec.metrics and (specs[0].base == specs[1].base).all()


def test_a_feature_that_replaces_the_network_is_named_and_nothing_saved(server, graph):
    small = Small(graph, "wan", length=1).patch("TestStepCache", resets="never")
    small.calibrate("spoiled")
    with pytest.raises(RunError, match=r"not by the network.*TestStepCache.*from before the node"):
        server.run(small.g.nodes)
    assert not list(folder(server).glob("spoiled*"))

    plot = Small(graph, "wan", length=1).patch("TestStepCache", resets="never")
    plot.g.add("AMEDTrajectoryPlot", **plot.around(), seed=1, nfe=4, guidance=2.0, reference=20)
    with pytest.raises(RunError, match=r"not by the network.*TestStepCache"):
        server.run(plot.g.nodes)


def test_a_trajectory_under_windows_and_a_cache(server, graph):
    small = Small(graph, "wan", length=33).patch(*WINDOWS[1][:1], **WINDOWS[1][1])
    small.patch("LazyCache", **cache("LazyCache", 0.0)[1])
    plot = small.g.add("AMEDTrajectoryPlot", **small.around(), seed=1, nfe=4, guidance=2.0, reference=20)
    shown = small.g.add("PreviewAny", source=[plot, 1])
    assert "evaluations counted: reference 20" in server.run(small.g.nodes).text(shown)


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_compare_counts_real_network_evaluations(server, graph, kind):
    """A sampler's steps are found as without the cache; evaluations that the cache skips are not counted."""
    rows = []
    for on in (False, True):
        small = Small(graph, "wan", length=1)
        if on:
            small.patch(kind, **cache(kind, 0.0)[1] | {"reuse_threshold": 3.0})
        node = small.g.add("AMEDCompare", **small.around(), samplers="heun / simple\neuler / simple", nfe="9",
                           guidance=1.0, seed=1, seeds=1, reference=0)  # fmt: skip
        shown = small.g.add("PreviewAny", source=[node, 2])
        text = server.run(small.g.nodes).text(shown)
        rows.append([line.split(",") for line in text.splitlines()[1:]])
    bare, cached = rows
    assert [row[3] for row in bare] == [row[3] for row in cached] == ["5", "9"]  # steps
    assert [row[5] for row in bare] == ["9", "9"]  # passes
    assert all(0 < float(row[5]) < 9 for row in cached), cached


def test_train_says_that_hooks_on_weights_take_no_gradient(server, graph):
    small = Small(graph, "sd15").hooked("0 1")
    small.g.add("AMEDTrainPredictor", **small.around(), sampler="amed", nfe=4, guidance=1.0, images=4,
                batch=4, teacher_points=1, learning_rate=0.005, seed=0, name="hooked")  # fmt: skip
    with pytest.raises(RunError, match="hooks that change"):
        server.run(small.g.nodes)


class Nested:
    """A graph on a small network of video and sound."""

    def __init__(self, graph):
        self.g = graph()
        self.g.nodes.clear()
        node = self.g.add("SmallNested", batch=2)
        prompts = ([self.g.add("TestPrompt", seed=seed, repeats=1, width=64), 0] for seed in (1, 2))
        self.around = dict(zip(("positive", "negative"), prompts)) | {
            "model": [node, 0], "latent_image": [node, 1], "guidance": 1.0
        }  # fmt: skip

    def add(self, kind, **inputs):
        return self.g.add(kind, **self.around, **inputs)


def test_nested_latents_are_fitted_compared_and_drawn(server, graph):
    """Video and sound together: a fit that is found and beats a plain solver."""
    fit = Nested(graph)
    fit.add("AMEDCalibrate", nfe="4", sampler="amed_multistep", budget="custom", evaluations=LEAST, seed=0,
            name="both")  # fmt: skip
    server.run(fit.g.nodes)
    spec = load(folder(server) / "both-nfe4-cfg1.safetensors").spec
    assert spec.learned and spec.metrics["error"] < spec.metrics["plain_error"]
    grid = Nested(graph)
    node = grid.add("AMEDCompare", samplers="amed\nplain", nfe="4", seed=1, seeds=2, reference=32)
    shown, picture = grid.g.add("PreviewAny", source=[node, 2]), grid.g.add("PreviewImage", images=[node, 0])
    result = server.run(grid.g.nodes)
    rows = [line.split(",") for line in result.text(shown).splitlines()[2:]]
    assert [row[:1] + row[4:5] for row in rows] == [["amed", "4"], ["plain", "4"]]
    assert float(rows[0][7]) < float(rows[1][7]) and result.images(picture)[0].std() > 10
    plot = Nested(graph)
    node = plot.add("AMEDTrajectoryPlot", seed=1, nfe=4, reference=24)
    shown = plot.g.add("PreviewAny", source=[node, 1])
    assert "both-nfe4-cfg1" in server.run(plot.g.nodes).text(shown)


def test_img2img_reports_how_many_evaluations_ran(server, graph):
    """denoise 0.3 of 5 evaluations runs one; the ordinary KSampler, which the remark names, runs 5."""
    g = graph()
    start = g.ksampler("euler", steps=4)
    node = g.amed(5, "auto", denoise=0.3, if_missing="plain", latent_image=start)[0]
    g.show([node, 0])
    text = server.run(g.nodes).text(node)
    assert "evaluations counted: 1" in text and "1 of the 5 evaluations" in text
    assert "use the ordinary KSampler with 5 steps" in text and "set nfe" not in text  # none up to 50 gives 5

    g = graph()
    again = g.ksampler("amed_multistep", "amed", 5, denoise=0.3, latent_image=g.ksampler("euler", steps=4))
    g.show(again)
    messages = PageMessages(again[0])
    server.run(g.nodes, messages)
    assert any("5 evaluations" in text for text in messages.texts), messages.texts


def test_a_too_small_budget_is_answered_with_the_required_ones(server, graph):
    g = graph(width=16, height=16)
    g.add("AMEDCalibrate", **g.around(), nfe="4, 8", sampler="amed_multistep", guidance=1.0, budget="custom",
          evaluations=1000, seed=0, name="short")  # fmt: skip
    with pytest.raises(RunError, match=r"1,000 evaluations.*1,780 for nfe 4, 2,660 for nfe 8"):
        server.run(g.nodes)


@pytest.mark.parametrize("node", ["AMEDCalibrate", "AMEDTrajectoryPlot"])
def test_guidance_with_momentum_is_refused_by_name(server, graph, node):
    """APG with momentum remembers earlier evaluations, even of another run; without momentum it does not."""
    inputs = {"eta": 1.0, "norm_threshold": 0.0}
    small = Small(graph, "sd15").patch("APG", momentum=0.5, **inputs)
    if node == "AMEDCalibrate":
        small.calibrate("remembering")
    else:
        small.g.add(node, **small.around(), seed=0, nfe=5, guidance=2.0, reference=20)
    with pytest.raises(RunError, match="denoises the same image differently.*nodes_apg.py.*remembers"):
        server.run(small.g.nodes)
    assert not list((server.base / "models" / "amed_predictors").glob("remembering*"))
    away = Small(graph, "sd15").patch("APG", momentum=0.0, **inputs).denoiser_errors(server)
    assert max(away.values()) < 1e-5, away
