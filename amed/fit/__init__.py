"""Fit predictors to a model.

`fit` is the driver that every host uses; it runs a `Calibration` (forward evaluations only) or, for a
host sampler, a HostCalibration. `algorithm1` is the training of the paper."""

from .calibration import Calibration
from .compare import Result, ResultRow
from .driver import Job, Outcome, SavedFit, fit
from .host_sampler import HostSampler
from .samples import References
from .settings import PRESETS, Progress, Settings, budget_of, numbers, smallest_budget
from .stages import references_for
from .target import CachedError, Draw, Rival, Target

__all__ = [
    "PRESETS", "CachedError", "Calibration", "Draw", "HostSampler", "Job", "SavedFit", "Outcome", "Progress",
    "References", "Result", "ResultRow", "Rival", "Settings", "Target", "budget_of", "fit", "numbers",
    "references_for", "smallest_budget",
]  # fmt: skip
