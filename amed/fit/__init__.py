"""Fitting: samples, plain search, weights in closed form, times, polish, comparison (Calibration and its
driver `fit`), and the paper's Algorithm 1."""

from .calibration import Calibration
from .compare import Result, Row
from .driver import Job, Outcome, SavedFit, fit
from .host_sampler import HostSampler
from .samples import References
from .settings import PRESETS, Progress, Settings, budget_of, numbers, smallest_budget
from .stages import references_for
from .target import CachedError, Draw, Rival, Target

__all__ = [
    "PRESETS", "CachedError", "Calibration", "Draw", "HostSampler", "Job", "SavedFit", "Outcome", "Progress",
    "References", "Result", "Rival", "Row", "Settings", "Target", "budget_of", "fit", "numbers",
    "references_for", "smallest_budget",
]  # fmt: skip
