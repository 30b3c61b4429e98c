"""Compare AMED on the demo model in a real ComfyUI: counts, distances, failures and interruptions."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from demo.comfyui import Interrupted, RunError

HOSTS = "heun\ndpm_2 / simple\ndpmpp_2m / karras\nUni_PC\ndpmpp_2s_ancestral / beta\ndpm_adaptive"
NAMES = ["amed", "plain", "amed_solver", "heun", "dpm_2", "dpmpp_2m", "uni_pc", "dpmpp_2s_ancestral",
         "dpm_adaptive"]  # fmt: skip


def inputs_of(**changed):
    usual = {"samplers": "amed\nplain", "nfe": "5", "guidance": 1.0, "seed": 5, "seeds": 1, "reference": 20}
    return usual | changed


class Compared:
    """A finished comparison: the rows of its CSV, its table and its picture."""

    def __init__(self, server, g, **changed):
        node = g.add("AMEDCompare", **g.around() | inputs_of(**changed))
        table, text = (g.add("PreviewAny", source=[node, i]) for i in (1, 2))
        result = server.run(g.nodes)
        self.table, self.csv, self.image = result.text(table), result.text(text), result.images(node)[0]
        self.rows = list(csv.DictReader(io.StringIO(self.csv)))

    def row(self, sampler, nfe=5):
        return next(row for row in self.rows if (row["sampler"], row["nfe"]) == (sampler, str(nfe)))

    def counts(self, sampler, nfe=5):
        return tuple(float(self.row(sampler, nfe)[name]) for name in ("steps", "evaluations", "passes"))


def refusal_of(server, g, **changed):
    """Return the node's error for invalid inputs."""
    g.add("AMEDCompare", **g.around() | inputs_of(**changed))
    with pytest.raises(RunError) as error:
        server.run(g.nodes)
    assert len(str(error.value).splitlines()) <= 3
    return str(error.value)


@pytest.fixture(scope="module")
def comparison(server, graph):
    """Our samplers and the host's, with guidance, from a batch of latents."""
    lines = f"amed\nplain\named_solver\n\n  {HOSTS}\named"
    return Compared(server, graph(batch=2), samplers=lines, guidance=2.0, seeds=2)


def test_the_requested_rows_ran(comparison):
    rows = [("reference", "20"), *((name, "5") for name in NAMES)]
    assert [(row["sampler"], row["nfe"]) for row in comparison.rows] == rows
    assert comparison.row("amed")["setting"].startswith("emoji32-multistep-nfe5")
    assert comparison.row("amed_solver")["setting"].startswith("emoji32-amed-nfe5")
    assert comparison.row("uni_pc")["setting"] == "karras"  # the default scheduler where none is named
    assert {(row["guidance"], row["first_seed"], row["seeds"]) for row in comparison.rows} == {
        ("2", "5", "2")
    }


def test_reported_evaluations_and_passes_are_the_counted_ones(comparison):
    assert comparison.counts("reference", 20) == (20, 20, 40)
    for name in ("amed", "plain", "amed_solver", "dpmpp_2m", "uni_pc"):
        assert comparison.counts(name)[1:] == (5, 10), name
    for name in ("heun", "dpm_2", "dpmpp_2s_ancestral"):  # two evaluations per step, one in the last step
        assert comparison.counts(name) == (3, 5, 10), name
    assert all(float(row["seconds"]) > 0 for row in comparison.rows if row["evaluations"])


def test_several_nfe_including_one_a_solver_cannot_fully_use(server, graph):
    comparison = Compared(server, graph(), samplers="heun\nplain", nfe="4, 2", reference=0)
    assert [(row["sampler"], row["nfe"]) for row in comparison.rows] == [
        ("heun", "4"), ("plain", "4"), ("heun", "2"), ("plain", "2"),
    ]  # fmt: skip
    assert comparison.counts("heun", 4) == (2, 3, 3) and comparison.counts("heun", 2) == (1, 1, 1)
    assert comparison.counts("plain", 4) == (5, 4, 4)  # its first step is analytic


