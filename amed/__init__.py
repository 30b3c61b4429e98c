"""AMED-Solver and AMED-Plugin (Zhou et al., CVPR 2024): the engine. It knows torch and no host."""

from .predictor import BottleneckPredictor, MultistepTable, TablePredictor
from .sampling import (
    SAMPLERS,
    Solver,
    register,
    sample,
    sample_amed,
    sample_amed_dpm_2,
    sample_amed_dpmpp_2m,
    sample_amed_dpmpp_3m,
    sample_amed_euler,
    sample_amed_ipndm,
    sample_amed_multistep,
)
from .store import Fitted, Library, PredictorError, Spec, load, save

__version__ = "0.1.0"
__all__ = [
    "SAMPLERS",
    "BottleneckPredictor",
    "Fitted",
    "Library",
    "MultistepTable",
    "PredictorError",
    "Solver",
    "Spec",
    "TablePredictor",
    "load",
    "register",
    "sample",
    "sample_amed",
    "sample_amed_dpm_2",
    "sample_amed_dpmpp_2m",
    "sample_amed_dpmpp_3m",
    "sample_amed_euler",
    "sample_amed_ipndm",
    "sample_amed_multistep",
    "save",
]
