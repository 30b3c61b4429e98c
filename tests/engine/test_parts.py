"""Parts of slopes: bands, halves and offsets, their exact sums, every image size, and errors."""

import pytest
import torch

from amed import Fitted, Multistep, PredictorError, Solver, Spec, load, sample, save, schedules
from amed.choose import Identity, Request, choose
from amed.constants import as_multistep
from amed.evaluate import Guided, evaluate_guided
from amed.files import Library
from amed.fit.measures import Counter
from amed.loop import Evaluation, banded, move
from amed.parts import BANDS, PARTS, down, up

GRID = schedules.make("time_uniform", 5, 0.01, 40.0)
SHAPES = [(2, 4, 64, 64), (1, 3, 7, 5), (2, 4, 1, 1), (5, 16, 9, 33), (1, 2, 3, 11, 6)]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def denoise(x, sigma, **_):
    sigma = sigma.view(-1, *[1] * (x.ndim - 1))
    return x * 0.25 / (0.25 + sigma**2) + 0.1 * torch.tanh(x / (1 + sigma))


def random_table(parts, channels=0, seed=0, alone=()):
    steps = len(GRID) - 1
    weights = normal(steps, 3, PARTS[parts].count, seed=seed) * 0.2 + 0.3
    weights = weights.movedim(2, 0).tril().movedim(0, 2)
    return Multistep(GRID, weights, None, parts, normal(steps, channels, seed=7) if channels else None, alone)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["bands", "halves", "halves+bands", "guidance"])
def test_parts_add_up_to_the_slope(name, shape):
    d, x, cond, uncond = (normal(*shape, seed=i) for i in range(4))
    parts = PARTS[name]
    split_slope = parts.split(d, x, 2.0, Evaluation(x - 2 * d, None, cond, uncond))
    full = parts.full(split_slope)
    assert len(full) == parts.count and all(part.shape == d.shape for part in full)
    assert torch.allclose(sum(full), d) and torch.allclose(parts.total(split_slope), d)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_move_by_bands_is_the_sum_of_weighted_bands(shape):
    """Summing small bands and enlarging once equals summing the full-size bands."""
    parts, x = PARTS["bands"], normal(*shape)
    slopes = [parts.split(normal(*shape, seed=i), x, 1.0, None) for i in (1, 2, 3)]
    weights = normal(3, BANDS, seed=4)
    expected = x.clone()
    for slope, shares in zip(reversed(slopes), weights):
        expected += sum(w * band for w, band in zip(shares, parts.full(slope)))
    original = x.clone()
    assert torch.allclose(move(original, slopes, weights.tolist(), parts.levels), expected)
    assert torch.equal(original, x)
    assert torch.allclose(banded(x, [(), slopes[1]], weights[:1].tolist(), parts.levels),
                          x + sum(w * v for w, v in zip(weights[0], parts.full(slopes[1]))))  # fmt: skip


def test_bands_are_octaves_of_frequency():
    """A wave of one octave is mostly in its own band."""
    place = torch.arange(64, dtype=torch.float64)
    for band, cycles in enumerate((0.4, 0.17, 0.08, 0.015)):
        wave = torch.cos(2 * torch.pi * cycles * place).expand(1, 1, 64, 64)
        share = [
            float(v.square().mean()) for v in PARTS["bands"].full(PARTS["bands"].split(wave, wave, 1, None))
        ]
        assert share.index(max(share)) == band


