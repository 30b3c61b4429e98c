"""Every sampler with every kind of predictor, on a model whose images do not depend on the rest of the batch;
used by numerics.py."""

from dataclasses import dataclass
from typing import Any

import torch
from every_solver import EVERY
from golden import Toy
from torch import Tensor
from trust.orders import label

from amed import BottleneckPredictor, Constants, Evaluation, Solver, sample, schedules
from amed.constants import Multistep, as_multistep
from amed.kdiffusion import ENTRIES
from amed.parts import PARTS

SIGMAS = schedules.make("polynomial", 6, 0.02, 60)


@dataclass(frozen=True)
class Case:
    name: str
    solver: Solver
    predictor: Any = None
    afs: bool = False


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def constants() -> Constants:
    around = {"r": (0.5, 0.1), "c": (1, 0.02), "a": (1, 0.01)}
    n = len(SIGMAS) - 1
    drew = {name: v + by * drawn(k, n).clamp(-2, 2) for k, (name, (v, by)) in enumerate(around.items())}
    return Constants(SIGMAS, **drew)


def table(parts: str, offset: bool = False, alone: tuple[int, ...] = ()) -> Multistep:
    """iPNDM-3's weights, slightly different in each part."""
    weights = as_multistep(Solver("ipndm", 3), SIGMAS).weights
    bent = weights * (1 + 0.1 * drawn(7, *weights.shape[:2], PARTS[parts].count))
    for n in alone:
        bent[n, 0, 1:] = 0  # a spared pass has no newest difference of guidance
    by = 0.02 * drawn(8, len(SIGMAS) - 1, 3) if offset else None
    return Multistep(SIGMAS, bent, 1 + 0.01 * drawn(9, len(SIGMAS) - 1).clamp(-2, 2), parts, by, alone)


def network() -> BottleneckPredictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BottleneckPredictor(0.1, 0.1).double()


def cases() -> list[Case]:
    """Return every plain solver, every sampler with constants and with the network, and tables of every kind.

    The tables have every kind of part, offsets and spared passes."""
    both = (False, True)
    students = [(name, entry.solver) for name, entry in ENTRIES.items() if entry.solver.name != "multistep"]
    multi = Solver("multistep")
    return [
        *(Case(label(solver), solver) for solver in EVERY),
        *(Case(f"{name}, constants", solver, constants()) for name, solver in students),
        *(Case(f"{name}, network", solver, network(), afs) for name, solver in students for afs in both),
        *(
            Case(f"multistep, {parts or 'whole'}{', offset' * offset}", multi, table(parts, offset), afs)
            for parts in PARTS
            for offset in both
            for afs in both
        ),
        Case("multistep, halves, spared passes", multi, table("halves", alone=(2, 4))),
        Case("multistep, halves+bands, spared passes, offset", multi, table("halves+bands", True, (1, 3))),
    ]  # fmt: skip


def by_image(height: int, width: int):
    """An Evaluate that evaluates each image separately, and can give everything: a bottleneck of 5 channels,
    and guidance at 2."""
    ours, other = (Toy(drawn(seed, 4, 3, height, width)) for seed in (1, 2))

    def evaluate_image(x: Tensor, sigma: Tensor, wants: frozenset[str]) -> Evaluation:
        cond = ours(x, sigma)
        if "cond" in wants:
            return Evaluation(cond)
        bottleneck = torch.cat([x, cond[:, :2]], dim=1) / (1 + sigma**2).sqrt()
        uncond = other(x, sigma)
        return Evaluation(uncond + 2 * (cond - uncond), bottleneck, cond, uncond)

    def evaluate(model: Any, x: Tensor, sigma: Tensor, extra_args: Any, wants: frozenset[str]) -> Evaluation:
        each = [evaluate_image(x[i : i + 1], sigma[i : i + 1], wants) for i in range(len(x))]
        fields = zip(*((e.denoised, e.bottleneck, e.cond, e.uncond) for e in each))
        return Evaluation(*(None if v[0] is None else torch.cat(v) for v in fields))

    return evaluate


def run(case: Case, x: Tensor) -> Tensor:
    options = {"predictor": case.predictor, "afs": case.afs, "evaluate": by_image(*x.shape[-2:])}
    return sample(options["evaluate"], x, SIGMAS, case.solver, disable=True, **options)
