"""`keep`, which saves a fit without losing a better or finished one."""

from dataclasses import replace
from itertools import count
from pathlib import Path

from .code import code_of
from .errors import PredictorError, UnsavedError
from .fitted import Fitted
from .lock import folder_lock
from .spec import Spec
from .store import load, save


def keep(path: Path, fitted: Fitted, finished: bool = True) -> tuple[Path, str]:
    """Save a fitted predictor as `path`, or as NAME-2, NAME-3, ... if it must not replace the file there.

    It replaces a file only if both are for the same sampler, number of evaluations, guidance scale and
    checkpoint, and the file is not better. A usable predictor (its images are nearer to the reference images
    than images from other noise are) is better than an unusable one. Otherwise a finished fit is better than
    an unfinished one, and then the one with the lower error. Threads and processes may call this at once.

    Args:
        path: the wanted path.
        fitted: the predictor.
        finished: whether the fit ran to its end.

    Returns:
        The path of the saved file, and a sentence that names it and the files that were not replaced.

    Raises:
        UnsavedError: if the file cannot be written; the message contains the predictor as text (its code).
    """
    spec = replace(fitted.spec, metrics={**fitted.spec.metrics, "finished": finished})
    fitted, remarks = replace(fitted, spec=spec), []
    try:
        with folder_lock(path.parent):
            for number in count(1):
                place = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
                reason = reason_to_preserve(place, spec)
                if reason is None:
                    break
                remarks.append(f"{place.name} stays, {reason}")
            saved_path = save(place, fitted)
    except UnsavedError as error:
        raise UnsavedError(
            f"{error}. The predictor is not lost: paste its code, the text that follows, into Load AMED "
            f"Predictor; this is its code: {code_of(fitted)}"
        ) from error
    state = "" if finished else " (unfinished)"
    return saved_path, "; ".join([*remarks, f"saved as {saved_path.name}{state} in {saved_path.parent}"])


def requested_sampler(spec: Spec) -> str:
    """Return the sampler that the user asked to calibrate, even if the file holds another, plain solver.

    "" if a file of an older version does not state it."""
    return spec.sampler if spec.learned else spec.fitted_for


def reason_to_preserve(path: Path, new: Spec) -> str | None:
    """Return why a new fit must not replace the file at `path`; None if it may, or if there is no file."""
    if not path.exists():
        return None
    try:
        old = load(path).spec
    except PredictorError:
        return "it cannot be read"
    labels = {
        "sampler": "sampler",
        "of": "sampler",
        "nfe": "number of evaluations",
        "guidance": "guidance scale",
    }
    for name, label in labels.items():
        equal = getattr(old, name) == getattr(new, name)
        if name == "sampler" and not (old.learned and new.learned):
            # an older version did not state the requested sampler of a plain solver: "" matches every sampler
            samplers = {requested_sampler(old), requested_sampler(new)}
            equal = "" in samplers or len(samplers) == 1
        if not equal:
            return f"it is for another {label}"
    if not old.identity.same(new.identity) and (old.identity.known or new.identity.known):
        return "it is for another checkpoint"
    if old.usable != new.usable:
        return "this fit is not usable" if old.usable else None
    old_finished, new_finished = (bool(spec.metrics.get("finished", True)) for spec in (old, new))
    old_error, new_error = (spec.metric("error") for spec in (old, new))  # each on noise held out of its fit
    if old_finished and not new_finished:
        return "it is finished"
    if old_finished == new_finished and new_error > old_error:
        return f"its error is lower ({old_error:.4g}, not {new_error:.4g})"
    return None
