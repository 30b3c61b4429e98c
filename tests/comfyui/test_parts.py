"""Tables with bands, offsets and spared passes in a real ComfyUI: what they cost, where they are taken, and
that nothing of it stays."""

import numpy as np
import pytest
import torch
from safetensors.torch import load

from amed import Fitted, Multistep, Solver, save, schedules
from amed import load as load_predictor
from amed.constants import as_multistep
from amed.fingerprint import fingerprint
from amed.parts import BANDS, PARTS
from demo.comfyui import RunError
from demo.model import SIGMA_MAX, SIGMA_MIN, load_unet

TIMES = schedules.make("time_uniform", 5, SIGMA_MIN, SIGMA_MAX)
FILE = "apart.safetensors"  # takes 4, like others here, at a guidance scale that nothing else was fitted for
SCALE = 3.3
HEARD = 3  # kind of the host's binary messages: a text on a node


def banded(times, count, spread=0.05):
    """Of iPNDM-2, `[4, 4, count]`: in each band a little other."""
    own = torch.zeros(4, 4, 1, dtype=torch.float64)
    own[:, :2] = as_multistep(Solver("ipndm", 2), times).weights[..., :1]
    return own * (1 + spread * torch.linspace(-1, 1, count, dtype=torch.float64))


def apart(alone=(2, 3)):
    """A table by halves and bands with offsets; what guidance adds is of the second slope from there on."""
    weights = banded(TIMES, 2 * BANDS)
    weights[2:, :, BANDS:] = 0
    weights[2, 1, BANDS:] = weights[3, 2, BANDS:] = 1
    offset = torch.linspace(-0.02, 0.02, 12).view(4, 3)
    return Multistep(TIMES, weights, None, "halves+bands", offset, alone)


@pytest.fixture
def saved(server, demo_spec):
    """`saved(table, name)`: a table for the demo model at SCALE, among the user's files."""

    def write(table, name=FILE, **said):
        own = fingerprint(load_unet().named_parameters())
        channels = 0 if table.offset is None else table.offset.shape[1]
        usual = {"guidance": SCALE, "model_fingerprint": own, "metrics": {"error": 0.001}}
        spec = demo_spec(
            solver="multistep", num_steps=5, parts=table.parts, channels=channels, **usual | said
        )
        save(server.base / "models" / "amed_predictors" / name, Fitted(spec, table, table.sigmas))

    return write


def sampled(server, g, **asked):
    """The report and the images of an AMED KSampler."""
    latent = g.amed(**{"sampler": "auto", "guidance": SCALE} | asked)
    shown = g.show(latent)
    result = server.run(g.nodes)
    return result.text(latent[0]), np.stack(result.images(shown)).astype(int)


@pytest.mark.parametrize("batch", [1, 5])
def test_spared_passes_are_counted_and_nothing_else_changes(server, graph, saved, batch):
    saved(apart())
    report, images = sampled(server, graph(batch=batch))
    assert f"predictor: {FILE} (multistep, 4 evaluations in 6 passes, guidance {SCALE}" in report
    assert "evaluations counted: 4, 6 network passes an image" in report and "note:" not in report
    saved(apart(alone=()))
    report, whole = sampled(server, graph(batch=batch))
    assert "evaluations counted: 4, 8 network passes an image" in report and "note:" not in report
    assert len(images) == batch and images.std() > 10 and abs(images - whole).max() <= 2
    saved(Multistep(TIMES, apart().weights[..., :BANDS], None, "bands"))
    assert abs(sampled(server, graph(batch=batch))[1] - whole).max() > 8  # the offsets, and what waits


def test_the_first_of_a_batch_is_the_one_alone(server, graph, saved):
    saved(apart())
    (_, one), (_, five) = (sampled(server, graph(batch=batch)) for batch in (1, 5))
    assert abs(one[0] - five[0]).max() <= 2


def test_the_model_is_left_as_it_was(server, graph, saved, images):
    def euler(g):
        return images(g, g.ksampler("euler", seed=11, cfg=2.0))

    saved(apart())
    before = euler(graph(batch=2))
    sampled(server, graph(batch=2))
    assert np.array_equal(euler(graph(batch=2)), before)


def test_a_mask_keeps_its_part_where_a_pass_is_spared(server, graph, saved):
    """With a mask the ends of both tables agree, and the kept columns are the start's."""
    ends = []
    for alone in ((2, 3), ()):
        saved(apart(alone))
        g = graph()
        start = g.ksampler("euler", "karras", 4)
        first = g.show(start)
        latent = g.amed(sampler="auto", guidance=SCALE, latent_image=g.right_half_masked(start))
        shown = g.show(latent)
        result = server.run(g.nodes)
        ends.append(result.images(shown)[0].astype(int))
        assert abs(ends[-1] - result.images(first)[0])[:, :16].max() <= 1
    assert abs(ends[0] - ends[1]).max() <= 2 and "6 network passes" not in result.text(latent[0])


