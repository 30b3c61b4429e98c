"""Keeping a fit: what is finished is never replaced by what is worse or unfinished."""

from dataclasses import replace
from itertools import count
from pathlib import Path

from .code import code_of
from .errors import PredictorError, UnsavedError
from .fitted import Fitted
from .lock import alone
from .spec import Spec
from .store import load, save


def keep(path: Path, fitted: Fitted, finished: bool = True) -> tuple[Path, str]:
    """Save a fit as `path`, or under a numbered name (NAME-2 ...) where that holds something that must not be
    lost. Returns where it was saved, and a sentence that says so.

    A file is replaced by a fit for the same sampler, evaluations, guidance scale and checkpoint that is
    finished and not worse by the error that both state; an unfinished one, and one that is not usable, also
    by any that is. Of several at once, in other threads or processes too, each sees what the one before
    saved.

    Raises UnsavedError where it cannot be written: what was there stays, and the message has the predictor as
    a text (files.code)."""
    spec = replace(fitted.spec, metrics={**fitted.spec.metrics, "finished": finished})
    fitted, remarks = replace(fitted, spec=spec), []
    try:
        with alone(path.parent):
            for number in count(1):
                place = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
                reason = stays(place, spec)
                if reason is None:
                    break
                remarks.append(f"{place.name} stays, {reason}")
            saved = save(place, fitted)
    except UnsavedError as error:
        raise UnsavedError(f"{error}. It is not lost, this is its code: {code_of(fitted)}") from error
    state = "" if finished else " (unfinished)"
    return saved, "; ".join([*remarks, f"saved as {saved.name}{state} in {saved.parent}"])


def sampler_asked(spec: Spec) -> str:
    """The sampler a fit was asked for; "" where its file does not say."""
    return spec.sampler if spec.learned else spec.fitted_for


def stays(path: Path, new: Spec) -> str | None:
    """Why a file must not be replaced by a fit; None if it may be, or is not there."""
    if not path.exists():
        return None
    try:
        old = load(path).spec
    except PredictorError:
        return "it cannot be read"
    of = {"sampler": "sampler", "of": "sampler", "nfe": "number of evaluations", "guidance": "guidance scale"}
    for name, text in of.items():
        alike = getattr(old, name) == getattr(new, name)
        if name == "sampler" and not (old.learned and new.learned):
            # an older version did not say for which sampler a plain solver was kept: it stands for any
            alike = "" in (sampler_asked(old), sampler_asked(new)) or sampler_asked(old) == sampler_asked(new)
        if not alike:
            return f"it is for another {text}"
    if not old.identity.same(new.identity) and (old.identity.known or new.identity.known):
        return "it is for another checkpoint"
    if old.usable != new.usable:
        return "this fit is not usable" if old.usable else None
    was, now = (bool(spec.metrics.get("finished", True)) for spec in (old, new))
    before, after = (spec.stated("error") for spec in (old, new))  # on the noise that their fits held out
    if was and not now:
        return "it is finished"
    if was == now and after > before:
        return f"its error is less ({before:.4g}, not {after:.4g})"
    return None
