"""ComfyUI on a device without float64 (tests/no_double.py), as on Apple's GPUs: every node, beside the same
on the CPU."""

from pathlib import Path

import numpy as np
import pytest
from comfyui.conftest import MLP, Graph, demo_spec, put_test_nodes, write_user_predictors

from amed import SAMPLERS, Fitted, load, save, schedules
from amed.fit.plain_solvers import SOLVERS
from amed.outside import Outside
from demo import comfyui
from demo.model import SIGMA_MAX, SIGMA_MIN

DEVICE = "nodouble"
LEVELS = 1  # of 255, by which an image may differ: the sums of two devices are rounded differently


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, server):
    """A ComfyUI whose device has no float64."""
    base = tmp_path_factory.mktemp("elsewhere")
    write_user_predictors(base / "models" / "amed_predictors")
    put_test_nodes(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMED_TEST_DEVICE", str(Path(__file__).parents[1] / "no_double.py"))
        running = comfyui.Server(base).start()
    yield running
    running.stop()


class On(Graph):
    """A graph whose network has to run on a device."""

    def __init__(self, device, **size):
        super().__init__(**{"width": 16, "height": 16, "batch": 2} | size)
        self.model = [self.add("TestWhere", model=self.model, device=device), 0]


@pytest.fixture
def both(server, elsewhere):
    """`both(put)`: what `put(graph)` -> {name: node of a LATENT} gives here and there, as images."""

    def run(put, **size):
        found = []
        for running, device in ((server, "cpu"), (elsewhere, DEVICE)):
            g = On(device, **size)
            shown = {name: g.show(latent) for name, latent in put(g).items()}
            result = running.run(g.nodes)
            found.append({name: np.stack(result.images(node)).astype(int) for name, node in shown.items()})
        here, there = found
        for name, images in here.items():
            assert images.std() > 10, name
            assert np.abs(images - there[name]).max() <= LEVELS, name

    return run


def test_every_sampler_in_the_ordinary_ksampler(both):
    """On the `amed` schedule with as many levels as a file of the library has, on another, from below."""

    def put(g):
        made = {}
        for name in SAMPLERS:
            steps = 4 if name == "amed_multistep" else 2
            made[f"{name} amed"] = g.ksampler(name, "amed", steps)
            made[f"{name} karras"] = g.ksampler(name, "karras", 4, cfg=2.0)
            made[f"{name} below"] = g.ksampler(
                name, "amed", 4, denoise=0.6, latent_image=made[f"{name} amed"]
            )
        return made

    both(put)


def test_our_nodes(both):
    def put(g):
        made = {name: g.amed(nfe=4, sampler=name, if_missing="plain") for name in SAMPLERS}
        made["auto"] = g.amed(nfe=5, sampler="auto", if_missing="plain")
        made["guided"] = g.amed(nfe=5, sampler="auto", guidance=2.0, if_missing="plain")
        made["bundled"] = g.amed(nfe=6, sampler="amed_multistep", guidance=2.0, if_missing="plain")
        made["network"] = g.amed(nfe=6, guidance=2.0, predictor=MLP)
        made["below"] = g.amed(
            nfe=5, sampler="auto", denoise=0.5, if_missing="plain", latent_image=made["auto"]
        )
        for name in ("auto", *SAMPLERS):
            sampler = g.add("AMEDSampler", sampler=name, if_missing="plain")
            times = g.add("AMEDScheduler", model=g.model, sampler=name, nfe=4, denoise=1.0)
            made[f"nothing linked {name}"] = g.custom(sampler, times)
        loaded = g.add("AMEDLoadPredictor", name="test_amed_multistep.safetensors")
        applied = g.add("AMEDApplyPredictor", model=g.model, predictor=[loaded, 0])
        made["applied"] = g.ksampler("amed_multistep", "amed", 4, model=[applied, 0])
        for solver in SOLVERS:
            asked = {"nfe": 6, "schedule": "polynomial", "rho": 7.0, "afs": False}
            node = g.add("AMEDPlainSolver", model=g.model, solver=solver, **asked)
            given = {
                "add_noise": True,
                "noise_seed": 3,
                "cfg": 1.0,
                "sampler": [node, 0],
                "sigmas": [node, 1],
            }
            made[f"plain {solver}"] = [g.add("SamplerCustom", **given, **g.around()), 0]
        return made

    both(put)


def test_a_mask(both):
    """The kept part is put back on the device."""

    def put(g):
        start = g.ksampler("euler", "karras", 4)
        masked = g.right_half_masked(start)
        return {
            "ours": g.ksampler("amed_multistep", "amed", 4, latent_image=masked),
            "auto": g.amed(nfe=5, sampler="auto", guidance=2.0, if_missing="plain", latent_image=masked),
        }

    both(put, width=32, height=32)


def test_around_a_sampler_of_the_hosts(both, server, elsewhere):
    """By a file: Apply and the ordinary KSampler, and as SAMPLER and SIGMAS."""
    times = schedules.make("polynomial", 5, SIGMA_MIN, SIGMA_MAX)[:4]
    for sampler, levels in (("uni_pc", times), ("dpmpp_2m", times)):
        own = {"schedule": "custom", "sigma_min": float(times[-1]), "num_steps": 4, "calls": 4}
        spec = demo_spec(solver="outside", of=sampler, **own)
        for running in (server, elsewhere):
            folder = running.base / "models" / "amed_predictors"
            save(folder / f"around_{sampler}.safetensors", Fitted(spec, Outside(times, levels), times))

    def put(g):
        made = {}
        for sampler in ("uni_pc", "dpmpp_2m"):
            loaded = g.add("AMEDLoadPredictor", name=f"around_{sampler}.safetensors")
            applied = g.add("AMEDApplyPredictor", model=g.model, predictor=[loaded, 0])
            made[sampler] = g.ksampler(sampler, "amed", 4, model=[applied, 0])
            made[f"{sampler} karras"] = g.ksampler(sampler, "karras", 5, model=[applied, 0])
            node = g.add("AMEDSampler", sampler="auto", if_missing="error", predictor=[loaded, 0])
            list_ = g.add(
                "AMEDScheduler", model=g.model, sampler="auto", nfe=8, denoise=1.0, predictor=[loaded, 0]
            )
            made[f"{sampler} node"] = g.custom(node, list_)
        return made

    both(put)


ASKED = {
    "nfe": "3",
    "sampler": "amed_multistep",
    "guidance": 1.0,
    "budget": "custom",
    "evaluations": 1600,
    "seed": 0,
}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"guidance": 2.0, "nfe": "4", "passes": 6, "evaluations": 1800},
        {"sampler": "amed", "nfe": "4", "evaluations": 1800},
        {"wrapped": "dpmpp_2m"},
    ],
    ids=str,
)
def test_calibrate(server, elsewhere, asked):
    errors = []
    for running, device in ((server, "cpu"), (elsewhere, DEVICE)):
        g, more = On(device), dict(asked)
        if "wrapped" in more:
            more["wrapped"] = [g.add("KSamplerSelect", sampler_name=more["wrapped"]), 0]
        fit = g.add("AMEDCalibrate", **g.around() | ASKED | {"name": "no-double"} | more)
        info = g.add("AMEDPredictorInfo", predictor=[fit, 0])
        kept = g.add("AMEDSavePredictor", predictor=[fit, 0], name="no-double-kept")
        g.add("PreviewImage", images=[fit, 1])
        result = running.run(g.nodes)
        assert result.text(info) and result.text(kept)
        folder = running.base / "models" / "amed_predictors"
        (path,) = folder.rglob(f"no-double-nfe{more.get('nfe', '3')}-*.safetensors")
        errors.append(load(path).spec.metrics["error"])
        path.unlink()
    assert errors[1] == pytest.approx(errors[0], rel=0.03)