def test_below_the_top_guidance_is_run_in_full(server, graph, saved):
    saved(apart())
    g = graph()
    latent = g.amed(
        sampler="auto", guidance=SCALE, denoise=0.6, latent_image=g.ksampler("euler", "karras", 4)
    )
    g.show(latent)
    report = server.run(g.nodes).text(latent[0])
    assert f"predictor: {FILE}" in report and "started below the top" in report
    evaluations = int(report.split("counted: ")[1].split(",")[0])
    assert f"{2 * evaluations} network passes" in report


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("RescaleCFG", {"multiplier": 0.7}),
        ("TestModel", {"which": "bent"}),
        ("TestModel", {"which": "halved"}),
    ],
)
def test_with_a_patch_on_guidance_it_is_left_out(server, graph, saved, kind, inputs):
    saved(apart())
    g = graph()
    g.model = [g.add(kind, model=g.model, **inputs), 0]
    report, _ = sampled(server, g)
    assert f"predictor: {FILE}" not in report and "4, 8 network passes an image" in report
    assert f"note: {FILE} (multistep, 4 evaluations in 6 passes" in report and "left out: " in report
    g = graph()
    g.model = [g.add(kind, model=g.model, **inputs), 0]
    with pytest.raises(RunError, match="takes the halves of guidance apart"):
        sampled(server, g, predictor=FILE)


GUIDERS = {
    "CFGGuider": ({"positive": "positive", "negative": "negative", "cfg": SCALE}, 6),
    "DualCFGGuider": ({"cond1": "positive", "cond2": "positive", "negative": "negative", "cfg_conds": SCALE,
                       "cfg_cond2_negative": SCALE, "style": "regular"}, 12),
    "PerpNegGuider": ({"positive": "positive", "negative": "negative", "empty_conditioning": "negative",
                       "cfg": SCALE, "neg_scale": 1.0}, 12),
}  # fmt: skip


@pytest.mark.parametrize("kind", GUIDERS)
def test_other_guiders_keep_guidance_whole(server, graph, saved, kind):
    """What ran is said on the sampling node."""
    saved(apart())
    inputs, passes = GUIDERS[kind]
    g = graph()
    inputs = {
        name: getattr(g, v) if isinstance(v, str) and hasattr(g, v) else v for name, v in inputs.items()
    }
    guider = g.add(kind, model=g.model, **inputs)
    sampler = g.add("AMEDSampler", sampler="amed_multistep", if_missing="error")
    own = [g.add("AMEDLoadPredictor", name=FILE), 0]  # for the noise levels alone
    sigmas = g.add(
        "AMEDScheduler", model=g.model, predictor=own, sampler="amed_multistep", nfe=4, denoise=1.0
    )
    noise = g.add("RandomNoise", noise_seed=3)
    run = g.add("SamplerCustomAdvanced", noise=[noise, 0], guider=[guider, 0], sampler=[sampler, 0],
                sigmas=[sigmas, 0], latent_image=g.latent)  # fmt: skip
    g.show([run, 0])
    said = []

    def heard(event, data):
        if event == "binary" and int.from_bytes(data["bytes"][:4], "big") == HEARD:
            length = int.from_bytes(data["bytes"][4:8], "big")
            if data["bytes"][8 : 8 + length].decode() == run:
                said.append(data["bytes"][8 + length :].decode())

    server.run(g.nodes, heard)
    whole = kind in ("DualCFGGuider", "PerpNegGuider")
    assert f"AMED: 4 evaluations, {passes} passes an image, " in said[-1]
    assert said[-1].endswith(FILE) != whole and ("left out" in said[-1]) == whole
    assert "could not be captured" not in said[-1]


def test_it_is_shown_whole(server, graph, saved):
    """Predictor Info has a line of each part's weights, Trajectory Plot a table of each."""
    saved(apart())
    g = graph()
    loaded = [g.add("AMEDLoadPredictor", name=FILE), 0]
    info = g.add("AMEDPredictorInfo", predictor=loaded)
    plot = g.add("PreviewImage", images=[info, 1])
    result = server.run(g.nodes)
    text = result.text(info)
    assert text.count("the prompt's, finest band: ") == 4 == text.count("what guidance adds, coarsest band: ")
    assert text.count("one pass") == 2 and 'parts: "halves+bands"' in text and "channels: 3" in text
    picture = result.images(plot)[0]
    assert picture.shape[0] > picture.shape[1]  # a plot of each half, and one of the offsets


