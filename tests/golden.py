"""Compare this repository with reference trajectories of the method authors' released code.

`python tests/golden.py FOLDER` prints one line per case, and exits with 1 if a case fails.

A folder holds sampling.{json,safetensors}, training.{json,safetensors} and sd15_table.safetensors, or some of
them: numbers of the authors' code on a closed-form model (tests/golden_data/README.md)."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from amed import schedules  # noqa: E402
from amed.evaluate import FromModule, Thresholded  # noqa: E402
from amed.fit.algorithm1 import Teacher, losses  # noqa: E402
from amed.loop import Problem  # noqa: E402
from amed.network import BottleneckPredictor  # noqa: E402
from amed.recipes import Solver  # noqa: E402
from amed.run import states  # noqa: E402
from predictors import published  # noqa: E402

TOLERANCE = 1e-5
DEFAULT_ORDER = {"ipndm": 4, "dpmpp": 3}


class Toy(nn.Module):
    """The exact denoiser of a mixture of four Gaussians; its bottleneck is x / sqrt(1 + t^2)."""

    def __init__(self, mu: Tensor, variance: float = 0.05):
        super().__init__()
        self.mu, self.variance, self.middle_block = mu, variance, nn.Identity()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        t = sigma.view(-1, 1, 1, 1)
        self.middle_block(x / (1 + t**2).sqrt())
        v = self.variance + t**2
        distance = (x[:, None] - self.mu).square().sum(dim=(2, 3, 4))
        w = torch.softmax(-distance / (2 * v.view(-1, 1)), dim=1)
        return (self.variance * x + t**2 * torch.einsum("bk,kchw->bchw", w, self.mu)) / v


def error(mine: Tensor, theirs: Tensor) -> float:
    """Return the relative error by norm."""
    return float((mine - theirs).norm() / theirs.norm().clamp(min=1e-12))


def solver_of(case: dict, name: str) -> Solver:
    order = (case.get("max_order") or DEFAULT_ORDER[name]) if name in DEFAULT_ORDER else 1
    data = bool(case.get("predict_x0")) and name == "dpmpp"
    lower = case.get("lower_order_final")
    return Solver(name, order, data, True if lower is None else lower)


def predictor_of(case: dict, tensors: dict[str, Tensor]) -> BottleneckPredictor:
    predictor = BottleneckPredictor(case["scale_dir"], case["scale_time"]).double()
    predictor.load_state_dict(tensors)
    return predictor


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def sampling(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield the error of every sampling case: all its states, on the schedule of its settings."""
    tensors = load_file(folder / "sampling.safetensors")
    toy = Toy(tensors["mu"])
    for i, case in enumerate(json.loads((folder / "sampling.json").read_text())):
        reference = under(tensors, f"{i}.")
        sigmas = schedules.make(
            case["schedule_type"],
            case["num_steps"],
            case["sigma_min"],
            case["sigma_max"],
            case["schedule_rho"],
        )
        schedule_error = error(sigmas, reference["sigmas"])
        if case["denoise_to_zero"]:
            sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
        solver, predictor = (
            solver_of(case, case["solver"]),
            predictor_of(case, under(reference, "predictor.")),
        )
        evaluate = FromModule(toy.middle_block)
        problem = Problem(toy, evaluate=Thresholded(evaluate) if solver.predict_x0 else evaluate)
        x = reference["noise"] * sigmas[0]
        with torch.no_grad():
            result = [x] + [s.x for s in states(problem, solver, x, sigmas, predictor, case["afs"])]
        worst = max(error(mine, theirs) for mine, theirs in zip(result, reference["states"], strict=True))
        yield f"sampling {i} {case['solver']} {case['schedule_type']}", max(worst, schedule_error)


def sd15(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield the errors of the published table on the toy model, from x_vp = noise, at the base times."""
    reference = load_file(folder / "sd15_table.safetensors")
    fitted = published.sd15()
    steps = torch.tensor(published.sd15_timesteps())
    yield "sd15 timesteps", float((steps[:-1] != reference["timesteps"]).sum())
    yield "sd15 sigmas", error(schedules.sd_sigmas()[torch.tensor(published.TIMESTEPS)], reference["sigmas"])
    base = fitted.sigmas()
    x = reference["noise"] * (1 + base[0] ** 2).sqrt()
    with torch.no_grad():
        run = states(Problem(Toy(reference["mu"])), fitted.spec.student, x, base, fitted.predictor)
        result = [s.x for s in run]
    for k, (state, sigma) in enumerate(zip(result, base[1:])):
        yield f"sd15 state {k}", error(state / (1 + sigma**2).sqrt(), reference["states_vp"][2 * k + 1])
    yield "sd15 end", error(result[-1], reference["final_sigma_space"])


def training(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield the errors of teacher states, losses and gradients of one loop of Algorithm 1 without updates."""
    tensors = load_file(folder / "training.safetensors")
    toy = Toy(tensors["mu"])
    for i, case in enumerate(json.loads((folder / "training.json").read_text())):
        reference = under(tensors, f"{i}.")
        predictor = predictor_of(case, under(reference, "predictor."))
        teacher = Teacher(solver_of(case, case["teacher"]), case["M"])
        times = teacher.times(
            case["schedule_type"],
            case["num_steps"],
            case["sigma_min"],
            case["sigma_max"],
            case["schedule_rho"],
        )
        base = times[:: case["M"] + 1]
        x = reference["noise"] * base[0]
        result = teacher.states(toy, x, times, {})
        name = f"training {i} {case['student']}"
        yield f"{name} teacher", error(torch.stack(result), reference["teacher"])
        problem = Problem(toy, evaluate=FromModule(toy.middle_block))
        student = solver_of(case, case["student"])
        run = losses(problem, student, predictor, x, base, list(reference["teacher"]), case["afs"])
        for k, loss in enumerate(run):
            yield f"{name} loss {k}", error(loss.detach(), reference["losses"][k])
            predictor.zero_grad()
            loss.backward()
            mine = dict(predictor.named_parameters())
            for parameter, theirs in under(reference, f"grad.{k}.").items():
                yield f"{name} grad {k} {parameter}", error(mine[parameter].grad, theirs)


def cases(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield (name, relative error) of every case in the folder.

    Raises FileNotFoundError if the folder has no cases."""
    any_file = False
    for file, run in (("sampling", sampling), ("sd15_table", sd15), ("training", training)):
        if (folder / f"{file}.safetensors").is_file():
            any_file = True
            yield from run(folder)
    if not any_file:
        raise FileNotFoundError(f"{folder} holds no sampling, training or sd15_table .safetensors")


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    failed = total = 0
    try:
        for name, value in cases(Path(argv[0])):
            bad = not value <= TOLERANCE
            total, failed = total + 1, failed + bad
            print(f"{'FAIL' if bad else 'ok  '} {value:9.2e}  {name}")
    except FileNotFoundError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{total - failed} of {total} within {TOLERANCE:g}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
