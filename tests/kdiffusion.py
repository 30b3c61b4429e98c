"""PyPI's k-diffusion, its sampling part alone.

Importing the package whole pulls in its training code (clip, clean-fid, wandb ...), so the tests install it
without dependencies and import only the two modules that samplers are made of.
"""

import importlib
import importlib.util
import sys
import types


def sampling() -> types.ModuleType:
    """`k_diffusion.sampling`. Raises ModuleNotFoundError where k-diffusion is not installed."""
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            raise ModuleNotFoundError("k-diffusion is not installed: run `make venv`")
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.sampling")


def external() -> types.ModuleType:
    """`k_diffusion.external`: the denoiser wrappers for eps- and v-prediction."""
    sampling()
    return importlib.import_module("k_diffusion.external")