def test_an_impossible_row_says_why(comparison):
    assert "cannot keep to 5 evaluations" in comparison.row("dpm_adaptive")["note"]
    assert not comparison.row("dpm_adaptive")["evaluations"]
    assert "| dpm_adaptive " in comparison.table and "cannot keep to" in comparison.table


def test_the_picture_is_readable(comparison):
    """The picture has every row's samples at a readable size; all its rows have the same width."""
    high, wide, _ = comparison.image.shape
    assert wide == 2000 and high > 9 * 0.16 * wide
    assert (
        np.unique(comparison.image.reshape(-1, 3)[::97], axis=0).shape[0] > 500
    )  # the row contains samples, not only text


def test_distances_equal_those_of_the_hosts_runs(server, graph, comparison):
    """Measured between SamplerCustom's images of the reference and of a solver, with the same seeds."""
    g, shown = graph(), {}
    settings = {
        "reference": ("iPNDM-3", 20, "polynomial", 7.0),
        "plain": ("iPNDM-2", 5, "time_uniform", 1.0),
    }  # known.DEMO's
    for name, (solver, nfe, schedule, rho) in settings.items():
        plain_solver = g.add("AMEDPlainSolver", model=g.model, solver=solver, nfe=nfe, schedule=schedule,
                             rho=rho, afs=name == "plain")  # fmt: skip
        for seed in (5, 6):
            out = g.add("SamplerCustom", add_noise=True, noise_seed=seed, cfg=2.0, sampler=[plain_solver, 0],
                        sigmas=[plain_solver, 1], **g.around())  # fmt: skip
            shown[name, seed] = g.show([out, 0])
    result = server.run(g.nodes)
    images = {key: result.images(node)[0].astype(float) / 127.5 - 1 for key, node in shown.items()}
    away = [np.sqrt(((images["plain", s] - images["reference", s]) ** 2).mean()) for s in (5, 6)]
    assert float(comparison.row("plain")["distance"]) == pytest.approx(
        np.mean(away), rel=0.1
    )  # clipped, 8 bit


def test_only_the_reference_has_no_distance(comparison):
    assert comparison.row("reference", 20)["distance"] == ""
    row_errors = [float(row["distance"]) for row in comparison.rows if row["distance"]]
    failed = [row for row in comparison.rows if not row["evaluations"]]
    assert min(row_errors) > 0.01 and len(row_errors) == len(comparison.rows) - 1 - len(failed)


def test_without_a_reference_there_are_no_distances(server, graph):
    comparison = Compared(server, graph(), samplers="plain", reference=0)
    assert [row["sampler"] for row in comparison.rows] == ["plain"] and comparison.row("plain")[
        "distance"
    ] == ""
    assert comparison.table.startswith("5 evaluations: compared")


def test_a_row_without_a_predictor_says_what_to_do(server, graph):
    comparison = Compared(
        server, graph(), nfe="12", samplers="amed_multistep\nplain", guidance=4.0, reference=24
    )
    note = comparison.row("amed_multistep", 12)["note"]
    assert note.startswith("no predictor for this model at 12 evaluations. There are some for 3, ")
    assert note.endswith("Make one with Calibrate AMED: nfe 12, guidance 4.")
    assert (
        comparison.row("plain", 12)["evaluations"] == "12" and "no image: amed_multistep" in comparison.table
    )


def test_a_linked_vae_decodes_the_samples(server, graph):
    """The host's VAE of pixels gives the preview's colours within rounding."""
    if "pixel_space" not in server.object_info()["VAELoader"]["input"]["required"]["vae_name"][0]:
        pytest.skip("this ComfyUI has no VAE of pixels")
    g = graph()
    plain = Compared(server, g, samplers="plain", reference=0)
    g = graph()
    vae = [g.add("VAELoader", vae_name="pixel_space"), 0]
    decoded = Compared(server, g, samplers="plain", reference=0, vae=vae)
    tile = (slice(300, 600), slice(1400, 1900))  # the area below the title and to the right of the label
    preview, two = (comparison.image[tile].astype(int) for comparison in (plain, decoded))
    assert preview.std() > 20 and np.abs(preview - two).mean() < 2


