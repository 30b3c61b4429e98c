"""Compare AMED on the demo model in a real ComfyUI: counts, distances, what fails, what is stopped."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from demo.comfyui import Interrupted, RunError

HOSTS = "heun\ndpm_2 / simple\ndpmpp_2m / karras\nUni_PC\ndpmpp_2s_ancestral / beta\ndpm_adaptive"
NAMES = ["amed", "plain", "amed_solver", "heun", "dpm_2", "dpmpp_2m", "uni_pc", "dpmpp_2s_ancestral",
         "dpm_adaptive"]  # fmt: skip


def asked(**changed):
    usual = {"samplers": "amed\nplain", "nfe": "5", "guidance": 1.0, "seed": 5, "seeds": 1, "reference": 20}
    return usual | changed


class Compared:
    """A finished comparison: rows as the CSV has them, its table, and the picture."""

    def __init__(self, server, g, **changed):
        node = g.add("AMEDCompare", **g.around() | asked(**changed))
        table, text = (g.add("PreviewAny", source=[node, i]) for i in (1, 2))
        result = server.run(g.nodes)
        self.table, self.csv, self.image = result.text(table), result.text(text), result.images(node)[0]
        self.rows = list(csv.DictReader(io.StringIO(self.csv)))

    def row(self, sampler, nfe=5):
        return next(row for row in self.rows if (row["sampler"], row["nfe"]) == (sampler, str(nfe)))

    def counts(self, sampler, nfe=5):
        return tuple(float(self.row(sampler, nfe)[name]) for name in ("steps", "evaluations", "passes"))


def refused(server, g, **changed):
    """What the node says to inputs that cannot be."""
    g.add("AMEDCompare", **g.around() | asked(**changed))
    with pytest.raises(RunError) as error:
        server.run(g.nodes)
    assert len(str(error.value).splitlines()) <= 3
    return str(error.value)


@pytest.fixture(scope="module")
def real(server, graph):
    """Ours and the host's, with guidance, from a batch of latents."""
    lines = f"amed\nplain\named_solver\n\n  {HOSTS}\named"
    return Compared(server, graph(batch=2), samplers=lines, guidance=2.0, seeds=2)


def test_what_ran_is_what_was_asked(real):
    rows = [("reference", "20"), *((name, "5") for name in NAMES)]
    assert [(row["sampler"], row["nfe"]) for row in real.rows] == rows
    assert real.row("amed")["setting"].startswith("emoji32-multistep-nfe5")
    assert real.row("amed_solver")["setting"].startswith("emoji32-amed-nfe5")
    assert real.row("uni_pc")["setting"] == "karras"  # the usual one where none is named
    assert {(row["guidance"], row["first_seed"], row["seeds"]) for row in real.rows} == {("2", "5", "2")}


def test_evaluations_and_passes_are_those_counted(real):
    assert real.counts("reference", 20) == (20, 20, 40)
    for name in ("amed", "plain", "amed_solver", "dpmpp_2m", "uni_pc"):
        assert real.counts(name)[1:] == (5, 10), name
    for name in ("heun", "dpm_2", "dpmpp_2s_ancestral"):  # two evaluations a step, one at the last
        assert real.counts(name) == (3, 5, 10), name
    assert all(float(row["seconds"]) > 0 for row in real.rows if row["evaluations"])


def test_several_numbers_and_one_that_leaves_an_evaluation_over(server, graph):
    made = Compared(server, graph(), samplers="heun\nplain", nfe="4, 2", reference=0)
    assert [(row["sampler"], row["nfe"]) for row in made.rows] == [
        ("heun", "4"), ("plain", "4"), ("heun", "2"), ("plain", "2"),
    ]  # fmt: skip
    assert made.counts("heun", 4) == (2, 3, 3) and made.counts("heun", 2) == (1, 1, 1)
    assert made.counts("plain", 4) == (5, 4, 4)  # its first step is analytic


