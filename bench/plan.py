"""What the benchmark measures: the plan of a run, its entries, and the rows they become."""

import json
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from amed import Fitted, load
from amed.fingerprint import fingerprint
from amed.recipes import MULTISTEP
from demo import model as demo

from . import flow
from .measures import RESAMPLES, Measured
from .opponents import Grids, Setting
from .search import SETTINGS, flow_settings

ROOT = Path(__file__).parent
OUT = ROOT / "out"
FOLDERS = (ROOT.parent / "predictors", ROOT / "predictors")  # the bundled files, and those for the benchmark
CALIBRATED = "calibrated table"  # label of those with the budget normal
QUICK_TABLE = f"{CALIBRATED}, quick"
MEASURES = ("rmse_ref", "fd_ref", "fd_data", "swd", "fd_ref_unet")  # names that Ruler.measure gives
SHOWN, SHOWN_NFES = 8, (3, 5, 7)  # images in a strip, and the NFEs that have strips
CHUNK = 32  # noises of one job


@dataclass(frozen=True)
class Plan:
    """What a run of the benchmark measures: guidance scales, NFEs, numbers of noises, and the seed."""

    # noises of every row, the first ones of `seed`
    noises: dict[float, int] = field(default_factory=lambda: {1.0: 128, 2.0: 64, 4.0: 64}, hash=False)
    nfes: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10)
    # noises on which the calibrated tables and the nearest other solvers are measured again
    many: dict[float, int] = field(default_factory=lambda: {1.0: 1000, 2.0: 512, 4.0: 512}, hash=False)
    flow: int = 256  # noises of the flow form; 0 leaves it out
    converged: int = 32  # noises of the check that the reference has converged
    resamples: int = RESAMPLES  # of the bootstrap
    dtype: str = "bfloat16"  # of the network
    seed: int = 7
    workers: int = os.cpu_count() or 1  # processes

    def total(self, guidance: float) -> int:
        """Return the number of noises to draw at a guidance scale: the most that any measurement uses."""
        return max(self.noises[guidance], self.many.get(guidance, 0))


QUICK = Plan({1.0: 24, 4.0: 12}, (3, 5, 7), {}, 0, 4, 20)


@dataclass(frozen=True)
class Entry:
    """A measurement to make: of a ComfyUI sampler on one schedule, or of a file of AMED parameters."""

    nfe: int  # evaluations per image that it must take
    passes: int  # network passes per image that it must take
    guidance: float
    count: int  # noises
    setting: Setting | None = None
    file: str = ""

    @property
    def cell(self) -> int:
        """The NFE to list the result under: its network passes, or half of them with guidance.

        With guidance an evaluation normally takes two passes, so equal costs are listed together."""
        return self.passes if self.guidance == 1 else self.passes // 2

    @property
    def flow(self) -> bool:
        """Whether the demo model is sampled as a flow model."""
        return self.setting.flow if self.setting else "-flow-" in Path(self.file).name

    @property
    def key(self) -> str:
        """A text that identifies this measurement among those of a benchmark run."""
        which = Path(self.file).stem if self.file else json.dumps(self.setting.as_dict(), sort_keys=True)
        return f"{which} nfe {self.nfe} cfg {self.guidance:g} n {self.count}"

    @property
    def work(self) -> float:
        """The number of network passes of this measurement; those with the most are started first."""
        return self.passes * self.count


