"""The benchmark's arithmetic, and the agreement of its written results with its figures."""

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


def test_sliced_wasserstein_does_not_depend_on_order():
    torch.manual_seed(0)
    a, directions = torch.randn(20, 6), torch.eye(6)
    assert sliced_wasserstein(a, a[torch.randperm(20)], directions) == pytest.approx(0, abs=1e-7)
    assert sliced_wasserstein(a, a + 0.5, directions) == pytest.approx(0.5, rel=1e-6)


def test_bootstrap_interval_contains_the_value_and_narrows():
    torch.manual_seed(0)
    draws = torch.randn(4000).double() + 3

    def width(count):
        measured = Measured.of(lambda rows: float(draws[:count][rows].mean()), count, 200)
        low, high = measured.interval
        assert low < measured.value < high
        return high - low

    assert width(4000) == pytest.approx(2 * 1.645 / 4000**0.5, rel=0.3)
    assert width(40) > 5 * width(4000)


def test_the_searched_grid_is_the_best_of_all():
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


class Halving(torch.nn.Module):
    """A network that records how many rows it computes."""

    def __init__(self):
        super().__init__()
        self.computed = []

    def forward(self, x, sigma, label):
        self.computed.append(len(x))
        return 0.5 * x


def test_a_remembered_noise_is_counted_but_not_recomputed():
    from amed.evaluate import Guided
    from bench.problem import SIGMA_MAX, Remembering

    args, network = {name: {"label": torch.zeros(3)} for name in ("cond", "uncond")}, Halving()
    counted, x = Remembering(Guided(network, 2.0)), torch.randn(3, 2)
    for level in (SIGMA_MAX, SIGMA_MAX, 1.0, 1.0):
        assert torch.equal(counted(x, torch.full((3,), level), **args), 0.5 * x)
    assert (counted.evaluations, counted.rows, counted.passes) == (4, 12, 24)
    assert network.computed == [6, 6, 6]
    counted.remembers = False
    counted(x, torch.full((3,), SIGMA_MAX), **args)
    assert counted.evaluations == 5 and len(network.computed) == 4


def test_spared_passes_are_not_counted():
    from amed.evaluate import Guided
    from bench.problem import Remembering

    args = {name: {"label": torch.zeros(3)} for name in ("cond", "uncond")}
    counted, x = Remembering(Guided(Halving(), 2.0)), torch.randn(3, 2)
    for evaluate, passes in ((counted.halves, 6), (counted.conditional, 9)):
        evaluate(x, torch.ones(3), **args)
        assert counted.passes == passes


def test_the_flow_form_is_the_same_model():
    from bench.flow import CAP, S_MIN, FlowForm, flow_target, image, sigmas

    def gaussian(x, sigma):  # data of standard deviation 1/2
        return x * (0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2))

    model, noise, sigma = FlowForm(torch.nn.Identity()), torch.randn(4, 3, 2, 2).double(), 3.0
    model.denoiser = gaussian_module = torch.nn.Module()
    gaussian_module.forward = gaussian
    s = torch.full((4,), sigma / (1 + sigma)).double()
    x = 0.7 + sigma * noise
    assert torch.allclose(model(x * (1 - s[0]), s), gaussian(x, torch.full((4,), sigma).double()))
    assert torch.allclose(image(x * (1 - s[0]), float(s[0])), x)
    for level in (CAP, 1.0):  # evaluated at its highest noise level
        top = gaussian(80 * noise, torch.full((4,), 80.0).double())
        assert torch.allclose(model(level * noise, torch.full((4,), level).double()), top)
    assert sigmas("flow polynomial 1", 4)[[0, -1]].tolist() == pytest.approx([1, S_MIN])
    assert sigmas("flow simple, shift 3", 2).tolist() == [1, 0.75, 0]
    target = flow_target()
    assert target.flow and target.spec(Solver("euler"), sigmas("flow polynomial 2", 4), 1.0).sigma_max == 1


def test_searched_flow_settings_take_their_stated_evaluations():
    from bench.flow import NFES
    from bench.opponents import Setting
    from bench.search import SETTINGS

    known = json.loads(SETTINGS.read_text())
    for nfe in NFES:
        chosen = [Setting.of(setting) for setting in known[f"flow {nfe}"]]
        assert all(setting.flow for setting in chosen)
        assert {setting.variant.solver for setting in chosen} >= ONE_A_STEP