def test_a_row_that_cannot_be_says_why(real):
    assert "cannot keep to 5 evaluations" in real.row("dpm_adaptive")["note"]
    assert not real.row("dpm_adaptive")["evaluations"]
    assert "| dpm_adaptive " in real.table and "cannot keep to" in real.table


def test_the_picture_can_be_read(real):
    """Every row's samples are in it, large; its rows are all of one width."""
    high, wide, _ = real.image.shape
    assert wide == 2000 and high > 9 * 0.16 * wide
    assert np.unique(real.image.reshape(-1, 3)[::97], axis=0).shape[0] > 500  # samples, not only text


def test_distances_are_those_of_the_hosts_own_runs(server, graph, real):
    """Measured on the images of SamplerCustom: the reference's and a solver's, of the same seeds."""
    g, shown = graph(), {}
    settings = {
        "reference": ("iPNDM-3", 20, "polynomial", 7.0),
        "plain": ("iPNDM-2", 5, "time_uniform", 1.0),
    }  # known.DEMO's
    for name, (solver, nfe, schedule, rho) in settings.items():
        made = g.add("AMEDPlainSolver", model=g.model, solver=solver, nfe=nfe, schedule=schedule, rho=rho,
                     afs=name == "plain")  # fmt: skip
        for seed in (5, 6):
            out = g.add("SamplerCustom", add_noise=True, noise_seed=seed, cfg=2.0, sampler=[made, 0],
                        sigmas=[made, 1], **g.around())  # fmt: skip
            shown[name, seed] = g.show([out, 0])
    result = server.run(g.nodes)
    images = {key: result.images(node)[0].astype(float) / 127.5 - 1 for key, node in shown.items()}
    away = [np.sqrt(((images["plain", s] - images["reference", s]) ** 2).mean()) for s in (5, 6)]
    assert float(real.row("plain")["distance"]) == pytest.approx(np.mean(away), rel=0.1)  # clipped, 8 bit


def test_only_the_reference_is_at_no_distance(real):
    assert real.row("reference", 20)["distance"] == ""
    known = [float(row["distance"]) for row in real.rows if row["distance"]]
    failed = [row for row in real.rows if not row["evaluations"]]
    assert min(known) > 0.01 and len(known) == len(real.rows) - 1 - len(failed)


def test_without_a_reference_nothing_is_measured_to(server, graph):
    made = Compared(server, graph(), samplers="plain", reference=0)
    assert [row["sampler"] for row in made.rows] == ["plain"] and made.row("plain")["distance"] == ""
    assert made.table.startswith("5 evaluations: compared")


def test_where_no_predictor_is_the_row_says_what_to_do(server, graph):
    made = Compared(server, graph(), nfe="12", samplers="amed_multistep\nplain", guidance=4.0, reference=24)
    note = made.row("amed_multistep", 12)["note"]
    assert note.startswith("no predictor for this model at 12 evaluations. There are some for 3, ")
    assert note.endswith("Make one with Calibrate AMED: nfe 12, guidance 4.")
    assert made.row("plain", 12)["evaluations"] == "12" and "no image: amed_multistep" in made.table


def test_a_vae_decodes(server, graph):
    """The host's VAE of pixels: the same colours as the preview's, within rounding."""
    if "pixel_space" not in server.object_info()["VAELoader"]["input"]["required"]["vae_name"][0]:
        pytest.skip("this ComfyUI has no VAE of pixels")
    g = graph()
    plain = Compared(server, g, samplers="plain", reference=0)
    g = graph()
    vae = [g.add("VAELoader", vae_name="pixel_space"), 0]
    decoded = Compared(server, g, samplers="plain", reference=0, vae=vae)
    tile = (slice(300, 600), slice(1400, 1900))  # below the title, right of the label
    one, two = (made.image[tile].astype(int) for made in (plain, decoded))
    assert one.std() > 20 and np.abs(one - two).mean() < 2


