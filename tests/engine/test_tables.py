"""Every explicit solver is a table: as rows, and as a table of free times and weights."""

import time

import kdiffusion
import pytest
import torch
from golden import Toy

import amed
from amed import SAMPLERS, BottleneckPredictor, Constants, Fitted, Solver, Spec, load, sample, save, schedules
from amed.constants import Multistep, as_multistep
from amed.coordinates import compiled
from amed.evaluate import Guided, Thresholded
from amed.fit.measures import Counter
from amed.loop import Problem, State, loop

SIGMAS = schedules.make("polynomial", 5, 0.01, 40)
CONSTANTS = Constants(SIGMAS, r=[0.3, 0.4, 0.5, 0.2], c=[0.9, 1.02, 0.97, 1.0], a=[1.01, 0.98, 1.0, 1.03])
SOLVERS = [
    Solver("euler"),
    *(Solver("ipndm", k) for k in (1, 2, 3, 4)),
    *(Solver("dpmpp", k, x0, low) for k in (1, 2, 3) for x0 in (True, False) for low in (True, False)),
    *(Solver("deis", k) for k in (1, 2, 3, 4)),
    *(Solver("unipc", k, lower_order_final=low, variant=v)
      for k in (1, 2, 3) for v in ("bh1", "bh2") for low in (True, False)),
    Solver("dpm_2"),
    Solver("amed"),
    Solver("multistep"),
]  # fmt: skip


@pytest.fixture
def model() -> Toy:
    return Toy(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def end_of_table(model, table, x):
    """Return the end of a run of a table's rows."""
    *_, state = loop(Problem(model), table.rows, State(x))
    return state.x


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("predictor", [None, CONSTANTS], ids=["plain", "constants"])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_every_explicit_solver_is_a_table(model, noise, solver, predictor, afs):
    if solver.name == "multistep":
        predictor = None
    table = as_multistep(solver, SIGMAS, afs, predictor)
    counters = Counter(model), Counter(model)
    theirs = sample(counters[0], noise * 40, SIGMAS, solver, disable=True, predictor=predictor, afs=afs)
    ours = sample(
        counters[1], noise * 40, table.sigmas, Solver("multistep"), disable=True, predictor=table, afs=afs
    )
    assert counters[0].evaluations == counters[1].evaluations
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", [Solver("heun"), Solver("dpmpp", 2, True)], ids=["heun", "dpmpp"])
def test_solvers_that_no_table_can_express_are_refused(solver):
    """Two evaluations at one time, another timestep at the same input, a network."""
    predictors = {"heun": [None], "dpmpp": [Constants(SIGMAS, rescales=True), BottleneckPredictor()]}
    for predictor in predictors[solver.name]:
        with pytest.raises(ValueError, match="heun evaluates twice|rescales|constants depend on the image"):
            as_multistep(solver, SIGMAS, False, predictor)


def test_thresholding_belongs_to_the_denoiser_and_works_for_any_table(model, noise):
    """It used to be a solver's setting, which no table could contain."""
    model.mu.mul_(3)  # beyond 1, where thresholding has an effect
    solver = Solver("dpmpp", 2, True)
    runs = ((solver, None), (Solver("multistep"), as_multistep(solver, SIGMAS)))
    theirs, ours = (
        sample(model, noise * 40, SIGMAS, s, disable=True, predictor=p, evaluate=Thresholded())
        for s, p in runs
    )
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(ours, sample(model, noise * 40, SIGMAS, solver, disable=True), atol=0.1)
    expected = SAMPLERS["amed_dpmpp_2m"](
        model, noise * 40, SIGMAS, disable=True, predictor=thresholded(solver), afs=False
    )
    plugin = sample(
        model, noise * 40, SIGMAS, solver, disable=True, predictor=CONSTANTS, evaluate=Thresholded()
    )
    assert torch.equal(expected, plugin)  # the file's setting is applied


def thresholded(solver):
    return Fitted(Spec.on(solver, SIGMAS, thresholding=True), CONSTANTS, SIGMAS)


def test_weights_on_missing_slopes_go_to_the_oldest(model, noise):
    """A run that starts below the first time (img2img) stays consistent and loses no weight.

    With a = 1 its first step is Euler's."""
    table = as_multistep(Solver("ipndm", 3), SIGMAS)
    low = SIGMAS[2:]
    first = sample(model, noise * low[0], low[:2], Solver("multistep"), disable=True, predictor=table)
    euler = sample(model, noise * low[0], low[:2], Solver("euler"), disable=True)
    assert torch.allclose(first, euler)


# --- Heun fits: a move of length zero is a row


@pytest.mark.parametrize("ends_in_zero", [False, True])
def test_heun_is_a_table(model, noise, ends_in_zero):
    """Two evaluations at each inner time, the second without a move of x in between."""
    times = torch.cat([SIGMAS, torch.zeros(1 * ends_in_zero, dtype=torch.float64)])
    table = compiled(Solver("heun"), times.tolist())
    assert table.nfe == 8 + ends_in_zero and table.end == float(times[-1])
    assert [float(row.sigma) for row in table.rows] == pytest.approx(
        [t for i in range(4) for t in SIGMAS[i : i + 2].tolist()] + [float(SIGMAS[-1])] * ends_in_zero
    )
    theirs = kdiffusion.sampling().sample_heun(model, noise * 40, times, disable=True)
    assert torch.allclose(end_of_table(model, table, noise * 40), theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.name != "multistep"], ids=str)
