"""Calibrate the demo models for the benchmark: `python -m bench.fits` (about an hour on 2 cores).

For emoji32 it fits tables for NFE 3 to 10 at guidance 1, 2 and 4 with the budgets normal (bundled, in
predictors/) and quick (in bench/predictors); tables that make one evaluation more in as many passes; and
tables of the flow form. For avatars32 it fits the bundled tables, with the budget normal. Each is fitted
once, with seed 0, as a user would. Existing files are left, unless --again."""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from amed import save
from amed.fit import Calibration, Settings, budget_of
from demo.avatars.targets import NAME as AVATARS
from demo.avatars.targets import target as avatar_target
from demo.target import NAME as EMOJI
from demo.target import target as emoji_target

from .flow import flow_target
from .workers import Workers

ROOT = Path(__file__).parent
BUNDLED, BENCH_ONLY = ROOT.parent / "predictors", ROOT / "predictors"
NFES, GUIDANCES = range(3, 11), (1.0, 2.0, 4.0)  # of emoji32
AVATAR_NFES, AVATAR_GUIDANCES = (4, 5, 6, 8, 10), (1.0, 4.0)
# dtypes: that of a flow model's times must be exact
TARGETS = {EMOJI: (emoji_target, torch.bfloat16), AVATARS: (avatar_target, torch.float32)}


@dataclass(frozen=True)
class FitJob:
    """The settings of one calibration of a demo model, and the file for its result."""

    nfe: int
    guidance: float = 1.0
    budget: str = "normal"
    passes: int | None = None  # network passes per image; None: no evaluation skips the negative prompt
    flow: bool = False  # whether emoji32 is in flow form
    model: str = EMOJI  # a name of TARGETS

    @property
    def file(self) -> Path:
        """The file for the calibrated solver constants."""
        kind = "flow-multistep" if self.flow else "multistep-quick" if self.budget == "quick" else "multistep"
        name = f"{self.model}-{kind}-nfe{self.nfe}-cfg{self.guidance:g}"
        bench_only = self.flow or self.passes or self.budget == "quick"
        return (
            BENCH_ONLY if bench_only else BUNDLED
        ) / f"{name}{f'-passes{self.passes}' * bool(self.passes)}.safetensors"

    @property
    def work(self) -> float:
        """Estimate of the network passes of this calibration; those with the most are started first."""
        return budget_of(self.budget, self.nfe) * (1 if self.guidance == 1 else 2)


def fit_jobs() -> list[FitJob]:
    """Return a FitJob for each calibration that the benchmark needs."""
    cells = [(n, g) for g in GUIDANCES for n in NFES]
    normal = [FitJob(n, g) for n, g in cells]
    quick = [FitJob(n, g, "quick") for n, g in cells]
    spared = [FitJob(n + 1, g, passes=2 * n) for n in (5, 7, 9) for g in GUIDANCES if g != 1]
    avatars = [FitJob(n, g, model=AVATARS) for g in AVATAR_GUIDANCES for n in AVATAR_NFES]
    return [*normal, *quick, *(FitJob(n, flow=True) for n in (4, 6, 8)), *spared, *avatars]


def calibrated(job: FitJob) -> str:
    """Run a calibration and save its result; return a line that describes it."""
    make, dtype = TARGETS[job.model]
    fit_target = flow_target(dtype) if job.flow else make(job.guidance, dtype=dtype)
    begin, budget = time.perf_counter(), budget_of(job.budget, job.nfe)
    settings = Settings(job.nfe, budget=budget, guidance=job.guidance, passes=job.passes)
    calibration = Calibration(replace(fit_target, features=None), settings)
    for _ in calibration.run():
        pass
    result = calibration.result()
    save(job.file, result.fitted)
    return f"{job.file.stem}: {result.text}, {time.perf_counter() - begin:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fits", description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="also fit what exists already")
    parser.add_argument("--match", default="", help="only files whose name contains this")
    args = parser.parse_args()
    jobs = [(job,) for job in fit_jobs() if args.match in job.file.stem]
    jobs = [job for job in jobs if args.again or not job[0].file.is_file()]
    with Workers(2) as workers:
        for _, text in workers.each("fits", calibrated, jobs, work=lambda job: job[0].work):
            print(text, flush=True)


if __name__ == "__main__":
    main()