def test_train(server, elsewhere):
    errors = []
    for running, device in ((server, "cpu"), (elsewhere, DEVICE)):
        g = On(device)
        asked = {"sampler": "amed", "nfe": 4, "guidance": 1.0, "images": 8, "batch": 4, "teacher_points": 1}
        rest = {"learning_rate": 5e-3, "seed": 0, "name": "no-double"}
        fit = g.add("AMEDTrainPredictor", **g.around(), **asked, **rest)
        g.add("PreviewImage", images=[fit, 1])
        running.run(g.nodes)
        (path,) = (running.base / "models" / "amed_predictors").rglob("no-double-nfe4-cfg1.safetensors")
        errors.append(load(path).spec.metrics["error"])
        path.unlink()
    assert errors[1] == pytest.approx(errors[0], rel=0.03)


def test_pictures(elsewhere):
    """Compare, Trajectory Plot, the counting nodes."""
    g = On(DEVICE)
    samplers = "amed\nplain\ndpmpp_2m / karras\nuni_pc / simple\nreference"
    compared = g.add("AMEDCompare", **g.around(), samplers=samplers.removesuffix("\nreference"), nfe="4, 6",
                     guidance=2.0, seed=1, seeds=2, reference=20)  # fmt: skip
    plots = [
        g.add("AMEDTrajectoryPlot", **g.around(), seed=1, nfe=nfe, guidance=2.0, reference=24)
        for nfe in (5, 6)
    ]
    counted = g.add("AMEDCountEvaluations", model=g.model)
    sampled = g.amed(nfe=5, sampler="auto", if_missing="plain", model=[counted, 0])
    used = g.add("AMEDEvaluationsUsed", model=[counted, 0], samples=sampled)
    result = elsewhere.run(g.nodes)
    assert len(result.images(compared)) == 1 and "not finite" not in result.text(compared)
    assert all(len(result.images(node)) == 1 for node in plots)
    assert result.text(used).startswith("5 evaluations")