@pytest.mark.parametrize("flow", [False, True])
def test_a_latent_of_four_channels_has_preview_colours(server, graph, flow):
    g = graph()
    loaded = g.add("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    loaded = g.add("ModelSamplingSD3", model=[loaded, 0], shift=3.0) if flow else loaded
    prompts = [[g.add("TestPrompt", seed=seed, repeats=1), 0] for seed in (1, 2)]
    g.model, (g.positive, g.negative) = [loaded, 0], prompts
    g.latent = [g.add("EmptyLatentImage", width=128, height=64, batch_size=1), 0]
    comparison = Compared(server, g, samplers="plain\neuler", nfe="2", reference=4, guidance=5.0)
    assert comparison.counts("plain", 2) == comparison.counts("euler", 2) == (2, 2, 4)
    assert comparison.row("euler", 2)["setting"] == ("simple" if flow else "karras")
    assert comparison.image[300:500, 1400:1900].std(axis=(0, 1)).min() > 5


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"samplers": " \n"}, "samplers is empty"),
        ({"samplers": "plain\ndpmpp2m / karras"}, "line 2: there is no sampler 'dpmpp2m'\nThe nearest names"),
        ({"samplers": "euler / karas"}, "there is no scheduler 'karas'\nThe nearest names are: karras"),
        ({"samplers": "amed / karras"}, "amed brings its own noise levels"),
        ({"nfe": "5, many"}, "nfe is '5, many'"),
        ({"reference": 9}, "too few evaluations to measure 5 evaluations by: set it to at least 10, or to 0"),
    ],
)
def test_invalid_inputs_are_named(server, graph, changed, expected):
    assert expected in refusal_of(server, graph(), **changed)


def test_a_model_whose_every_row_fails_is_an_error(server, graph):
    g = graph()
    g.model = [g.add("TestModel", model=g.model, which="broken"), 0]
    message = refusal_of(server, g, samplers="plain", reference=0)
    assert message.startswith("no sampler gave an image") and "NaN" in message


def test_a_failing_sampler_does_not_affect_other_rows(server, graph):
    g = graph()
    g.model = [g.add("TestModel", model=g.model, which="tired"), 0]  # after 20 + 5 + 1 evaluations
    comparison = Compared(server, g, samplers="plain\named")
    assert comparison.counts("plain") == (6, 5, 5) and float(comparison.row("plain")["distance"]) > 0
    assert (
        comparison.row("amed")["note"] == "tired, and says so" and not comparison.row("amed")["evaluations"]
    )


def test_an_interrupted_comparison_saves_finished_rows(server, graph, images):
    """An interruption stays one; finished rows are saved; the next run works."""
    g = graph()
    g.model = [g.add("TestStops", model=g.model, at=125, wait=False), 0]  # in the second row
    g.add("AMEDCompare", **g.around() | inputs_of(samplers="plain", nfe="50, 49", reference=100))
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


def test_the_model_is_not_changed(server, graph, images):
    def euler(g):
        return images(g, g.ksampler("euler", seed=11, cfg=2.0))

    before = euler(graph(batch=2))
    g = graph(batch=2)
    node = g.add("AMEDCompare", **g.around() | inputs_of(samplers="amed\nheun / karras", guidance=2.0))
    g.add("PreviewAny", source=[node, 1])
    assert np.array_equal(euler(g), before)
    g = graph(batch=2)
    g.add("PreviewAny", source=[g.add("AMEDLoadPredictor", name="test_amed.safetensors"), 0])
    assert np.array_equal(euler(g), before)
