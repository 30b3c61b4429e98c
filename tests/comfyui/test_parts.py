"""Tables with bands, offsets and spared passes in a real ComfyUI: their cost, where they run, and that they
leave nothing behind."""

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
FILE = "apart.safetensors"  # 4 evaluations, at a guidance scale that no other file was fitted for
SCALE = 3.3
HEARD = 3  # kind of the host's binary messages: a text on a node


def banded_weights(times, count, spread=0.05):
    """Return iPNDM-2's weights `[4, 4, count]`, slightly different in each band."""
    bent = torch.zeros(4, 4, 1, dtype=torch.float64)
    bent[:, :2] = as_multistep(Solver("ipndm", 2), times).weights[..., :1]
    return bent * (1 + spread * torch.linspace(-1, 1, count, dtype=torch.float64))


def table_of_parts(alone=(2, 3)):
    """A table by halves and bands with offsets; spared steps take guidance's part from the second slope."""
    weights = banded_weights(TIMES, 2 * BANDS)
    weights[2:, :, BANDS:] = 0
    weights[2, 1, BANDS:] = weights[3, 2, BANDS:] = 1
    offset = torch.linspace(-0.02, 0.02, 12).view(4, 3)
    return Multistep(TIMES, weights, None, "halves+bands", offset, alone)


@pytest.fixture
def save_table(server, demo_spec):
    """`saved(table, name)` writes a table for the demo model at SCALE into the user's folder."""

    def write(table, name=FILE, **said):
        demo_fingerprint = fingerprint(load_unet().named_parameters())
        channels = 0 if table.offset is None else table.offset.shape[1]
        usual = {"guidance": SCALE, "model_fingerprint": demo_fingerprint, "metrics": {"error": 0.001}}
        spec = demo_spec(
            solver="multistep", num_steps=5, parts=table.parts, channels=channels, **usual | said
        )
        save(server.base / "models" / "amed_predictors" / name, Fitted(spec, table, table.sigmas))

    return write


def sampled(server, g, **asked):
    """Return the report and the images of an AMED KSampler."""
    latent = g.amed(**{"sampler": "auto", "guidance": SCALE} | asked)
    shown = g.show(latent)
    result = server.run(g.nodes)
    return result.text(latent[0]), np.stack(result.images(shown)).astype(int)


@pytest.mark.parametrize("batch", [1, 5])
def test_spared_passes_are_counted_and_the_image_stays_near(server, graph, save_table, batch):
    save_table(table_of_parts())
    report, images = sampled(server, graph(batch=batch))
    assert f"predictor: {FILE} (multistep, 4 evaluations in 6 passes, guidance {SCALE}" in report
    assert "evaluations counted: 4, 6 network passes per image" in report and "note:" not in report
    save_table(table_of_parts(alone=()))
    report, unspared = sampled(server, graph(batch=batch))
    assert "evaluations counted: 4, 8 network passes per image" in report and "note:" not in report
    assert len(images) == batch and images.std() > 10 and abs(images - unspared).max() <= 2
    save_table(Multistep(TIMES, table_of_parts().weights[..., :BANDS], None, "bands"))
    assert (
        abs(sampled(server, graph(batch=batch))[1] - unspared).max() > 8
    )  # the offsets, and the spared passes


def test_the_first_image_of_a_batch_equals_the_single_one(server, graph, save_table):
    save_table(table_of_parts())
    (_, single), (_, five) = (sampled(server, graph(batch=batch)) for batch in (1, 5))
    assert abs(single[0] - five[0]).max() <= 2


def test_the_model_is_not_changed(server, graph, save_table, images):
    def euler(g):
        return images(g, g.ksampler("euler", seed=11, cfg=2.0))

    save_table(table_of_parts())
    before = euler(graph(batch=2))
    sampled(server, graph(batch=2))
    assert np.array_equal(euler(graph(batch=2)), before)


def test_a_mask_keeps_its_part_where_a_pass_is_spared(server, graph, save_table):
    """With a mask both tables end alike, and the kept columns equal the start's."""
    ends = []
    for alone in ((2, 3), ()):
        save_table(table_of_parts(alone))
        g = graph()
        start = g.ksampler("euler", "karras", 4)
        first = g.show(start)
        latent = g.amed(sampler="auto", guidance=SCALE, latent_image=g.right_half_masked(start))
        shown = g.show(latent)
        result = server.run(g.nodes)
        ends.append(result.images(shown)[0].astype(int))
        assert abs(ends[-1] - result.images(first)[0])[:, :16].max() <= 1
    assert abs(ends[0] - ends[1]).max() <= 2 and "6 network passes" not in result.text(latent[0])


def test_img2img_runs_guidance_in_full(server, graph, save_table):
    save_table(table_of_parts())
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
def test_a_patch_on_guidance_excludes_tables_of_halves(server, graph, save_table, kind, inputs):
    save_table(table_of_parts())
    g = graph()
    g.model = [g.add(kind, model=g.model, **inputs), 0]
    report, _ = sampled(server, g)
    assert f"predictor: {FILE}" not in report and "4, 8 network passes per image" in report
    assert f"note: {FILE} (multistep, 4 evaluations in 6 passes" in report and "left out: " in report
    g = graph()
    g.model = [g.add(kind, model=g.model, **inputs), 0]
    with pytest.raises(RunError, match="needs the conditional and the unconditional result separately"):
        sampled(server, g, predictor=FILE)