@pytest.mark.parametrize(
    ("solver", "features", "expected"),
    [
        (Solver("amed"), "none", ("AMED-Solver", "greedy table")),
        (Solver("unipc", 3), "none", ("AMED-Plugin on UniPC-3", "greedy table")),
        (Solver("deis", 3), "bottleneck", ("AMED-Plugin on DEIS-3", "MLP")),
        (Solver("multistep"), "none", ("AMED multistep", "calibrated table")),
    ],
)
def test_every_student_has_a_name(solver, features, expected):
    from amed import BottleneckPredictor, Constants, Fitted, Spec
    from bench.plan import label

    times = torch.tensor([10.0, 1.0], dtype=torch.float64)
    predictor = BottleneckPredictor() if features == "bottleneck" else Constants(times)
    assert label(Fitted(Spec.on(solver, times, features=features), predictor, times)) == expected


def table_of(nfe, guidance, name, alone=()):
    from amed import Fitted, Spec
    from amed.constants import Multistep

    times = torch.linspace(10, 1, nfe + 1, dtype=torch.float64)
    parts = "halves" if alone else ""
    weights = torch.zeros(nfe, 1, 2 if alone else 1)
    spec = Spec.on(Solver("multistep"), times, guidance=guidance, parts=parts)
    return Fitted(spec, Multistep(times, weights, parts=parts, alone=alone), times, name)


def test_tables_are_distinguished_and_compared_at_equal_passes():
    from bench.plan import Entry, label

    quick = table_of(6, 2.0, "emoji32-multistep-quick-nfe6-cfg2")
    spared = table_of(6, 2.0, "emoji32-multistep-nfe6-cfg2-passes10", (2, 4))
    assert label(quick)[1] == "calibrated table, quick" and label(spared)[1] == "calibrated table, 10 passes"
    cells = [Entry(f.nfe, f.passes, 2.0, 8, file=f.name).cell for f in (quick, spared)]
    assert cells == [6, 5] and Entry(5, 5, 1.0, 8).cell == 5


@pytest.mark.parametrize("flow", [False, True])
def test_files_are_run_and_their_evaluations_counted(tmp_path, flow):
    from amed import save
    from amed.constants import as_multistep
    from amed.files import Fitted
    from bench.flow import sigmas
    from bench.problem import Problem
    from bench.quality import run_file

    problem = Problem(1.0 if flow else 2.0, 2, 5, flow=flow)
    if flow:
        times = sigmas("flow polynomial 2", 4)
        spec = problem.target.spec(Solver("multistep"), times, 1.0)
        fitted = Fitted(spec, as_multistep(Solver("ipndm", 2), times), times)
    else:
        fitted = table_of(4, 2.0, "any", (1, 3))
    file = tmp_path / "any.safetensors"
    save(file, fitted)
    ends, read = run_file(problem, str(file))
    assert (ends.nfe, ends.passes) == (4, 4 if flow else 6) == (read.nfe, read.passes)
    assert run_file(problem, str(file))[0].passes == ends.passes  # a remembered evaluation counts as well
    if flow:
        assert ends.images.abs().max() < 1.5


def row_of(nfe, passes, guidance, error, distance, predictor="", **own):
    from bench.plan import Entry, Row

    measures = {"rmse_ref": error, "fd_ref": distance, "fd_data": 1.0, "swd": 1.0, "fd_ref_unet": 1.0}
    again = torch.ones(4, dtype=torch.float64)
    measured = {name: Measured(value, value * again) for name, value in measures.items()}
    name = own.pop("name", "AMED multistep")
    return Row(Entry(nfe, passes, guidance, 8, **own), name, "fitted", predictor, nfe, passes, measured)


def other(name, error, distance, guidance=2.0):
    from bench.opponents import Setting
    from bench.search import SETTINGS

    setting = Setting.of(json.loads(SETTINGS.read_text())["5 1"][0])
    setting = Setting(setting.variant, name, 5, False)
    return row_of(5, 5 if guidance == 1 else 10, guidance, error, distance, setting=setting, name=name)


