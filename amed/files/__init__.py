"""Predictor files: what they say of themselves, reading and writing, folders of them, and where they come
from."""

from .errors import PredictorError
from .fitted import Fitted
from .library import Library
from .spec import Spec
from .store import load, save

__all__ = ["Fitted", "Library", "PredictorError", "Spec", "load", "save"]
