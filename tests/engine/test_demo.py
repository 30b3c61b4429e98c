"""The demo model, its data recipe, and the predictors that come with the pack."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import amed
from amed import SAMPLERS, Constants, Solver
from amed.evaluate import FromModule
from amed.fingerprint import fingerprint
from amed.fit import plain_solvers
from amed.fit.measures import Counter, Statistics, frechet, rmse, run
from demo import comparison, data
from demo.avatars.attributes import parse
from demo.comparison import picture
from demo.features import Features
from demo.model import SIGMA_MAX, SIGMA_MIN, UNCONDITIONAL, WEIGHTS, load_denoiser
from demo.rows import Row
from demo.run import TASKS

FOLDER = Path(amed.__file__).parent.parent / "predictors"
BUNDLED = sorted(FOLDER.glob("*.safetensors"))
EMOJI = [f for f in BUNDLED if f.name.startswith("emoji32")]


@pytest.fixture(scope="module")
def denoiser():
    return load_denoiser()


@pytest.fixture(scope="module")
def noise():
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(12345))


@pytest.fixture(scope="module")
def reference(denoiser, noise):
    """The end of a run with a converging solver other than the one the predictors were chosen by."""
    setting = plain_solvers.Setting(
        plain_solvers.SOLVERS["DPM++ 3M"], "polynomial", 7.0, 51, False, SIGMA_MIN, SIGMA_MAX
    )
    return run(denoiser, noise, setting.sigmas(), setting.solver)[0]


def test_the_weights_file_and_the_network_are_small(denoiser):
    assert WEIGHTS.stat().st_size < 8e6
    assert 1e6 < sum(p.numel() for p in denoiser.parameters()) < 3e6


def test_the_model_denoises_and_knows_its_categories(denoiser, reference):
    generator = torch.Generator().manual_seed(0)
    for sigma in (0.2, 1.0):
        x = reference + sigma * torch.randn(reference.shape, generator=generator)
        assert rmse(denoiser(x, torch.full((16,), sigma)), reference) < 0.6 * sigma
    first, other = (
        denoiser(reference * 0 + x, torch.full((16,), sigma), torch.full((16,), i)) for i in (0, 8)
    )
    assert rmse(first, other) > 0.02
    none = torch.full((16,), UNCONDITIONAL)
    assert torch.equal(denoiser(x, torch.full((16,), sigma)), denoiser(x, torch.full((16,), sigma), none))


def test_samples_are_nearer_to_the_data_than_noise(reference):
    features = Features()
    # 16 samples bias the distance upwards, but blurred noise is much farther away
    noise = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    near, far = (frechet(Statistics.of(features(v)), features.data) for v in (reference, noise))
    assert near < 0.5 * far


def test_every_bundled_file_loads_and_is_described():
    library = amed.Library([FOLDER])
    assert library.problems() == [] and len(library.fitted()) == len(BUNDLED)
    assert any(f.name.startswith("sd15") for f in BUNDLED) and len(EMOJI) >= 4
    text = (FOLDER / "README.md").read_text()
    assert all(f.name.removesuffix(".safetensors") in text for f in BUNDLED)


def test_the_published_table_is_bundled_unchanged():
    from predictors import published

    bundled = amed.load(FOLDER / "sd15-dpmpp-2m-nfe10.safetensors")
    assert bundled.spec == published.sd15().spec and torch.equal(bundled.sigmas(), published.sd15().sigmas())


@pytest.mark.parametrize("file", EMOJI, ids=lambda f: f.stem)
def test_an_emoji_predictor_fits_the_demo_model_and_states_its_cost(file, denoiser, noise):
    fitted = amed.load(file)
    assert fitted.spec.model_fingerprint == fingerprint(denoiser.named_parameters())
    counter = Counter(denoiser)
    SAMPLERS[fitted.spec.sampler](
        counter, noise[:2] * SIGMA_MAX, fitted.sigmas(), disable=True, predictor=fitted,
        evaluate=FromModule(denoiser.inner_model.middle_block))  # fmt: skip
    assert counter.evaluations == fitted.nfe == int(file.stem.split("nfe")[1].split("-")[0])
    metrics = fitted.spec.metrics
    assert metrics["fd_ref"] < metrics["plain_fd_ref"] if fitted.wants_bottleneck else True
    assert fitted.wants_bottleneck or metrics["error"] < metrics["plain_error"]


@pytest.mark.parametrize("file", [f for f in EMOJI if "nfe5-cfg1" in f.name], ids=lambda f: f.stem)
def test_at_five_evaluations_a_predictor_beats_its_untrained_solver(file, denoiser, noise, reference):
    fitted = amed.load(file)

    def error(predictor):
        evaluate, solver = FromModule(denoiser.inner_model.middle_block), fitted.spec.student
        images, nfe = run(
            denoiser, noise, fitted.sigmas(), solver, predictor=predictor, afs=True, evaluate=evaluate
        )
        assert nfe == 5
        return rmse(images, reference)

    table = fitted.spec.solver == "multistep"  # its untrained form is iPNDM-2 on these times
    untrained = None if table else Constants(fitted.sigmas())
    assert error(fitted.predictor) < error(untrained)


def test_the_comparison_names_a_best_plain_setting_for_every_nfe():
    best = json.loads((Path(data.__file__).parent / "best_plain.json").read_text())
    for nfe in (3, 5, 7, 9):
        chosen = best[f"{nfe} 1"]
        solver = {chosen["solver"]: plain_solvers.SOLVERS[chosen["solver"]]}
        candidates = plain_solvers.candidates(
            nfe, SIGMA_MIN, SIGMA_MAX, solver, ((chosen["schedule"], chosen["rho"]),)
        )
        assert any(s.afs == chosen["afs"] for s in candidates)
    assert Solver("euler") == plain_solvers.SOLVERS["Euler"]


def test_the_data_recipe_on_a_small_archive(tmp_path):
    entries, files = [], {}
    for i, category in enumerate(("Flags", "Food & Drink")):
        image = Image.new("RGBA", (64, 64), (255, 0, 0, 0 if i else 255))
        out = io.BytesIO()
        image.save(out, "PNG")
        files[f"package/img/google/64/{i}.png"] = out.getvalue()
        entries.append(
            {"image": f"{i}.png", "category": category, "sort_order": 2 - i, "has_img_google": True}
        )
    files["package/emoji.json"] = json.dumps(entries).encode()
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert data.main(["--tgz", str(tmp_path / "a.tgz"), "--out", str(tmp_path / "d" / "x.safetensors")]) == 0
    images, labels = data.load(tmp_path / "d" / "x.safetensors")
    assert images.shape == (2, 3, 32, 32) and [data.CATEGORIES[i] for i in labels] == [
        "Food & Drink",
        "Flags",
    ]
    assert (images[0] == 1).all()  # transparent on white
    assert images[1, 0].min() == 1 and images[1, 1].max() == -1  # red
    with pytest.raises(FileNotFoundError, match="python -m demo.data"):
        data.load(tmp_path / "none")


def test_a_broken_archive_is_named(tmp_path, capsys):
    (tmp_path / "x.tgz").write_bytes(b"no archive")
    assert data.main(["--tgz", str(tmp_path / "x.tgz"), "--out", str(tmp_path / "y")]) == 1
    assert "demo.data" in capsys.readouterr().err and not (tmp_path / "y").exists()


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_the_comparison_shows_prompts_in_turn(task):
    """Each column of the picture shows an image of its own prompt, and no image twice."""
    batches, shown = task.batches(), task.shown()
    owner = [prompt for prompt, count in zip(task.prompts, batches) for _ in range(count)]
    assert len(owner) == task.samples >= 65 and max(batches) - min(batches) <= 1
    assert len({image for image, _ in shown}) == len(shown) == 12
    assert all(owner[image] == prompt for image, prompt in shown)
    assert task.model == "emoji32" or not any(parse(prompt).warning() for prompt in task.prompts)


def test_the_comparison_draws_a_bar_for_each_distance(tmp_path):
    """The bar of the farther sampler is longer; prompts stand above their columns."""

    def row(name, error):
        return Row(name, "simple", 6, 4.0, error, 1.0, 1.0, 0.1), torch.zeros(2, 3, 32, 32)

    rows = [row("reference", 0.0), row("AMED multistep", 0.1), row("Euler", 0.2)]
    picture(rows, [(0, "red hair, glasses"), (1, "beard")], tmp_path / "with.png")
    picture(rows, [(0, "none"), (1, "none")], tmp_path / "without.png")
    page = Image.open(tmp_path / "with.png").convert("RGB")

    def bar(colour):
        wanted = torch.tensor([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        pixels = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).view(
            page.height, page.width, 3
        )
        return int((pixels == wanted).all(dim=2).any(dim=0).sum())

    assert bar(comparison.OTHERS) == 301 and bar(comparison.OURS) == 151
    assert page.height > Image.open(tmp_path / "without.png").height