def test_its_trajectory_is_plotted(server, graph, saved):
    saved(apart())
    g = graph()
    loaded = [g.add("AMEDLoadPredictor", name=FILE), 0]
    node = g.add(
        "AMEDTrajectoryPlot", **g.around(), seed=3, nfe=4, guidance=SCALE, reference=40, predictor=loaded
    )
    shown = g.add("PreviewAny", source=[node, 1])
    result = server.run(g.nodes)
    text = result.text(shown)
    assert "AMED Multistep 4" in text and text.count(" in one pass; ") == 2 and text.count("; offset ") == 4
    assert result.images(node)[0].shape[0] > 3000  # eight tables


@pytest.mark.parametrize("parts", ["bands", "halves+bands"])
@pytest.mark.parametrize(("width", "height"), [(72, 104), (40, 24)])
def test_odd_sizes(server, graph, demo_spec, parts, width, height):
    """Latents of 9 x 13 and of 5 x 3: with weights alike in all bands the image is the whole slope's."""
    low, high = 0.029167158151720367, 14.614641229333639
    times = schedules.make("discrete", 5, low, high)
    ends = []
    for name in ("", parts):
        table = Multistep(times, banded(times, PARTS[name].count, 0.0), None, name)
        spec = demo_spec(
            solver="multistep", num_steps=5, schedule="discrete", sigma_min=low, sigma_max=high, parts=name,
            prediction_type="eps", model_family="sd15", guidance=2.0,
        )  # fmt: skip
        save(server.base / "models" / "amed_predictors" / "odd.safetensors", Fitted(spec, table, times))
        g = graph()
        g.model = [g.add("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"), 0]
        g.positive, g.negative = ([g.add("TestPrompt", seed=seed, repeats=1), 0] for seed in (1, 2))
        g.latent = [g.add("EmptyLatentImage", width=width, height=height, batch_size=2), 0]
        latent = g.amed(sampler="auto", guidance=2.0, predictor="odd.safetensors")
        g.add("SaveLatent", samples=latent, filename_prefix="odd")
        result = server.run(g.nodes)
        assert "predictor: odd.safetensors" in result.text(latent[0])
        ends.append(load(server.view(result.files("latents")[0]))["latent_tensor"])
    assert ends[0].shape[-2:] == (height // 8, width // 8) and ends[0].std() > 0.05
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-3, atol=1e-3 * float(ends[0].std()))


# --- Calibrate AMED, with fewer passes ---------------------------------------------------------------------


def add_calibrate(g, **other):
    asked = {"nfe": "3", "sampler": "amed_multistep", "guidance": 2.0, "budget": "custom",
             "evaluations": 1560, "seed": 0, "name": "few", "passes": 5}  # fmt: skip
    return g.add("AMEDCalibrate", **g.around() | asked | other)


def test_with_a_patch_on_guidance_fewer_passes_are_an_error(server, graph):
    g = graph(width=16, height=16)
    g.model = [g.add("RescaleCFG", model=g.model, multiplier=0.7), 0]
    add_calibrate(g)
    said = "passes cannot be limited, because this MODEL has sampler_cfg_function.*Set passes to 0"
    with pytest.raises(RunError, match=said):
        server.run(g.nodes)


@pytest.mark.parametrize(
    ("other", "said"),
    [({"guidance": 1.0}, "only amed_multistep under guidance"), ({"sampler": "amed"}, "only amed_multistep"),
     ({"passes": 7}, "3 evaluations take 4 to 6 under guidance"), ({"passes": 3}, "take 4 to 6")],
)  # fmt: skip
def test_passes_that_cannot_be_are_an_error(server, graph, other, said):
    g = graph(width=16, height=16)
    add_calibrate(g, **other)
    with pytest.raises(RunError, match=said):
        server.run(g.nodes)


def test_fewer_passes_are_calibrated(server, graph):
    """It is a file of its own, and runs in so many passes."""
    g = graph(width=16, height=16)
    add_calibrate(g, nfe="4", passes=6, evaluations=3000)
    server.run(g.nodes)
    name = "few-nfe4-cfg2-passes6.safetensors"
    fitted = load_predictor(server.base / "models" / "amed_predictors" / name)
    report, _ = sampled(server, graph(), predictor=name)
    assert fitted.spec.learned and (fitted.nfe, fitted.passes) == (4, 6)
    assert "evaluations counted: 4, 6 network passes an image" in report
