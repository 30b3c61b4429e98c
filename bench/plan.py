"""What is measured: the plan of a run, its entries, and the rows they become."""

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
FOLDERS = (ROOT.parent / "predictors", ROOT / "predictors")
CALIBRATED = "calibrated table"  # with the budget normal
QUICK_TABLE = f"{CALIBRATED}, quick"
MEASURES = ("rmse_ref", "fd_ref", "fd_data", "swd", "fd_ref_unet")
SHOWN, SHOWN_NFES = 8, (3, 5, 7)
CHUNK = 32


@dataclass(frozen=True)
class Plan:
    """What is measured: noises at each guidance scale (the first of `seed`), evaluations, the same again on
    `many` noises for the calibrated tables and their nearest opponents, the noises of the flow form, and how
    many prove that the reference has converged."""

    noises: dict[float, int] = field(default_factory=lambda: {1.0: 128, 2.0: 64, 4.0: 64}, hash=False)
    nfes: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10)
    many: dict[float, int] = field(default_factory=lambda: {1.0: 1000, 2.0: 512, 4.0: 512}, hash=False)
    flow: int = 256
    converged: int = 32
    resamples: int = RESAMPLES
    dtype: str = "bfloat16"
    seed: int = 7
    workers: int = os.cpu_count() or 1

    def total(self, guidance: float) -> int:
        """Noises that are drawn at a guidance scale; every row is on the first of them."""
        return max(self.noises[guidance], self.many.get(guidance, 0))


QUICK = Plan({1.0: 24, 4.0: 12}, (3, 5, 7), {}, 0, 4, 20)


@dataclass(frozen=True)
class Entry:
    """One row to measure: another solver's setting, or a predictor's file. nfe, passes: evaluations and
    passes of the network that it has to take for an image."""

    nfe: int
    passes: int
    guidance: float
    count: int
    setting: Setting | None = None
    file: str = ""

    @property
    def cell(self) -> int:
        """Evaluations of the solvers that it is compared with, those of as many passes."""
        return self.passes if self.guidance == 1 else self.passes // 2

    @property
    def flow(self) -> bool:
        return self.setting.flow if self.setting else "-flow-" in Path(self.file).name

    @property
    def key(self) -> str:
        which = Path(self.file).stem if self.file else json.dumps(self.setting.as_dict(), sort_keys=True)
        return f"{which} nfe {self.nfe} cfg {self.guidance:g} n {self.count}"

    @property
    def work(self) -> float:
        return self.passes * self.count


@dataclass
class Row:
    """What was measured of an entry."""

    entry: Entry
    solver: str
    schedule: str
    predictor: str
    nfe: int
    passes: int
    measures: dict[str, Measured]

    def as_dict(self) -> dict[str, Any]:
        """The row of docs/results.json."""
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
    """A file's solver and kind of predictor, for people."""
    spec = fitted.spec
    if spec.solver == MULTISTEP:
        spared = f"{CALIBRATED}, {fitted.passes} passes"
        whole = QUICK_TABLE if "-quick-" in fitted.name else CALIBRATED
        return "AMED multistep", spared if getattr(fitted.predictor, "alone", ()) else whole
    order = f"-{spec.max_order}" if spec.max_order > 1 else ""
    name = "AMED-Solver" if spec.solver == "amed" else f"AMED-Plugin on {PLUGINS[spec.solver]}{order}"
    return name, "MLP" if fitted.wants_bottleneck else "greedy table"


@cache
def predictors() -> tuple[tuple[str, Fitted], ...]:
    """(file, what it holds) of every predictor of the demo model; what learned nothing is none, and what
    takes an odd number of passes under guidance has no equal."""
    own = fingerprint(demo.load_unet().named_parameters(prefix="inner_model"))
    files = {path.name: path for folder in reversed(FOLDERS) for path in sorted(folder.glob("*.safetensors"))}
    loaded = ((str(path), load(path)) for path in files.values())
    return tuple(
        (file, fitted)
        for file, fitted in loaded
        if fitted.spec.model_fingerprint == own
        and fitted.spec.learned
        and (fitted.spec.guidance == 1 or fitted.passes % 2 == 0)
    )


def settings(nfe: int, guidance: float) -> tuple[list[Setting], Grids]:
    """What bench/settings.json has for these evaluations, and the guidance's searched grids."""
    known = json.loads(SETTINGS.read_text())
    grids = {int(n): torch.tensor(g, dtype=torch.float64) for n, g in known[f"grids {guidance:g}"].items()}
    return [Setting.of(setting) for setting in known[f"{nfe} {guidance:g}"]], grids


def entries(plan: Plan) -> list[Entry]:
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
    """Rows of the model in flow form."""
    if not plan.flow:
        return []
    wanted = [Entry(n, n, 1.0, plan.flow, setting) for n in flow.NFES for setting in flow_settings(n)]
    ours = [Entry(p.nfe, p.passes, 1.0, plan.flow, file=f) for f, p in predictors()]
    return wanted + [entry for entry in ours if entry.flow and entry.nfe in flow.NFES]
