"""Measured mathematics: orders of convergence, batches, rounding, and how img2img's end depends on its start.

PYTHONPATH=.:tests python -m trust.numerics # minutes; writes its part of docs/TRUST.md"""

import math
import statistics
from pathlib import Path

import torch
from every_solver import EVERY
from torch import Tensor
from trust import exact_problem as exact
from trust import orders, samplers
from trust.page import Part, put

import amed
from amed import Fitted, Solver, sample, schedules
from amed.evaluate import FromModule, Guided
from demo.model import UNCONDITIONAL, load_denoiser

PREDICTORS = sorted((Path(__file__).resolve().parents[2] / "predictors").glob("*.safetensors"))
EPS = {
    torch.float32: 16,
    torch.bfloat16: 4,
}  # allowed RMS distance of a run from float64's, in multiples of the dtype's eps
JUMP, SLOPE = (
    0.02,
    2.0,
)  # allowed change of the end (data about 1): where the start passes a time; per unit of log start


# --- rounding ----------------------------------------------------------------------------------------------


def rounding_error(case: samplers.Case, dtype: torch.dtype) -> float:
    """Return the relative RMS distance of a run in a dtype from the same run in float64.

    The model computes in float64; its input and output are rounded, as is everything that the sampler
    computes."""

    def evaluate(model, x, sigma, extra_args, wants):
        cond = exact.denoiser(x.double(), sigma.double()).to(x.dtype)
        if "cond" in wants:
            return amed.Evaluation(cond)
        return amed.Evaluation(1.5 * cond, x / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt(), cond, cond / 2)

    x = (samplers.drawn(5, 6, 3, 8, 8) * samplers.SIGMAS[0]).to(dtype)
    options = {"disable": True, "predictor": case.predictor, "afs": case.afs}
    exact_end = sample(evaluate, x.double(), samplers.SIGMAS, case.solver, evaluate=evaluate, **options)
    end = sample(evaluate, x, samplers.SIGMAS, case.solver, evaluate=evaluate, **options)
    return rms(end.double() - exact_end) / rms(exact_end)


def network_rounding_error(fitted: Fitted, dtype: torch.dtype, noise: Tensor) -> float:
    """Return the same distance for a bundled predictor on the demo network, which itself computes in the
    dtype."""
    ends = []
    for kind in (torch.float64, dtype):
        denoiser = load_denoiser(dtype=kind)
        sigmas = fitted.sigmas()
        x = (noise * sigmas[0]).to(dtype).to(kind)
        evaluate = FromModule(denoiser.inner_model.middle_block)
        guided, args = guided_by(denoiser, fitted.spec.guidance, len(x))
        run = amed.SAMPLERS[fitted.spec.sampler]
        ends.append(run(guided, x, sigmas, args, disable=True, predictor=fitted, evaluate=evaluate).double())
    return rms(ends[1] - ends[0]) / rms(ends[0])


def guided_by(denoiser, guidance: float, count: int):
    """Return the demo model at a guidance scale, and its arguments."""
    none = torch.full((count,), UNCONDITIONAL)
    label = none if guidance == 1 else torch.arange(count) % UNCONDITIONAL
    return Guided(denoiser, guidance), {"cond": {"label": label}, "uncond": {"label": none}}


def rms(v: Tensor) -> float:
    return float(v.square().mean().sqrt())


# --- img2img: the end as a function of the start -----------------------------------------------------------


def ends(fitted: Fitted, denoiser, start: float, x0: Tensor, noise: Tensor) -> Tensor:
    """Return the end of img2img from x0 at a noise level."""
    guided, args = guided_by(denoiser, fitted.spec.guidance, len(x0))
    times, solver = schedules.from_start(fitted.sigmas(), start), fitted.spec.student
    return sample(guided, x0 + noise * start, times, solver, args, disable=True, predictor=fitted.predictor)


def starts_at_times(fitted: Fitted) -> list[float]:
    """Return the starts at which the cut list gets one more time."""
    return [float(t) / (1 - schedules.NEAR) for t in fitted.sigmas()[1:-1]]


def jump(fitted: Fitted, denoiser, start: float, x0: Tensor, noise: Tensor, by: float = 1e-7) -> float:
    """Return the distance between the ends of two starts, just above and just below a noise level."""
    up, down = (ends(fitted, denoiser, start * (1 + s * by), x0, noise) for s in (1, -1))
    return rms(up - down)


# --- the page ----------------------------------------------------------------------------------------------


def order_rows() -> list[tuple[str, str]]:
    rows = []
    for solver in EVERY:
        run, formula_order, why = orders.theory(solver)
        measured = orders.order_of_runs(solver), orders.order_of_formula(solver)
        text = f"{measured[0]:.2f} (theory {run}); {measured[1]:.2f} (theory {formula_order})"
        rows.append((f"order of {orders.label(solver)}", text + (f": {why}" if why else "")))
    return rows


