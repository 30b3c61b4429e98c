"""Calibrate the demo model for the benchmark: `python -m bench.fits` (some 30 minutes on 2 cores).

NFE 3 to 10 at guidance 1, 2 and 4, budgets normal (predictors/, they are bundled) and quick
(bench/predictors); tables of one evaluation more in as many passes; tables of the flow form. Each with seed
0, once, as a user would, in bfloat16. What is there already is left (--again: not)."""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from amed import save
from amed.fit import Calibration, Settings, budget_of
from demo.target import NAME, target

from .flow import flow_target
from .workers import Workers

ROOT = Path(__file__).parent
BUNDLED, OWN = ROOT.parent / "predictors", ROOT / "predictors"
NFES, GUIDANCES = range(3, 11), (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Wanted:
    """One calibration and its file."""

    nfe: int
    guidance: float = 1.0
    budget: str = "normal"
    passes: int | None = None
    flow: bool = False

    @property
    def file(self) -> Path:
        kind = "flow-multistep" if self.flow else "multistep-quick" if self.budget == "quick" else "multistep"
        name = f"{NAME}-{kind}-nfe{self.nfe}-cfg{self.guidance:g}"
        own = self.flow or self.passes or self.budget == "quick"
        return (OWN if own else BUNDLED) / f"{name}{f'-passes{self.passes}' * bool(self.passes)}.safetensors"

    @property
    def work(self) -> float:
        return budget_of(self.budget, self.nfe) * (1 if self.guidance == 1 else 2)


def wanted() -> list[Wanted]:
    cells = [(n, g) for g in GUIDANCES for n in NFES]
    normal = [Wanted(n, g) for n, g in cells]
    quick = [Wanted(n, g, "quick") for n, g in cells]
    spared = [Wanted(n + 1, g, passes=2 * n) for n in (5, 7, 9) for g in GUIDANCES if g != 1]
    return [*normal, *quick, *(Wanted(n, flow=True) for n in (4, 6, 8)), *spared]


def calibrated(one: Wanted) -> str:
    """Fit and save one; what came of it."""
    made = flow_target(torch.bfloat16) if one.flow else target(one.guidance, dtype=torch.bfloat16)
    begin, budget = time.perf_counter(), budget_of(one.budget, one.nfe)
    settings = Settings(one.nfe, budget=budget, guidance=one.guidance, passes=one.passes)
    calibration = Calibration(replace(made, features=None), settings)
    for _ in calibration.run():
        pass
    result = calibration.result()
    save(one.file, result.fitted)
    return f"{one.file.stem}: {result.text}, {time.perf_counter() - begin:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fits", description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--match", default="", help="only files whose name has this")
    args = parser.parse_args()
    jobs = [(one,) for one in wanted() if args.match in one.file.stem]
    jobs = [job for job in jobs if args.again or not job[0].file.is_file()]
    with Workers(2) as workers:
        for _, text in workers.each("fits", calibrated, jobs, work=lambda job: job[0].work):
            print(text, flush=True)


if __name__ == "__main__":
    main()
