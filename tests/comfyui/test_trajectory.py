"""AMED Trajectory Plot on the demo model in a real ComfyUI."""

import re

import numpy as np
import pytest

from amed import load
from demo.comfyui import ROOT, RunError


class Plotted:
    """What the node gave: its text, by lines, and the picture."""

    def __init__(self, server, g, **changed):
        usual = {"seed": 3, "nfe": 5, "guidance": 1.0, "reference": 40}
        node = g.add("AMEDTrajectoryPlot", **g.around() | usual | changed)
        shown = g.add("PreviewAny", source=[node, 1])
        result = server.run(g.nodes)
        self.lines, self.image = result.text(shown).splitlines(), result.images(node)[0]

    def starting(self, text):
        return next(line for line in self.lines if line.startswith(text))

    def ends(self):
        """How far each solver's end is from the reference's."""
        return {line.split(":")[1].rsplit(" ", 1)[0].strip(): float(line.rsplit(" ", 1)[1])
                for line in self.lines if line.startswith("distance of the end")}  # fmt: skip

    def moves(self):
        """(from, to, told, weights of each part) of each; told None where nothing is asked."""
        made = []
        for line in self.lines:
            if match := re.match(r"\d+: (\S+), (\S+); (.*?); ([^;]*)", line):
                start, end, level, weights = match.groups()
                told = None if level.startswith("none") else float(level)
                parts = [[float(w) for w in part.split()] for part in weights.split("|")]
                made.append((float(start), float(end), told, parts))
        return made


@pytest.fixture(scope="module")
def made(server, graph):
    """The library's own predictor for this model."""
    return Plotted(server, graph())


def test_the_plot_is_of_the_librarys_predictor(made):
    assert made.starting("predictor: emoji32-multistep-nfe5-cfg1.safetensors")
    assert made.starting("evaluations counted: reference 40, AMED Multistep 5, plain ipndm-2 5")
    drawn, whole = (float(v) for v in re.findall(r"([\d.]+)%", made.starting("two components"))[:2])
    assert 0 < drawn < whole < 8  # as flat as the paper says
    ends = made.ends()
    assert 0 < ends["AMED Multistep"] < ends["plain ipndm-2"] < 0.5
    assert made.image.shape[1] == 1500 and (made.image < 128).any()


def test_moves_are_those_of_the_file(made):
    fitted = load(ROOT / "predictors" / "emoji32-multistep-nfe5-cfg1.safetensors")
    moves = made.moves()
    times, weights = fitted.sigmas().tolist(), fitted.predictor.weights.mT.tolist()
    assert [m[0] for m in moves] == pytest.approx(times[:-1], rel=1e-4)
    assert [m[1] for m in moves] == pytest.approx(times[1:], rel=1e-4)
    assert (moves[0][2] is None) == fitted.spec.afs  # the analytic first step
    scales = fitted.predictor.a.tolist()
    assert [m[2] for m in moves[1:]] == pytest.approx(
        [a * t for a, t in zip(scales[1:], times[1:-1])], rel=1e-4
    )
    for (*_, own), rows in zip(moves, weights):
        assert len(own) == len(rows)
        for part, row in zip(own, rows):
            assert part == pytest.approx(row[: len(part)], abs=1e-4) and not any(row[len(part) :])


def test_ends_are_where_the_ksampler_ends(graph, images, made):
    """The distance that is said is that of AMED KSampler's image to the same reference's."""
    g = graph()
    plain = g.add("AMEDPlainSolver", model=g.model, solver="iPNDM-3", nfe=40, schedule="polynomial", rho=7.0,
                 afs=False)  # fmt: skip
    out = g.add("SamplerCustom", add_noise=True, noise_seed=3, cfg=1.0, sampler=[plain, 0], sigmas=[plain, 1],
                **g.around())  # fmt: skip
    one, two = images(g, [out, 0], g.amed(nfe=5, sampler="auto"))
    away = np.sqrt(((one.astype(float) - two) ** 2).mean()) / 127.5
    assert made.ends()["AMED Multistep"] == pytest.approx(away, rel=0.1)  # 8 bit, clipped


@pytest.mark.parametrize(
    ("file", "nfe", "name", "points"),
    [
        ("emoji32-amed-nfe5-cfg1.safetensors", 5, "AMED", 6),  # mid times, an analytic first step
        ("test_mlp.safetensors", 6, "AMED", 6),  # a network: its numbers are this image's own
        ("test_amed_dpmpp_2m.safetensors", 4, "AMED Plugin DPM++ 2M", 4),  # predicts data
    ],
)
def test_any_predictor_can_be_linked(server, graph, file, nfe, name, points):
    g = graph()
    linked = [g.add("AMEDLoadPredictor", name=file), 0]
    made = Plotted(server, g, predictor=linked, nfe=nfe, guidance=2.0, reference=20)
    assert made.starting(f"evaluations counted: reference 20, {name} {nfe}, plain ")
    moves = made.moves()
    assert len(moves) == points
    for start, end, _, weights in moves:
        whole = sum(weights[0])
        assert end < start and (file == "test_mlp.safetensors" or whole == pytest.approx(1.0, abs=0.2))


def test_the_predictor_on_the_model_is_taken(server, graph):
    g = graph()
    loaded = g.add("AMEDLoadPredictor", name="test_amed_ipndm.safetensors")
    g.model = [g.add("AMEDApplyPredictor", model=g.model, predictor=[loaded, 0]), 0]
    made = Plotted(server, g, nfe=4, reference=20)
    assert made.starting("predictor: test_amed_ipndm.safetensors")


def test_a_latent_model_is_drawn_too(server, graph):
    g = graph()
    loaded = g.add("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    g.model = [loaded, 0]
    g.positive, g.negative = ([g.add("TestPrompt", seed=seed, repeats=1), 0] for seed in (1, 2))
    g.latent = [g.add("EmptyLatentImage", width=64, height=64, batch_size=2), 0]
    linked = [g.add("AMEDLoadPredictor", name="test_sd.safetensors"), 0]
    made = Plotted(server, g, predictor=linked, nfe=6, guidance=2.0, reference=20)
    assert made.starting("evaluations counted: reference 20, AMED 6, plain ipndm-2 6")


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"nfe": 25}, "reference is 40, which is .* to draw 25 steps on: set it to at least 50"),
     ({"nfe": 21}, "reference is 40, which is .* to draw 21 steps on: set it to at least 42")],
)  # fmt: skip
def test_what_cannot_be_is_said(server, graph, changed, said):
    with pytest.raises(RunError, match=said):
        Plotted(server, graph(), **changed)


def test_without_a_predictor_the_plain_solver_is_drawn(server, graph):
    made = Plotted(server, graph(), nfe=12)
    assert made.starting("evaluations counted: reference 40, plain ipndm-2 12")
    assert (
        made.starting("note: the plain solver ipndm-2 ran: no predictor for nfe 12")
        and len(made.moves()) == 12
    )


def test_the_model_is_left_as_it_was(server, graph, images):
    def euler(g):
        return images(g, g.ksampler("euler", seed=11, cfg=2.0))

    before = euler(graph(batch=2))
    g = graph(batch=2)
    Plotted(server, g, reference=20)
    assert np.array_equal(euler(g), before)