@dataclass
class Row:
    """The result of one measurement: one solver at one NFE and guidance."""

    entry: Entry
    solver: str  # for people
    schedule: str  # for people
    predictor: str  # kind of predictor; "" for another solver
    nfe: int  # evaluations counted
    passes: int  # network passes per image, counted
    measures: dict[str, Measured]  # by the names of MEASURES

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a dict for docs/results.json."""
        row = {
            "solver": self.solver,
            "schedule": self.schedule,
            "predictor": self.predictor,
            "nfe": self.nfe,
            "passes": self.passes,
            "guidance": self.entry.guidance,
            "noises": self.entry.count,
        }
        for name, measured in self.measures.items():
            row[name] = rounded(measured.value)
            if len(measured.resampled):
                row[f"{name}_interval"] = [rounded(v) for v in measured.interval]
        return row


def rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


PLUGINS = {
    "ipndm": "iPNDM",
    "dpmpp": "DPM++",
    "euler": "Euler",
    "dpm_2": "DPM-Solver-2",
    "unipc": "UniPC",
    "deis": "DEIS",
}


def label(fitted: Fitted) -> tuple[str, str]:
    """Return the name to show for a fitted AMED solver, and the kind of its parameters, e.g. "MLP"."""
    spec = fitted.spec
    if spec.solver == MULTISTEP:
        passes_label = f"{CALIBRATED}, {fitted.passes} passes"
        budget_label = QUICK_TABLE if "-quick-" in fitted.name else CALIBRATED
        return "AMED multistep", passes_label if getattr(fitted.predictor, "alone", ()) else budget_label
    order = f"-{spec.max_order}" if spec.max_order > 1 else ""
    name = "AMED-Solver" if spec.solver == "amed" else f"AMED-Plugin on {PLUGINS[spec.solver]}{order}"
    return name, "MLP" if fitted.wants_bottleneck else "greedy table"


@cache
def predictors() -> tuple[tuple[str, Fitted], ...]:
    """Return (file, fitted AMED solver) for each file that was fitted to the demo model.

    Files without fitted parameters are left out. So are, with guidance, solvers that take an odd number of
    network passes, because no ComfyUI sampler takes as many."""
    model_fingerprint = fingerprint(demo.load_unet().named_parameters(prefix="inner_model"))
    files = {path.name: path for folder in reversed(FOLDERS) for path in sorted(folder.glob("*.safetensors"))}
    loaded = ((str(path), load(path)) for path in files.values())
    return tuple(
        (file, fitted)
        for file, fitted in loaded
        if fitted.spec.model_fingerprint == model_fingerprint
        and fitted.spec.learned
        and (fitted.spec.guidance == 1 or fitted.passes % 2 == 0)
    )


def settings(nfe: int, guidance: float) -> tuple[list[Setting], Grids]:
    """Return the best settings of ComfyUI's samplers at one NFE and guidance, from bench/settings.json.

    Also returns noise levels that were searched for this guidance, {number of steps: levels}."""
    known = json.loads(SETTINGS.read_text())
    grids = {int(n): torch.tensor(g, dtype=torch.float64) for n, g in known[f"grids {guidance:g}"].items()}
    return [Setting.of(setting) for setting in known[f"{nfe} {guidance:g}"]], grids


def entries(plan: Plan) -> list[Entry]:
    """Return the measurements that a benchmark plan asks for, except those of the flow model."""
    wanted = []
    for guidance, count in plan.noises.items():
        for nfe in plan.nfes:
            passes = nfe if guidance == 1 else 2 * nfe
            wanted += [Entry(nfe, passes, guidance, count, s) for s in settings(nfe, guidance)[0]]
        files = [(f, p) for f, p in predictors() if p.spec.guidance == guidance]
        ours = [Entry(p.nfe, p.passes, guidance, count, file=f) for f, p in files]
        wanted += [entry for entry in ours if entry.cell in plan.nfes and not entry.flow]
    return wanted


def flow_entries(plan: Plan) -> list[Entry]:
    """Return the measurements that a plan asks for of the demo model as a flow model."""
    if not plan.flow:
        return []
    wanted = [Entry(n, n, 1.0, plan.flow, setting) for n in flow.NFES for setting in flow_settings(n)]
    ours = [Entry(p.nfe, p.passes, 1.0, plan.flow, file=f) for f, p in predictors()]
    return wanted + [entry for entry in ours if entry.flow and entry.nfe in flow.NFES]