def test_a_compiled_table_equals_the_run(model, noise, solver):
    """Rows are found by their number, and what each row says it needs is sufficient."""
    for predictor, afs in ((None, True), (CONSTANTS, False)):
        table = compiled(solver, SIGMAS.tolist(), predictor, afs)
        assert table.nfe == solver.evaluations(5, afs, predictor is not None)
        run = sample(model, noise * 40, SIGMAS, solver, disable=True, predictor=predictor, afs=afs)
        assert torch.allclose(end_of_table(model, table, noise * 40), run, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("afs", [False, True])
def test_a_file_of_a_plain_heun_runs_under_multistep(model, noise, tmp_path, afs):
    """Also on another list that begins below its first time (img2img)."""
    spec = Spec.on(Solver("heun"), SIGMAS, features="plain", afs=afs, how="the best plain solver")
    fitted = load(save(tmp_path / "heun.safetensors", Fitted(spec, None, SIGMAS)))
    assert fitted.spec == spec and fitted.predictor is None and torch.equal(fitted.base, SIGMAS)
    assert fitted.nfe == 8 - afs and fitted.spec.sampler == "amed_multistep"
    for sigmas, at_the_top in ((SIGMAS, True), (torch.tensor([9.0, 3.1, 0.4, 0.0]).double(), False)):
        counter = Counter(model)
        mine = amed.sample_amed_multistep(counter, noise * sigmas[0], sigmas, disable=True, predictor=fitted)
        heun = sample(model, noise * sigmas[0], sigmas, Solver("heun"), disable=True, afs=afs and at_the_top)
        assert torch.equal(mine, heun)
        assert counter.evaluations == (fitted.nfe if at_the_top else 5)
    with pytest.raises(ValueError, match="fitted for the solver 'heun'.*amed_multistep"):
        amed.sample_amed(model, noise * 40, SIGMAS, disable=True, predictor=fitted)


# --- parts of a slope: the guidance's own


class Labelled(torch.nn.Module):
    def forward(self, x, sigma, shift):
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2) + shift.view(-1, 1, 1, 1)


def test_guidance_can_be_scaled_per_evaluation(noise):
    """Weights of guidance's part act as factors on its scale: equal to guidance that changes."""
    args = {"cond": {"shift": torch.full((5,), 0.5)}, "uncond": {"shift": torch.zeros(5)}}
    table = as_multistep(Solver("ipndm", 2), SIGMAS)
    factors = torch.tensor([1.0, 0.5, 1.0, 1.0], dtype=torch.float64)

    def scaled(g):
        by_slope = torch.stack(
            [g, torch.cat([g[:1], g[:-1]])], dim=1
        )  # of the newest slope, and of the previous one
        weights = torch.stack([table.weights[..., 0], table.weights[..., 0] * by_slope], dim=-1)
        return Multistep(table.sigmas, weights, parts="guidance")

    class Changing(torch.nn.Module):
        """A guided model that gives no halves; factors set the scale of each evaluation."""

        def __init__(self):
            super().__init__()
            self.left = iter((4 * factors).tolist())

        def forward(self, x, sigma, cond, uncond):
            return Guided(Labelled(), next(self.left))(x, sigma, cond, uncond)

    def end(model, predictor, evaluate):
        return SAMPLERS["amed_multistep"](
            model, noise * 40, SIGMAS, args, disable=True, predictor=predictor, evaluate=evaluate
        )

    guided, halves = Guided(Labelled(), 4.0), amed.evaluate.evaluate_guided
    expected = end(guided, table, halves)
    assert torch.equal(expected, end(guided, scaled(factors), None))  # without halves
    assert torch.allclose(expected, end(guided, scaled(torch.ones(4).double()), halves), rtol=1e-12)
    changed = end(guided, scaled(factors), halves)
    assert not torch.allclose(expected, changed)
    assert torch.allclose(changed, end(Changing(), table, None), rtol=1e-10, atol=1e-10)


def test_a_row_states_which_slopes_must_be_kept():
    """iPNDM-2 keeps one slope; two-point solvers keep the interval's first for the way back from the mid
    time; a table keeps the slopes it weighs."""

    def slopes_kept(solver):
        return ["".join("-x"[k] for k in row.needed) for row in compiled(solver, SIGMAS.tolist()).rows]

    assert slopes_kept(Solver("ipndm", 2)) == ["x", "-x", "--x", "----"]
    assert slopes_kept(Solver("heun")) == ["x", "--", "--x", "----", "----x", "------", "------x", "--------"]
    assert slopes_kept(Solver("amed")) == slopes_kept(Solver("heun"))
    table = Multistep(SIGMAS, [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0.5, 0], [1, 0, 0.5, 0.0]])
    assert ["".join("-x"[k] for k in row.needed) for row in table.table().rows] == ["x", "xx", "-x-", "----"]


def test_a_reference_of_thousands_of_steps_compiles_quickly():
    """The time grows with the square of the steps, not with their cube."""
    spent = []
    for steps in (200, 800):
        started = time.process_time()
        compiled(Solver("heun"), schedules.make("logsnr", steps, 0.01, 40).tolist())
        spent.append(time.process_time() - started)
    assert spent[1] < 32 * max(spent[0], 0.05)