def test_shrinking_and_enlarging_keep_a_constant():
    for shape in SHAPES:
        flat = torch.full(shape, 0.7, dtype=torch.float64)
        assert torch.allclose(down(flat), torch.tensor(0.7).double()) and torch.allclose(
            up(down(flat), flat), flat
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_weights_for_all_bands_equal_an_unsplit_table(shape, dtype):
    x, table = normal(*shape, dtype=torch.float64).to(dtype) * 40, as_multistep(Solver("ipndm", 2), GRID)
    spread = Multistep(GRID, table.weights.expand(-1, -1, BANDS), None, "bands")
    ends = [sample(denoise, x, GRID, Solver("multistep"), disable=True, predictor=p) for p in (table, spread)]
    close = 1e-12 if dtype == torch.float64 else 1e-2
    assert ends[0].dtype == ends[1].dtype == dtype
    assert torch.allclose(ends[0].double(), ends[1].double(), atol=close, rtol=close)


def test_a_batch_equals_its_single_images():
    x, table = normal(5, 4, 9, 12) * 40, random_table("bands", 4)

    def run(x):
        return sample(denoise, x, GRID, Solver("multistep"), disable=True, predictor=table)

    assert torch.equal(run(x), torch.cat([run(x[i : i + 1]) for i in range(5)]))


@pytest.mark.parametrize("weights", ["none", "coarse"])
def test_the_start_is_not_changed_in_place(weights):
    """A first move that weighs no slope, or none of the finest band, must not add to x in place."""
    table = random_table("bands", 4)
    table.weights[0] = 0
    table.weights[0, 0, 3] = 0.0 if weights == "none" else 0.5
    x = normal(2, 4, 8, 8) * 40
    original = x.clone()
    sample(denoise, x, GRID, Solver("multistep"), disable=True, predictor=table)
    assert torch.equal(x, original)


def test_an_offset_moves_each_channel_separately():
    x, plain = normal(2, 4, 8, 8) * 40, random_table("")
    table = Multistep(GRID, plain.weights, None, "", torch.tensor([[0.0] * 4] * 3 + [[1.0, 2.0, 3.0, 4.0]]))
    a, b = (sample(denoise, x, GRID, Solver("multistep"), disable=True, predictor=p) for p in (plain, table))
    step = float(GRID[4] - GRID[3])
    assert torch.allclose(
        b - a, step * torch.tensor([1.0, 2.0, 3.0, 4.0]).double().view(1, 4, 1, 1).expand_as(a)
    )


def test_a_mismatching_number_of_channels_is_an_error():
    with pytest.raises(ValueError, match="latents of 4 channels, but the latent has 3: use a predictor"):
        sample(denoise, normal(1, 3, 8, 8), GRID, Solver("multistep"), predictor=random_table("bands", 4))
    with pytest.raises(
        ValueError, match="bands of spatial frequency, which a latent of shape .2, 4, 50. does not have: cal"
    ):
        sample(denoise, normal(2, 4, 50), GRID, Solver("multistep"), predictor=random_table("bands"))


def test_previews_of_the_analytic_step_are_full_size_images():
    previews = []
    sample(denoise, normal(2, 4, 9, 9) * 40, GRID, Solver("multistep"), predictor=random_table("bands", 4),
           afs=True, disable=True, callback=lambda d: previews.append(d["denoised"].shape))  # fmt: skip
    assert previews == [(2, 4, 9, 9)] * 4


# --- guidance's halves -------------------------------------------------------------------------------------


def conditioned(x, sigma, shift):
    return denoise(x, sigma) + shift.view(-1, *[1] * (x.ndim - 1))


ARGS = {"cond": {"shift": torch.full((2,), 0.3)}, "uncond": {"shift": torch.zeros(2)}}


class Passes:
    """A network that counts the rows it computes."""

    def __init__(self):
        self.rows = 0

    def __call__(self, x, sigma, shift):
        self.rows += len(x)
        return conditioned(x, sigma, shift)


@pytest.mark.parametrize("parts", ["halves", "halves+bands"])
def test_spared_passes_are_neither_run_nor_weighed(parts):
    """A table whose spared steps do not weigh the newest difference gives the same result when they run in
    full."""
    x, network = normal(2, 4, 8, 8) * 40, Passes()
    table = random_table(parts, alone=(2, 3))
    added = table.weights.view(4, 3, 2, -1)[:, :, 1]
    added[2, 0] = added[3, :2] = 0
    full = Multistep(GRID, table.weights, None, parts)

    def run(predictor):
        counter, network.rows = Counter(Guided(network, 4.0)), 0
        end = sample(
            counter,
            x,
            GRID,
            Solver("multistep"),
            ARGS,
            disable=True,
            predictor=predictor,
            evaluate=evaluate_guided,
        )
        return end, counter.evaluations, network.rows // len(x)

    spared, unspared = run(table), run(full)
    assert spared[1:] == (4, 6) and unspared[1:] == (4, 8)
    assert torch.allclose(spared[0], unspared[0])


def test_steps_that_cannot_be_spared_are_an_error():
    for parts, alone in (("", (1,)), ("bands", (2,)), ("guidance", (2,)), ("halves", (0,)), ("halves", (4,))):
        with pytest.raises(ValueError, match="cannot skip the unconditional result"):
            random_table(parts, alone=alone)


def saved(path, table, guidance=4.0, channels=0):
    spec = Spec.on(Solver("multistep"), table.sigmas, guidance=guidance, parts=table.parts, channels=channels,
                   model_family="toy", model_fingerprint="f" * 16)  # fmt: skip
    return load(save(path, Fitted(spec, table, table.sigmas)))


def test_a_file_stores_bands_offsets_and_spared_passes(tmp_path):
    table = random_table("halves+bands", 4, alone=(2, 3))
    read = saved(tmp_path / "a.safetensors", table, channels=4)
    predictor = read.predictor
    assert torch.equal(predictor.weights, table.weights) and torch.equal(predictor.offset, table.offset)
    assert (
        predictor.alone == (2, 3)
        and (read.nfe, read.passes) == (4, 6)
        and "4 evaluations in 6 passes" in read.label
    )
    assert read.spec.requires == ["parts:halves+bands", "offset"]
    with pytest.raises(PredictorError, match="'offset' has 4 channels, but field 'channels' is 3"):
        saved(tmp_path / "b.safetensors", table, channels=3)


def test_a_table_of_halves_is_not_chosen_where_guidance_cannot_be_split(tmp_path):
    apart = saved(tmp_path / "apart.safetensors", random_table("halves", alone=(2,)))
    saved(tmp_path / "whole.safetensors", random_table("bands"))
    identity = Identity("toy", "f" * 16)
    library = Library([tmp_path])
    choice = choose(library, Request(identity, guidance=4.0, nfe=4, halves=False))
    assert (
        choice.fitted.name == "whole.safetensors"
        and "left out: it needs the conditional and the unconditional result" in choice.remarks[-1]
    )
    with pytest.raises(PredictorError, match="unconditional result separately, which this run"):
        choose(library, Request(identity, guidance=4.0, nfe=4, halves=False, fitted=apart))
    assert not any(
        "apart" in remark for remark in choose(library, Request(identity, guidance=4.0, nfe=4)).remarks
    )
