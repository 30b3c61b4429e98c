"""The benchmark's own arithmetic, and that what is written down agrees."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from amed import Solver
from amed.fit.samples import Path as Trajectory
from bench.measures import Measured, sliced_wasserstein

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "docs" / "results.json").read_text())
ONE_A_STEP = {"euler", "dpmpp_2m", "dpmpp_3m", "lms", "ipndm", "ipndm_v", "deis", "uni_pc", "res_multistep"}
MEASURES = ("rmse_ref", "fd_ref", "fd_data", "swd")


def test_sliced_wasserstein_sees_sets_not_order():
    torch.manual_seed(0)
    a, directions = torch.randn(20, 6), torch.eye(6)
    assert sliced_wasserstein(a, a[torch.randperm(20)], directions) == pytest.approx(0, abs=1e-7)
    assert sliced_wasserstein(a, a + 0.5, directions) == pytest.approx(0.5, rel=1e-6)


def test_bootstrap_interval_holds_the_value_and_narrows():
    torch.manual_seed(0)
    draws = torch.randn(4000).double() + 3

    def width(count):
        told = Measured.of(lambda rows: float(draws[:count][rows].mean()), count, 200)
        low, high = told.interval
        assert low < told.value < high
        return high - low

    assert width(4000) == pytest.approx(2 * 1.645 / 4000**0.5, rel=0.3)
    assert width(40) > 5 * width(4000)


def test_searched_grid_is_the_best_of_all():
    from bench.opponents import searched_grids

    times = torch.tensor([8.0, 5.0, 3.0, 1.5, 0.7, 0.2, 0.01], dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    states = tuple(x * (0.3 + t**2).sqrt() + 0.3 * torch.sin(3 * t) for t in times)
    grids = searched_grids(Trajectory(times, states), 4)

    def slope(i):
        after = (states[i + 1] - states[i]) / (times[i + 1] - times[i])
        before = (states[i] - states[i - 1]) / (times[i] - times[i - 1]) if i else after
        return (after + before) / 2

    def cost(chosen):
        points = (0, *chosen, 6)
        steps = zip(points[:-1], points[1:])
        errors = (states[i] + (times[j] - times[i]) * slope(i) - states[j] for i, j in steps)
        return sum(float(error.norm(dim=1).mean()) for error in errors)

    for steps in (2, 3, 4):
        best = min(itertools.combinations(range(1, 6), steps - 1), key=cost)
        assert grids[steps].tolist() == times[[0, *best, 6]].tolist()


def test_a_noise_that_was_seen_is_counted_and_not_computed_again():
    from amed.evaluate import Guided
    from bench.problem import SIGMA_MAX, Remembering

    computed = []

    def model(x, sigma, label):
        computed.append(len(x))
        return 0.5 * x

    args = {name: {"label": torch.zeros(3)} for name in ("cond", "uncond")}
    counted, x = Remembering(Guided(model, 2.0)), torch.randn(3, 2)
    for level in (SIGMA_MAX, SIGMA_MAX, 1.0, 1.0):
        assert torch.equal(counted(x, torch.full((3,), level), **args), 0.5 * x)
    assert (counted.evaluations, counted.rows, counted.passes) == (4, 12, 24) and computed == [6, 6, 6]
    counted.remembers = False
    counted(x, torch.full((3,), SIGMA_MAX), **args)
    assert counted.evaluations == 5 and len(computed) == 4


@pytest.mark.parametrize(
    ("solver", "features", "said"),
    [
        (Solver("amed"), "none", ("AMED-Solver", "greedy table")),
        (Solver("unipc", 3), "none", ("AMED-Plugin on UniPC-3", "greedy table")),
        (Solver("deis", 3), "bottleneck", ("AMED-Plugin on DEIS-3", "MLP")),
        (Solver("multistep"), "none", ("AMED multistep", "calibrated table")),
    ],
)
def test_every_student_has_a_name(solver, features, said):
    from amed import BottleneckPredictor, Constants, Fitted, Spec
    from bench.quality import label

    times = torch.tensor([10.0, 1.0], dtype=torch.float64)
    predictor = BottleneckPredictor() if features == "bottleneck" else Constants(times)
    assert label(Fitted(Spec.on(solver, times, features=features), predictor, times)) == said


def test_the_benchs_tables_are_for_the_demo_model_and_take_what_they_say():
    from amed import load
    from amed.fingerprint import fingerprint
    from bench.tables import FOLDER, NFES, STUDENTS
    from demo.model import load_denoiser

    own = fingerprint(load_denoiser().named_parameters())
    for student, solver in STUDENTS.items():
        for nfe in NFES:
            fitted = load(FOLDER / f"emoji32-{student}-table-nfe{nfe}-cfg1.safetensors")
            assert fitted.spec.student == solver and fitted.nfe == nfe
            assert fitted.spec.model_fingerprint == own


def test_results_have_every_row():
    rows = [r for r in RESULTS if r["solver"] != "reference"]
    assert sorted({r["guidance"] for r in rows}) == [1, 2, 4]
    assert sorted({r["nfe"] for r in rows}) == list(range(3, 11))
    for guidance, nfe in itertools.product((1, 2, 4), range(3, 11)):
        here = [r for r in rows if (r["guidance"], r["nfe"]) == (guidance, nfe)]
        names = {r["solver"].split(" (")[0] for r in here if not r["predictor"]}
        assert names >= ONE_A_STEP
        assert any(r["predictor"] == "calibrated table" for r in here)
    for row in rows:
        for name in MEASURES:
            low, high = row[f"{name}_interval"]
            assert low <= row[name] * 1.001 and row[name] <= high * 1.001, row
    assert sum(r["solver"] == "reference" for r in RESULTS) == 3


def test_the_readme_says_what_the_results_say():
    text = (ROOT / "README.md").read_text().split("<!-- results -->\n")[1].split("<!-- end -->")[0]
    least = min(r["noises"] for r in RESULTS if r["guidance"] == 1 and r["solver"] != "reference")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    assert len(lines) == 12
    for nfe, guidance, other, _, ours, ratio in lines:
        scale = 1.0 if guidance == "none" else float(guidance)
        here = [r for r in RESULTS if r["nfe"] == int(nfe) and r["guidance"] == scale]
        here = [r for r in here if scale != 1 or r["noises"] == least]
        told = [[float(v) for v in cell.replace("*", "").split(" / ")] for cell in (other, ours, ratio)]
        for i, name in enumerate(("rmse_ref", "fd_ref")):
            best = min(r[name] for r in here if not r["predictor"])
            mine = next(r[name] for r in here if r["predictor"] == "calibrated table")
            assert told[0][i] == pytest.approx(best, abs=0.006)
            assert told[1][i] == pytest.approx(mine, abs=0.006)
            assert told[2][i] == pytest.approx(mine / best, abs=0.006)
