"""The engine: AMED-Solver and AMED-Plugin (Zhou et al., CVPR 2024) in PyTorch. It imports no host."""

from .constants import Constants, Multistep
from .files import Fitted, Library, PredictorError, Spec, load, save
from .kdiffusion import SAMPLERS, register, sample
from .loop import Evaluation
from .network import BottleneckPredictor
from .recipes import Solver

__version__ = "0.2.0"
__all__ = [
    "SAMPLERS", "BottleneckPredictor", "Constants", "Evaluation", "Fitted", "Library", "Multistep",
    "PredictorError", "Solver", "Spec", "load", "register", "sample", "save",
    *(f"sample_{name}" for name in SAMPLERS),
]  # fmt: skip
globals().update({f"sample_{name}": sampler for name, sampler in SAMPLERS.items()})
