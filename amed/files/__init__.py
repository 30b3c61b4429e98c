"""Predictor files: what they say of themselves, reading and writing, folders of them, and where they come
from."""

from .spec import PredictorError, Spec
from .store import Fitted, Library, load, save

__all__ = ["Fitted", "Library", "PredictorError", "Spec", "load", "save"]
