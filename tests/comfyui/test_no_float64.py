"""ComfyUI on a device without float64 (tests/no_float64.py), as on Apple's GPUs: every node gives the same
result there as on the CPU."""

from pathlib import Path

import numpy as np
import pytest
from comfyui.conftest import MLP, Graph, copy_test_nodes, demo_spec, write_user_predictors

from amed import SAMPLERS, Fitted, load, save, schedules
from amed.fit import smallest_budget
from amed.fit.plain_solvers import SOLVERS
from amed.outside import Outside
from demo import comfyui
from demo.model import SIGMA_MAX, SIGMA_MIN

DEVICE = "nodouble"
LEVELS = 1  # of 255: the difference allowed between images of two devices, which round sums differently


@pytest.fixture(scope="module")
def server_on_device(tmp_path_factory, server):
    """A ComfyUI whose device has no float64."""
    base = tmp_path_factory.mktemp("elsewhere")
    write_user_predictors(base / "models" / "amed_predictors")
    copy_test_nodes(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMED_TEST_DEVICE", str(Path(__file__).parents[1] / "no_float64.py"))
        running = comfyui.Server(base).start()
    yield running
    running.stop()


class GraphOn(Graph):
    """A graph whose network must run on a given device."""

    def __init__(self, device, **size):
        super().__init__(**{"width": 16, "height": 16, "batch": 2} | size)
        self.model = [self.add("TestWhere", model=self.model, device=device), 0]


@pytest.fixture
def both(server, server_on_device):
    """`both(put)` returns the images of `put(graph)` -> {name: LATENT node} on the CPU and on the device."""

    def run(put, **size):
        results = []
        for running, device in ((server, "cpu"), (server_on_device, DEVICE)):
            g = GraphOn(device, **size)
            shown = {name: g.show(latent) for name, latent in put(g).items()}
            result = running.run(g.nodes)
            results.append({name: np.stack(result.images(node)).astype(int) for name, node in shown.items()})
        on_cpu, on_device = results
        for name, images in on_cpu.items():
            assert images.std() > 10, name
            assert np.abs(images - on_device[name]).max() <= LEVELS, name

    return run


def test_every_sampler_in_the_ordinary_ksampler(both):
    """On the `amed` schedule with as many levels as a file has, on another schedule, and from a lower
    level."""

    def put(g):
        nodes = {}
        for name in SAMPLERS:
            steps = 4 if name == "amed_multistep" else 2
            nodes[f"{name} amed"] = g.ksampler(name, "amed", steps)
            nodes[f"{name} karras"] = g.ksampler(name, "karras", 4, cfg=2.0)
            nodes[f"{name} below"] = g.ksampler(
                name, "amed", 4, denoise=0.6, latent_image=nodes[f"{name} amed"]
            )
        return nodes

    both(put)


def test_every_sampling_node(both):
    def put(g):
        nodes = {name: g.amed(nfe=4, sampler=name, if_missing="plain") for name in SAMPLERS}
        nodes["auto"] = g.amed(nfe=5, sampler="auto", if_missing="plain")
        nodes["guided"] = g.amed(nfe=5, sampler="auto", guidance=2.0, if_missing="plain")
        nodes["bundled"] = g.amed(nfe=6, sampler="amed_multistep", guidance=2.0, if_missing="plain")
        nodes["network"] = g.amed(nfe=6, guidance=2.0, predictor=MLP)
        nodes["below"] = g.amed(
            nfe=5, sampler="auto", denoise=0.5, if_missing="plain", latent_image=nodes["auto"]
        )
        for name in ("auto", *SAMPLERS):
            sampler = g.add("AMEDSampler", sampler=name, if_missing="plain")
            times = g.add("AMEDScheduler", model=g.model, sampler=name, nfe=4, denoise=1.0)
            nodes[f"nothing linked {name}"] = g.custom(sampler, times)
        loaded = g.add("AMEDLoadPredictor", name="test_amed_multistep.safetensors")
        applied = g.add("AMEDApplyPredictor", model=g.model, predictor=[loaded, 0])
        nodes["applied"] = g.ksampler("amed_multistep", "amed", 4, model=[applied, 0])
        for solver in SOLVERS:
            plain_inputs = {"nfe": 6, "schedule": "polynomial", "rho": 7.0, "afs": False}
            node = g.add("AMEDPlainSolver", model=g.model, solver=solver, **plain_inputs)
            fitted_inputs = {
                "add_noise": True,
                "noise_seed": 3,
                "cfg": 1.0,
                "sampler": [node, 0],
                "sigmas": [node, 1],
            }
            nodes[f"plain {solver}"] = [g.add("SamplerCustom", **fitted_inputs, **g.around()), 0]
        return nodes

    both(put)


def test_a_masked_latent(both):
    """The kept part is restored on the device."""

    def put(g):
        start = g.ksampler("euler", "karras", 4)
        masked = g.right_half_masked(start)
        return {
            "ours": g.ksampler("amed_multistep", "amed", 4, latent_image=masked),
            "auto": g.amed(nfe=5, sampler="auto", guidance=2.0, if_missing="plain", latent_image=masked),
        }

    both(put, width=32, height=32)


def test_around_a_sampler_of_the_hosts(both, server, server_on_device):
    """With a file: Apply and the ordinary KSampler, and SAMPLER with SIGMAS."""
    times = schedules.make("polynomial", 5, SIGMA_MIN, SIGMA_MAX)[:4]
    for sampler, levels in (("uni_pc", times), ("dpmpp_2m", times)):
        fields = {"schedule": "custom", "sigma_min": float(times[-1]), "num_steps": 4, "calls": 4}
        spec = demo_spec(solver="outside", of=sampler, **fields)
        for running in (server, server_on_device):
            folder = running.base / "models" / "amed_predictors"
            save(folder / f"around_{sampler}.safetensors", Fitted(spec, Outside(times, levels), times))

    def put(g):
        nodes = {}
        for sampler in ("uni_pc", "dpmpp_2m"):
            loaded = g.add("AMEDLoadPredictor", name=f"around_{sampler}.safetensors")
            applied = g.add("AMEDApplyPredictor", model=g.model, predictor=[loaded, 0])
            nodes[sampler] = g.ksampler(sampler, "amed", 4, model=[applied, 0])
            nodes[f"{sampler} karras"] = g.ksampler(sampler, "karras", 5, model=[applied, 0])
            node = g.add("AMEDSampler", sampler="auto", if_missing="error", predictor=[loaded, 0])
            list_ = g.add(
                "AMEDScheduler", model=g.model, sampler="auto", nfe=8, denoise=1.0, predictor=[loaded, 0]
            )
            nodes[f"{sampler} node"] = g.custom(node, list_)
        return nodes

    both(put)


ASKED = {
    "nfe": "2",
    "sampler": "amed_multistep",
    "guidance": 1.0,
    "budget": "custom",
    "evaluations": smallest_budget(3),
    "seed": 0,
}


@pytest.mark.parametrize(
    "inputs",
    [{"guidance": 2.0, "nfe": "3", "passes": 5}, {"sampler": "amed"}, {"wrapped": "dpmpp_2m"}],
    ids=str,
)
def test_calibrate_amed(server, server_on_device, inputs):
    errors = []
    for running, device in ((server, "cpu"), (server_on_device, DEVICE)):
        g, more = GraphOn(device), dict(inputs)
        if "wrapped" in more:
            more["wrapped"] = [g.add("KSamplerSelect", sampler_name=more["wrapped"]), 0]
        fit = g.add("AMEDCalibrate", **g.around() | ASKED | {"name": "no-double"} | more)
        info = g.add("AMEDPredictorInfo", predictor=[fit, 0])
        saved = g.add("AMEDSavePredictor", predictor=[fit, 0], name="no-double-kept")
        g.add("PreviewImage", images=[fit, 1])
        result = running.run(g.nodes)
        assert result.text(info) and result.text(saved)
        folder = running.base / "models" / "amed_predictors"
        (path,) = folder.rglob(f"no-double-nfe{more.get('nfe', '2')}-*.safetensors")
        errors.append(load(path).spec.metrics["error"])
        path.unlink()
    assert errors[1] == pytest.approx(errors[0], rel=0.03)


def test_train_amed_predictor(server, server_on_device):
    errors = []
    for running, device in ((server, "cpu"), (server_on_device, DEVICE)):
        g = GraphOn(device)
        inputs = {"sampler": "amed", "nfe": 4, "guidance": 1.0, "images": 8, "batch": 4, "teacher_points": 1}
        rest = {"learning_rate": 5e-3, "seed": 0, "name": "no-double"}
        fit = g.add("AMEDTrainPredictor", **g.around(), **inputs, **rest)
        g.add("PreviewImage", images=[fit, 1])
        running.run(g.nodes)
        (path,) = (running.base / "models" / "amed_predictors").rglob("no-double-nfe4-cfg1.safetensors")
        errors.append(load(path).spec.metrics["error"])
        path.unlink()
    assert errors[1] == pytest.approx(errors[0], rel=0.03)


def test_nodes_that_draw_pictures(server_on_device):
    """Compare, Trajectory Plot and the counting nodes."""
    g = GraphOn(DEVICE)
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
    result = server_on_device.run(g.nodes)
    assert len(result.images(compared)) == 1 and "not finite" not in result.text(compared)
    assert all(len(result.images(node)) == 1 for node in plots)
    assert result.text(used).startswith("5 evaluations")