def batch_rows(batches: int = 4) -> list[tuple[str, str]]:
    compared = same = 0
    for size in ((8, 8), (9, 13), (1, 1)):
        for seed in range(batches):
            x = samplers.drawn(seed, 7, 3, *size) * samplers.SIGMAS[0]
            order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
            for case in samplers.cases():
                batch_end = samplers.run(case, x)
                split = torch.cat([samplers.run(case, v) for v in x.split([1, 4, 2])])
                compared += 2
                same += torch.equal(split, batch_end) + torch.equal(
                    samplers.run(case, x[order]), batch_end[order]
                )
    return [
        (
            f"{len(samplers.cases())} samplers with their predictors, batches of 7 in another order and in "
            "parts (float64): equal to the last bit",
            f"{same} of {compared}",
        )
    ]


def rounding_rows() -> list[tuple[str, str]]:
    noise = samplers.drawn(11, 2, 3, 32, 32)
    rows = []
    for dtype, count in EPS.items():
        name, eps = str(dtype).removeprefix("torch."), torch.finfo(dtype).eps
        worst = max((rounding_error(case, dtype), case.name) for case in samplers.cases())
        emoji = (file for file in PREDICTORS if "emoji" in file.stem)
        files = [(network_rounding_error(amed.load(file), dtype, noise), file.stem) for file in emoji]
        rows += [
            (f"{name} compared with float64, an exact model: largest of {len(samplers.cases())} samplers "
             f"(bound {count} eps = {count * eps:.1e})", f"{worst[0]:.1e} ({worst[1]})"),
            (f"{name} compared with float64, the demo's network in {name}: median and largest of "
             f"{len(files)} files",
             f"{statistics.median(v for v, _ in files):.1e}, {max(files)[0]:.1e} ({max(files)[1]})"),
        ]  # fmt: skip
    return rows


def start_rows() -> list[tuple[str, str]]:
    denoiser = load_denoiser(dtype=torch.float32)
    noise = samplers.drawn(12, 1, 3, 32, 32).float()
    jumps, slopes, tops = [], [], []
    for file in PREDICTORS:
        fitted = amed.load(file)
        if "emoji32" not in file.stem or fitted.wants_bottleneck:  # a network interpolates nothing
            continue
        guided, args = guided_by(denoiser, fitted.spec.guidance, len(noise))
        times = schedules.make("polynomial", 13, 0.002, 80.0)
        x = samplers.drawn(13, 1, 3, 32, 32).float() * times[0]
        x0 = sample(guided, x, times, Solver("ipndm", 3), args, disable=True)
        jumps += [(jump(fitted, denoiser, t, x0, noise, 1e-6), file.stem, t) for t in starts_at_times(fitted)]
        inside = [math.sqrt(a * b) for a, b in zip(starts_at_times(fitted), starts_at_times(fitted)[1:])]
        slopes += [(jump(fitted, denoiser, t, x0, noise, 5e-3) / 1e-2, file.stem, t) for t in inside]
        top = float(fitted.sigmas()[0])
        tops.append(
            (jump(fitted, denoiser, top * math.exp(-amed.constants.SAME), x0, noise, 1e-6), file.stem)
        )
    worst, steep = max(jumps), max(slopes)
    return [
        (f"img2img from any start: jump of the end where the start passes one of a table's times "
         f"({len(jumps)} places; a step of 0.1% is left out there), median and largest (bound {JUMP:g})",
         f"{statistics.median(v for v, *_ in jumps):.4f}, {worst[0]:.4f} ({worst[1]}, at {worst[2]:.3g})"),
        (f"change of the end per unit of log start between these times ({len(slopes)} places), "
         "median and largest",
         f"{statistics.median(v for v, *_ in slopes):.2f}, {steep[0]:.2f} ({steep[1]}, at {steep[2]:.3g})"),
        ("jump 1% below a table's first time, from which its own numbers apply, median and largest",
         f"{statistics.median(v for v, _ in tops):.4f}, {max(tops)[0]:.4f} ({max(tops)[1]})"),
    ]  # fmt: skip


ABOUT = (
    "The order of each recipe in float64, on a problem whose end is known: first of full runs when "
    "geometric steps are halved, then of the formula alone, from an exact history, when equal steps "
    "are halved. Then batches, rounding, and the starts of img2img. Distances are RMS, of data of "
    "size about 1."
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = order_rows() + batch_rows() + rounding_rows() + start_rows()
    put(Part("numerics", "Numerics", "make numerics", ABOUT, rows))