GUIDERS = {
    "CFGGuider": ({"positive": "positive", "negative": "negative", "cfg": SCALE}, 6),
    "DualCFGGuider": ({"cond1": "positive", "cond2": "positive", "negative": "negative", "cfg_conds": SCALE,
                       "cfg_cond2_negative": SCALE, "style": "regular"}, 12),
    "PerpNegGuider": ({"positive": "positive", "negative": "negative", "empty_conditioning": "negative",
                       "cfg": SCALE, "neg_scale": 1.0}, 12),
}  # fmt: skip


@pytest.mark.parametrize("kind", GUIDERS)
def test_other_guiders_do_not_split_guidance(server, graph, save_table, kind):
    """The sampling node says what ran."""
    save_table(table_of_parts())
    inputs, passes = GUIDERS[kind]
    g = graph()
    inputs = {
        name: getattr(g, v) if isinstance(v, str) and hasattr(g, v) else v for name, v in inputs.items()
    }
    guider = g.add(kind, model=g.model, **inputs)
    sampler = g.add("AMEDSampler", sampler="amed_multistep", if_missing="error")
    predictor = [g.add("AMEDLoadPredictor", name=FILE), 0]  # only for its noise levels
    sigmas = g.add(
        "AMEDScheduler", model=g.model, predictor=predictor, sampler="amed_multistep", nfe=4, denoise=1.0
    )
    noise = g.add("RandomNoise", noise_seed=3)
    run = g.add("SamplerCustomAdvanced", noise=[noise, 0], guider=[guider, 0], sampler=[sampler, 0],
                sigmas=[sigmas, 0], latent_image=g.latent)  # fmt: skip
    g.show([run, 0])
    texts = []

    def on_event(event, data):
        if event == "binary" and int.from_bytes(data["bytes"][:4], "big") == HEARD:
            length = int.from_bytes(data["bytes"][4:8], "big")
            if data["bytes"][8 : 8 + length].decode() == run:
                texts.append(data["bytes"][8 + length :].decode())

    server.run(g.nodes, on_event)
    keeps_guidance = kind in ("DualCFGGuider", "PerpNegGuider")
    assert f"AMED: 4 evaluations, {passes} passes per image, " in texts[-1]
    assert texts[-1].endswith(FILE) != keeps_guidance and ("left out" in texts[-1]) == keeps_guidance
    assert "could not be captured" not in texts[-1]


def test_every_part_is_shown(server, graph, save_table):
    """Predictor Info has a line of weights per part, Trajectory Plot a table per part."""
    save_table(table_of_parts())
    g = graph()
    loaded = [g.add("AMEDLoadPredictor", name=FILE), 0]
    info = g.add("AMEDPredictorInfo", predictor=loaded)
    plot = g.add("PreviewImage", images=[info, 1])
    result = server.run(g.nodes)
    text = result.text(info)
    assert text.count("the prompt's, finest band: ") == 4 == text.count("what guidance adds, coarsest band: ")
    assert text.count("one pass") == 2 and 'parts: "halves+bands"' in text and "channels: 3" in text
    picture = result.images(plot)[0]
    assert picture.shape[0] > picture.shape[1]  # one plot per half, and one of the offsets


def test_the_trajectory_of_such_a_table_is_plotted(server, graph, save_table):
    save_table(table_of_parts())
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
    """Latents of 9 x 13 and of 5 x 3: equal weights in all bands give the unsplit slope's image."""
    low, high = 0.029167158151720367, 14.614641229333639
    times = schedules.make("discrete", 5, low, high)
    ends = []
    for name in ("", parts):
        table = Multistep(times, banded_weights(times, PARTS[name].count, 0.0), None, name)
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
    inputs = {"nfe": "3", "sampler": "amed_multistep", "guidance": 2.0, "budget": "custom",
              "evaluations": 1560, "seed": 0, "name": "few", "passes": 5}  # fmt: skip
    return g.add("AMEDCalibrate", **g.around() | inputs | other)


def test_with_a_patch_on_guidance_fewer_passes_are_an_error(server, graph):
    g = graph(width=16, height=16)
    g.model = [g.add("RescaleCFG", model=g.model, multiplier=0.7), 0]
    add_calibrate(g)
    expected = "passes cannot be limited, because this MODEL has sampler_cfg_function.*Set passes to 0"
    with pytest.raises(RunError, match=expected):
        server.run(g.nodes)


@pytest.mark.parametrize(
    ("other", "expected"),
    [({"guidance": 1.0}, "only amed_multistep under guidance"), ({"sampler": "amed"}, "only amed_multistep"),
     ({"passes": 7}, "set it to 4 to 6, the network passes that 3 evaluations can take"),
     ({"passes": 3}, "set it to 4 to 6")],
)  # fmt: skip
def test_impossible_numbers_of_passes_are_errors(server, graph, other, expected):
    g = graph(width=16, height=16)
    add_calibrate(g, **other)
    with pytest.raises(RunError, match=expected):
        server.run(g.nodes)


def test_a_table_with_fewer_passes_is_calibrated(server, graph):
    """The result is a separate file, and runs in as many passes."""
    g = graph(width=16, height=16)
    add_calibrate(g, nfe="4", passes=6, evaluations=3000)
    server.run(g.nodes)
    name = "few-nfe4-cfg2-passes6.safetensors"
    fitted = load_predictor(server.base / "models" / "amed_predictors" / name)
    report, _ = sampled(server, graph(), predictor=name)
    assert fitted.spec.learned and (fitted.nfe, fitted.passes) == (4, 6)
    assert "evaluations counted: 4, 6 network passes per image" in report
