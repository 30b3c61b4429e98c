"""What a run asks of `choose`, what it gets, and what it reports."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from .files import Fitted
from .fingerprint import Identity

AUTO, PLAIN, UNTRAINED = "auto", "plain", "untrained"


def no_schedule(count: int) -> Tensor:
    """Raise an error. A host that runs without a predictor must set `Request.schedule` instead.

    Raises:
        ValueError: Always."""
    raise ValueError("no schedule was given for a run without a predictor: set Request.schedule")


@dataclass(frozen=True)
class Request:
    """The properties of a run that decide which predictor it gets: checkpoint, sampler, guidance etc."""

    model: Identity  # the checkpoint
    sampler: str = AUTO  # a name of kdiffusion.ENTRIES, or "auto": the best by the errors that files state
    guidance: float = 1.0  # guidance scale (cfg)
    nfe: int | None = None  # number of evaluations; None: any, or given by `times`
    # the run's positive noise levels `[n]`, or only how many they are; None: those of the predictor
    times: Tensor | int | None = None
    # use this predictor (named, linked, attached or carried); None: search the library
    fitted: Fitted | None = None
    # the run covers only the lower part of a schedule of this many levels (img2img, hires fix), so that a
    # predictor of this very checkpoint with a similar number of levels is acceptable
    below: bool = False
    # whether the halves of guidance can be evaluated apart; if not, predictors that need them are left out
    halves: bool = True
    of: str = ""  # the host's own sampler that is wrapped; "": a sampler of kdiffusion.ENTRIES runs
    # without a predictor: "error"; "plain": run the best plain solver known; "untrained": run the sampler's
    # own solver without constants. The last two use `schedule`
    if_missing: str = "error"
    schedule: Callable[[int], Tensor] = no_schedule  # count -> the host's noise levels, `[count]`, falling
    afs: bool = True  # whether the first step may be analytic
    # take only a predictor fitted on exactly `times` from the library, and never interpolate one
    exact: bool = False
    # the host's next step for the user: in errors, and with `exact` also when a plain solver runs
    advice: str = ""

    @property
    def count(self) -> int:
        """The number of the run's noise levels; 0 if the request leaves them to the predictor."""
        return len(self.times) if isinstance(self.times, Tensor) else self.times or 0


@dataclass(frozen=True)
class Choice:
    """The predictor chosen for a run, with the run's noise levels and remarks for the user."""

    fitted: Fitted  # the predictor; for a plain or untrained solver one without a file
    sigmas: Tensor  # the run's noise levels, float64 `[n]`, falling, without a last 0
    remarks: tuple[str, ...] = ()  # what the user should know, one sentence each
    # relation of `sigmas` to the predictor's own levels: "own" (equal), "below" (a lower part) or "other"
    grid: str = "own"

    @property
    def sampler(self) -> str:
        """The sampler that runs the predictor, e.g. "amed_multistep"; "outside" for a sampler of the host."""
        return self.fitted.spec.sampler


@dataclass
class Report:
    """What a run did, for the user."""

    evaluations: int = 0  # evaluations of the model, one after the other, as counted
    rows: int | None = None  # batch rows that went through the network; None: not countable in this host
    batch: int = 1  # number of images
    fitted: Fitted | None = None  # the predictor; None: none ran
    remarks: list[str] = field(default_factory=list)  # what the user should know, one sentence each

    @property
    def passes(self) -> int | None:
        """Network passes per image.

        With guidance an evaluation takes two, or one if it skips the negative prompt."""
        return None if self.rows is None else round(self.rows / self.batch)

    def text(self) -> str:
        """Return what a sampling run did, as lines of text: predictor, evaluations and remarks."""
        passes = "" if self.passes is None else f", {self.passes} network passes per image"
        lines = [
            f"predictor: {self.fitted.label}" if self.fitted else "predictor: none",
            f"evaluations counted: {self.evaluations}{passes}",
        ]
        return "\n".join(lines + [f"note: {remark}" for remark in self.remarks])