def test_the_second_pass_runs_our_tables_and_the_three_nearest():
    from bench.plan import Plan
    from bench.quality import second_pass

    others = [other(*row) for row in (("a", 1, 9), ("b", 5, 1), ("c", 2, 2), ("d", 2, 3))]
    ours = [
        row_of(5, 10, 2.0, 1, 1, "calibrated table", file="full"),
        row_of(6, 10, 2.0, 1, 1, "calibrated table, 10 passes", file="spared"),
        row_of(5, 10, 2.0, 1, 1, "MLP", file="network"),
    ]
    chosen = second_pass(Plan({2.0: 8}, (5,), {2.0: 64}), others + ours)
    names = [entry.file or entry.setting.schedule for entry in chosen]
    assert names == ["full", "spared", "a", "b", "c"] and all(entry.count == 64 for entry in chosen)


def test_goals_report_reached_ones_and_the_gap_of_the_others():
    from bench import report
    from bench.compare import all_compared, equal_passes

    rows = [
        other("a", 1.0, 2.0),
        other("b", 2.0, 1.0),
        row_of(5, 10, 2.0, 0.9, 0.5, "calibrated table", file="full"),
        row_of(5, 10, 2.0, 1.1, 0.5, "calibrated table, quick", file="-quick-"),
        row_of(6, 10, 2.0, 0.7, 0.5, "calibrated table, 10 passes", file="spared"),
    ]
    assert equal_passes(rows, 5, 2.0).entry.file == "spared"
    kinds = {"normal": "calibrated table", "quick": "calibrated table, quick"}
    tables = {name: all_compared(rows, {}, kind) for name, kind in kinds.items()}
    lacking = report.goals({"normal": tables["normal"], "quick": []}, rows)
    assert any("quick" in line and "0 of 1; 1 without a table" in line for line in lacking)
    text = "\n".join(report.goals(tables, rows))
    assert "| normal: error below every other solver's | < 1 | 1 of 1; worst 0.90 at" in text
    assert "0 of 1; worst 1.10 at NFE 5, guidance 2 | missed by 0.10 |" in text
    assert "6 evaluations in 10 passes: error ratio | <= 0.8 | 0.70 (0.70 to 0.70) | **reached** |" in text
    assert "6 evaluations in 10 passes: FD ratio | <= 0.4 | 0.50 (0.50 to 0.50) | missed by 0.10 |" in text
    assert "**0.90** of 1" in report.ratio_table(tables)[-1]


def test_the_bench_tables_fit_the_demo_model_and_state_their_cost():
    from amed import load
    from amed.fingerprint import fingerprint
    from bench.tables import FOLDER, NFES, STUDENTS
    from demo.model import load_denoiser

    demo_fingerprint = fingerprint(load_denoiser().named_parameters())
    for student, solver in STUDENTS.items():
        for nfe in NFES:
            fitted = load(FOLDER / f"emoji32-{student}-table-nfe{nfe}-cfg1.safetensors")
            assert fitted.spec.student == solver and fitted.nfe == nfe
            assert fitted.spec.model_fingerprint == demo_fingerprint


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


def test_the_readme_agrees_with_the_results():
    text = (ROOT / "README.md").read_text().split("<!-- results -->\n")[1].split("<!-- end -->")[0]
    tables = [r for r in RESULTS if r["predictor"] == "calibrated table"]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    assert len(lines) == 12
    for nfe, guidance, other, _, ours, ratio in lines:
        scale = 1.0 if guidance == "none" else float(guidance)
        cells = [(r["nfe"], r["noises"]) for r in tables if r["guidance"] == scale]
        complete_sets = {
            n for _, n in cells if all((k, n) in cells for k in range(3, 11))
        }  # sets that have every cell
        here = [r for r in RESULTS if r["nfe"] == int(nfe) and r["guidance"] == scale]
        here = [r for r in here if r["noises"] == max(complete_sets) and "passes" not in r["predictor"]]
        readme_figures = [
            [float(v) for v in cell.replace("*", "").split(" / ")] for cell in (other, ours, ratio)
        ]
        for i, name in enumerate(("rmse_ref", "fd_ref")):
            best = min(r[name] for r in here if not r["predictor"])
            mine = next(r[name] for r in here if r["predictor"] == "calibrated table")
            assert readme_figures[0][i] == pytest.approx(best, abs=0.006)
            assert readme_figures[1][i] == pytest.approx(mine, abs=0.006)
            assert readme_figures[2][i] == pytest.approx(mine / best, abs=0.006)