@pytest.mark.parametrize("flow", [False, True])
def test_a_latent_of_four_channels_has_preview_colours(server, graph, flow):
    g = graph()
    loaded = g.add("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    loaded = g.add("ModelSamplingSD3", model=[loaded, 0], shift=3.0) if flow else loaded
    prompts = [[g.add("TestPrompt", seed=seed, repeats=1), 0] for seed in (1, 2)]
    g.model, (g.positive, g.negative) = [loaded, 0], prompts
    g.latent = [g.add("EmptyLatentImage", width=128, height=64, batch_size=1), 0]
    made = Compared(server, g, samplers="plain\neuler", nfe="2", reference=4, guidance=5.0)
    assert made.counts("plain", 2) == made.counts("euler", 2) == (2, 2, 4)
    assert made.row("euler", 2)["setting"] == ("simple" if flow else "karras")
    assert made.image[300:500, 1400:1900].std(axis=(0, 1)).min() > 5


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"samplers": " \n"}, "samplers is empty"),
        ({"samplers": "plain\ndpmpp2m / karras"}, "line 2: there is no sampler 'dpmpp2m'\nThe nearest names"),
        ({"samplers": "euler / karas"}, "there is no scheduler 'karas'\nThe nearest names are: karras"),
        ({"samplers": "amed / karras"}, "amed brings its own noise levels"),
        ({"nfe": "5, many"}, "nfe is '5, many'"),
        ({"reference": 9}, "reference is 9: to measure 5 evaluations by, give at least 10, or 0 for none"),
    ],
)
def test_what_cannot_be_is_said(server, graph, changed, said):
    assert said in refused(server, graph(), **changed)


def test_a_model_that_gives_nothing_is_an_error(server, graph):
    g = graph()
    g.model = [g.add("TestModel", model=g.model, which="broken"), 0]
    said = refused(server, g, samplers="plain", reference=0)
    assert said.startswith("no sampler gave an image") and "NaN" in said


def test_a_sampler_that_fails_on_its_way_loses_no_other(server, graph):
    g = graph()
    g.model = [g.add("TestModel", model=g.model, which="tired"), 0]  # after 20 + 5 + 1 evaluations
    made = Compared(server, g, samplers="plain\named")
    assert made.counts("plain") == (6, 5, 5) and float(made.row("plain")["distance"]) > 0
    assert made.row("amed")["note"] == "tired, and says so" and not made.row("amed")["evaluations"]


def test_stopped_what_is_done_is_saved(server, graph, images):
    """An interrupt stays one; the rows so far are files; the next run is as ever."""
    g = graph()
    g.model = [g.add("TestStops", model=g.model, at=125, wait=False), 0]  # in the second row
    g.add("AMEDCompare", **g.around() | asked(samplers="plain", nfe="50, 49", reference=100))
    with pytest.raises(Interrupted):
        server.run(g.nodes)
    saved = sorted((server.base / "output").glob("AMED_compare_stopped_*"))
    assert [file.suffix for file in saved] == [".csv", ".png"]
    rows = list(csv.DictReader(saved[0].open()))
    assert [row["sampler"] for row in rows] == ["reference"] and rows[0]["evaluations"] == "100"
    assert Image.open(saved[1]).width == 2000
    assert "stopped after 1 of 3 rows" in server.log()
    g = graph()
    assert images(g, g.ksampler("euler")).std() > 10


def test_the_model_is_left_as_it_was(server, graph, images):
    def euler(g):
        return images(g, g.ksampler("euler", seed=11, cfg=2.0))

    before = euler(graph(batch=2))
    g = graph(batch=2)
    node = g.add("AMEDCompare", **g.around() | asked(samplers="amed\nheun / karras", guidance=2.0))
    g.add("PreviewAny", source=[node, 1])
    assert np.array_equal(euler(g), before)
    g = graph(batch=2)
    g.add("PreviewAny", source=[g.add("AMEDLoadPredictor", name="test_amed.safetensors"), 0])
    assert np.array_equal(euler(g), before)
