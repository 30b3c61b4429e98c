"""Predictor files: their header (`Spec`), loading and saving, and folders of them (`Library`)."""

from .errors import PredictorError
from .fitted import Fitted
from .library import Library
from .spec import Spec
from .store import load, save

__all__ = ["Fitted", "Library", "PredictorError", "Spec", "load", "save"]
