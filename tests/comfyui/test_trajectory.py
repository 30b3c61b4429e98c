"""AMED Trajectory Plot on the demo model in a real ComfyUI."""

import re

import numpy as np
import pytest

from amed import load
from demo.comfyui import ROOT, RunError


class Plotted:
    """The node's output: its text, split into lines, and the picture."""

    def __init__(self, server, g, **changed):
        usual = {"seed": 3, "nfe": 5, "guidance": 1.0, "reference": 40}
        node = g.add("AMEDTrajectoryPlot", **g.around() | usual | changed)
        shown = g.add("PreviewAny", source=[node, 1])
        result = server.run(g.nodes)
        self.lines, self.image = result.text(shown).splitlines(), result.images(node)[0]

    def starting(self, text):
        return next(line for line in self.lines if line.startswith(text))

    def ends(self):
        """Return how far each solver's end is from the reference's."""
        return {line.split(":")[1].rsplit(" ", 1)[0].strip(): float(line.rsplit(" ", 1)[1])
                for line in self.lines if line.startswith("distance of the end")}  # fmt: skip

    def moves(self):
        """Return (from, to, sigma_model, weights of each part) of each move; sigma_model is None without an
        evaluation."""
        plotted = []
        for line in self.lines:
            if match := re.match(r"\d+: (\S+), (\S+); (.*?); ([^;]*)", line):
                start, end, level, weights = match.groups()
                sigma_model = None if level.startswith("none") else float(level)
                parts = [[float(w) for w in part.split()] for part in weights.split("|")]
                plotted.append((float(start), float(end), sigma_model, parts))
        return plotted


@pytest.fixture(scope="module")
def plotted(server, graph):
    """Return a plot with the library's own predictor for this model."""
    return Plotted(server, graph())


def test_the_plot_is_of_the_librarys_predictor(plotted):
    assert plotted.starting("predictor: emoji32-multistep-nfe5-cfg1.safetensors")
    assert plotted.starting("evaluations counted: reference 40, AMED Multistep 5, plain ipndm-2 5")
    drawn, total = (float(v) for v in re.findall(r"([\d.]+)%", plotted.starting("two components"))[:2])
    assert 0 < drawn < total < 8  # as flat as the paper states
    ends = plotted.ends()
    assert 0 < ends["AMED Multistep"] < ends["plain ipndm-2"] < 0.5
    assert plotted.image.shape[1] == 1500 and (plotted.image < 128).any()


def test_the_moves_equal_the_files(plotted):
    fitted = load(ROOT / "predictors" / "emoji32-multistep-nfe5-cfg1.safetensors")
    moves = plotted.moves()
    times, weights = fitted.sigmas().tolist(), fitted.predictor.weights.mT.tolist()
    assert [m[0] for m in moves] == pytest.approx(times[:-1], rel=1e-4)
    assert [m[1] for m in moves] == pytest.approx(times[1:], rel=1e-4)
    assert (moves[0][2] is None) == fitted.spec.afs  # the analytic first step
    scales = fitted.predictor.a.tolist()
    assert [m[2] for m in moves[1:]] == pytest.approx(
        [a * t for a, t in zip(scales[1:], times[1:-1])], rel=1e-4
    )
    for (*_, part_weights), rows in zip(moves, weights):
        assert len(part_weights) == len(rows)
        for part, row in zip(part_weights, rows):
            assert part == pytest.approx(row[: len(part)], abs=1e-4) and not any(row[len(part) :])


def test_the_stated_end_is_that_of_the_ksampler(graph, images, plotted):
    """The stated distance is that of AMED KSampler's image to the same reference."""
    g = graph()
    plain = g.add("AMEDPlainSolver", model=g.model, solver="iPNDM-3", nfe=40, schedule="polynomial", rho=7.0,
                  afs=False)  # fmt: skip
    out = g.add("SamplerCustom", add_noise=True, noise_seed=3, cfg=1.0, sampler=[plain, 0], sigmas=[plain, 1],
                **g.around())  # fmt: skip
    plotted_end, two = images(g, [out, 0], g.amed(nfe=5, sampler="auto"))
    away = np.sqrt(((plotted_end.astype(float) - two) ** 2).mean()) / 127.5
    assert plotted.ends()["AMED Multistep"] == pytest.approx(away, rel=0.1)  # 8 bit, clipped


@pytest.mark.parametrize(
    ("file", "nfe", "name", "points"),
    [
        ("emoji32-amed-nfe5-cfg1.safetensors", 5, "AMED", 6),  # with mid times and an analytic first step
        ("test_mlp.safetensors", 6, "AMED", 6),  # a network, whose numbers depend on the image
        ("test_amed_dpmpp_2m.safetensors", 4, "AMED Plugin DPM++ 2M", 4),  # predicts data
    ],
)
def test_any_predictor_can_be_linked(server, graph, file, nfe, name, points):
    g = graph()
    linked = [g.add("AMEDLoadPredictor", name=file), 0]
    plotted = Plotted(server, g, predictor=linked, nfe=nfe, guidance=2.0, reference=20)
    assert plotted.starting(f"evaluations counted: reference 20, {name} {nfe}, plain ")
    moves = plotted.moves()
    assert len(moves) == points
    for start, end, _, weights in moves:
        weight_sum = sum(weights[0])
        assert end < start and (file == "test_mlp.safetensors" or weight_sum == pytest.approx(1.0, abs=0.2))


def test_the_predictor_on_the_model_is_used(server, graph):
    g = graph()
    loaded = g.add("AMEDLoadPredictor", name="test_amed_ipndm.safetensors")
    g.model = [g.add("AMEDApplyPredictor", model=g.model, predictor=[loaded, 0]), 0]
    plotted = Plotted(server, g, nfe=4, reference=20)
    assert plotted.starting("predictor: test_amed_ipndm.safetensors")


def test_a_latent_model_is_drawn(server, graph):
    g = graph()
    loaded = g.add("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    g.model = [loaded, 0]
    g.positive, g.negative = ([g.add("TestPrompt", seed=seed, repeats=1), 0] for seed in (1, 2))
    g.latent = [g.add("EmptyLatentImage", width=64, height=64, batch_size=2), 0]
    linked = [g.add("AMEDLoadPredictor", name="test_sd.safetensors"), 0]
    plotted = Plotted(server, g, predictor=linked, nfe=6, guidance=2.0, reference=20)
    assert plotted.starting("evaluations counted: reference 20, AMED 6, plain ipndm-2 6")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [({"nfe": 25}, "reference is 40, which is .* to draw 25 steps on: set it to at least 50"),
     ({"nfe": 21}, "reference is 40, which is .* to draw 21 steps on: set it to at least 42")],
)  # fmt: skip
def test_invalid_inputs_are_named(server, graph, changed, expected):
    with pytest.raises(RunError, match=expected):
        Plotted(server, graph(), **changed)


def test_without_a_predictor_the_plain_solver_is_drawn(server, graph):
    plotted = Plotted(server, graph(), nfe=12)
    assert plotted.starting("evaluations counted: reference 40, plain ipndm-2 12")
    assert (
        plotted.starting("note: the plain solver ipndm-2 ran: no predictor for nfe 12")
        and len(plotted.moves()) == 12
    )


def test_the_model_is_not_changed(server, graph, images):
    def euler(g):
        return images(g, g.ksampler("euler", seed=11, cfg=2.0))

    before = euler(graph(batch=2))
    g = graph(batch=2)
    Plotted(server, g, reference=20)
    assert np.array_equal(euler(g), before)
