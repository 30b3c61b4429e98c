"""What runs beside AMED in comparisons and pictures: a many-step reference, and the plain solver."""

from typing import Any

from ..amed.fit import plain
from ..amed.recipes import Solver
from .model import is_flow, sampling_of, sigma_range


def reference_setting(model: Any, evaluations: int) -> plain.Setting:
    """The many-step run that others are measured by, as calibrations have it."""
    low, high = sigma_range(sampling_of(model))
    return plain.Setting(Solver("ipndm", 3), "polynomial", 7.0, evaluations + 1, False, low, high)


def plain_setting(model: Any, nfe: int) -> plain.Setting:
    """iPNDM-2, which stays on its feet where guidance is strong, on the schedule AMED starts from."""
    model_sampling = sampling_of(model)
    kind = "polynomial" if is_flow(model_sampling) else "time_uniform"
    return plain.Setting(plain.SOLVERS["iPNDM-2"], kind, 1.0, nfe + 1, False, *sigma_range(model_sampling))
