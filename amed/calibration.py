"""Fit a solver's constants to a model by forward evaluations only, jointly, on the image at the end.

    calibration = Calibration(model, draw, Settings(nfe=5, sigma_min=0.002, sigma_max=80))
    for progress in calibration.run():
        print(progress.evaluations, progress.text)
    calibration.result().fitted

No gradient is taken, so it runs on whatever a host can sample with. The plain solvers are searched over
their settings. On the schedules that do best, a multistep table's weights follow in closed form from the
reference trajectories (amed.closed), and the best schedule's times are refined with the weights following;
the paper's students start from greedy tables. From there a damped Gauss-Newton (Levenberg-Marquardt) fit
moves all constants at once. What it ends with is compared with the plain solvers on noise it never saw, and
the best of all is the result, be it a plain one.

Also tried, on the demo model, and left out: Broyden's updates of the Jacobian (their second step seldom
lowered the error), gradients through the trajectory (noises whose image jumps dominate them), plain least
squares instead of Cauchy's, an analytic residual in a feature space (no gain), joint fits from tables of
plain solvers (at 2,500 evaluations they often lost to where they began, at 12,000 they came to the same
place later)."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import closed, plain, schedules
from .bottleneck import Denoiser
from .conversion import as_multistep
from .evaluation import Counter, Statistics, cut, frechet, rmse
from .forms import RANGES, Form, MultistepForm, Runner, TableForm, bounded, ordered
from .greedy import greedy_table
from .sampling import MULTISTEP, SAMPLERS, TWO_POINT, Guide, Problem, Solver, sample, solver_of, trajectory
from .store import Fitted, Spec

PRESETS = {"quick": 2_500, "normal": 12_000, "thorough": 40_000}
DAMPINGS = (1e-5, 1e-3, 1e-2, 1e-1)
FINALISTS = 4  # plain settings that are compared on the held-out samples
SCHEDULES = 4  # schedules that are tried with weights in closed form
LAGS = 4  # slopes whose weights are fitted: more cost evaluations and brought nothing
REFINED = (1e-2, 1e-1, 1.0, 10.0)  # dampings for times whose weights follow in closed form
FORGET = 0.9  # what an iteration's matrix still counts for in the next
PATIENCE = 6  # iterations without a better held-out error before the fit stops
SAMPLES = 16  # in an iteration
CLOSED = 32  # samples of which the whole reference trajectory is kept, for weights in closed form
Draw = Callable[[torch.Generator, int], tuple[Tensor, dict[str, Any]]]
Rival = Callable[[Denoiser, Tensor, dict[str, Any]], Tensor]


def smallest(nfe: int) -> int:
    """The least budget that allows references, a search, weights in closed form and a comparison."""
    return 900 + 220 * nfe


def budget_of(budget: str | int, nfe: int) -> int:
    """A preset's evaluations, raised to the least for this nfe; a number as it is. Raises ValueError."""
    if budget in PRESETS:
        return max(PRESETS[budget], smallest(nfe))
    try:
        return int(budget)
    except ValueError:
        raise ValueError(f"budget is {budget!r}: give one of {', '.join(PRESETS)}, or a number") from None


def numbers(text: str) -> tuple[int, ...]:
    """ "5, 7 9" as (5, 7, 9). Raises ValueError."""
    parts = [p for p in re.split(r"[,\s]+", text.strip()) if p]
    if not parts or not all(p.isdigit() and 2 <= int(p) <= 100 for p in parts):
        raise ValueError(
            f"nfe is {text!r}: give one or several numbers of evaluations from 2 to 100, as 5, 7, 9"
        )
    return tuple(dict.fromkeys(int(p) for p in parts))


@dataclass(frozen=True)
class Settings:
    """What is fitted, and how long.

    nfe: evaluations from sigma_max to sigma_min, from 2 on. sampler: one of amed.SAMPLERS. budget:
    evaluations of the model, each counted once for each sample, everything included: references, search, fit
    and comparison. guidance: for the file; `draw` and the model decide what it means. afs: whether the
    analytic first step may be used (not for flow models). scale_guidance: fit a factor on the guidance scale
    of each evaluation too, if a `guide` is given (off: at guidance 4 on the demo model it made the held-out
    error no better). kinds: schedules searched, as in amed.plain. batch: most samples in one call of the
    model. The rest describes the model, as in amed.store.Spec. Raises ValueError for what cannot be."""

    nfe: int
    sigma_min: float
    sigma_max: float
    sampler: str = "amed_multistep"
    budget: int = PRESETS["normal"]
    guidance: float = 1.0
    afs: bool = True
    scale_guidance: bool = False
    seed: int = 0
    batch: int = 16
    kinds: tuple[tuple[str, float], ...] = plain.SCHEDULES
    prediction_type: str = "eps"
    model_family: str = ""
    model_fingerprint: str = ""
    model_name: str = ""

    def __post_init__(self) -> None:
        if self.nfe < 2:
            raise ValueError(f"nfe is {self.nfe}: a calibration needs at least 2 evaluations a sample")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}: choose one of {', '.join(SAMPLERS)}")
        if self.budget < smallest(self.nfe):
            raise ValueError(
                f"budget is {self.budget}: {self.nfe} evaluations need at least {smallest(self.nfe)}"
            )

    @property
    def held_out(self) -> int:
        """Samples that choose what is kept, and are compared on."""
        return max(16, min(64, self.budget // 400))

    @property
    def reference(self) -> int:
        """Evaluations of a reference trajectory."""
        return 32 if self.budget >= 8_000 else 24


@dataclass(frozen=True)
class Progress:
    """`stage`: reference, search, fit or compare; `text` for people; `evaluations` so far of `budget`;
    `held_out`: error of the best held-out state so far (nan before there is one)."""

    stage: str
    text: str
    evaluations: int
    budget: int
    held_out: float = math.nan


@dataclass(frozen=True)
class Row:
    """A solver's error to the reference, and Fréchet distance where features are at hand, on held-out
    noise."""

    solver: str
    schedule: str
    nfe: int
    guidance: float
    error: float
    rmse_ref: float
    fd_ref: float | None

    def as_dict(self) -> dict[str, Any]:
        told = {"solver": self.solver, "schedule": self.schedule, "nfe": self.nfe, "guidance": self.guidance}
        told |= {"error": round(self.error, 5), "rmse_ref": round(self.rmse_ref, 5)}
        return told | ({} if self.fd_ref is None else {"fd_ref": round(self.fd_ref, 5)})


@dataclass(frozen=True)
class Result:
    """`fitted`: what to use, never worse than `best_plain` on held-out noise; `improved`: whether it is a
    fit and not a plain setting. `rows`: it, the best plain setting, the solvers as usually set. `history`:
    (evaluations, held-out error) of each start and iteration. `images`: end states of the held-out samples
    by row name, and "reference"."""

    fitted: Fitted
    improved: bool
    best_plain: plain.Setting
    rows: list[Row]
    history: list[tuple[int, float]]
    images: dict[str, Tensor]
    evaluations: int

    @property
    def text(self) -> str:
        first, best = self.rows[0], self.rows[1]
        said = (
            f"error {first.error:.3f}, {first.error / max(best.error, 1e-12):.2f} of the best plain solver's"
            if self.improved
            else "the fit did not beat the best plain solver, which is kept"
        )
        return f"{first.nfe} evaluations: {said} ({best.solver} on {best.schedule}: {best.error:.3f})"


    def table(self, name: str) -> str:
        """What came of it and what it was held against, for people; `name`: the file it was saved as."""
        lines = [f"{name}: {self.text}", f"fitted with {self.evaluations} evaluations"]
        return "\n".join(lines + [f"  {row.solver}, {row.schedule}: {row.error:.4f}" for row in self.rows])


class References:
    """Samples and their converged end states, made when first asked for; several calibrations of the same
    model, guidance and seed may share one. Sample i is the same whatever else was asked for."""

    def __init__(self, model: Denoiser, draw: Draw, settings: Settings):
        self.model, self.draw = Counter(model), draw
        self.seed, self.block = settings.seed, min(settings.batch, 8)
        self.setting = plain.Setting(
            Solver("ipndm", 3),
            "polynomial",
            7.0,
            settings.reference + 1,
            False,
            settings.sigma_min,
            settings.sigma_max,
        )
        self.held_out = settings.held_out
        first = settings.held_out // self.block
        self.kept = range(first, first + -(-CLOSED // self.block) + 1)
        self.paths: dict[int, list[Tensor]] = {}  # the states of these blocks
        self.noise: list[Tensor] = []
        self.args: list[dict[str, Any]] = []
        self.ends: list[Tensor] = []

    def make(self, count: int) -> Iterator[int]:
        """See to it that there are `count` samples; yields after each block."""
        while len(self.ends) * self.block < count:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + len(self.ends))
            noise, args = self.draw(generator, self.block)
            sigmas = self.setting.sigmas()
            x = noise * sigmas[0].to(noise)
            with torch.no_grad():
                run = trajectory(Problem(self.model, self.setting.solver, extra_args=args), x, sigmas)
                states = [x, *(state.x for state in run)]
            if len(self.ends) in self.kept:
                self.paths[len(self.ends)] = [state.cpu() for state in states]
            self.noise.append(noise)
            self.args.append(args)
            self.ends.append(states[-1].to(noise))
            yield len(self.ends) * self.block

    def path(self, first: int, count: int) -> closed.Path:
        """The whole trajectories of samples that were made, `CLOSED` from the first not held out on."""
        blocks = range(first // self.block, -(-(first + count) // self.block))
        part = slice(first - blocks[0] * self.block, None)
        states = zip(*(self.paths[block] for block in blocks))
        return closed.Path(self.setting.sigmas(), tuple(torch.cat(s)[part][:count] for s in states))

    def take(self, first: int, count: int) -> "Samples":
        """Samples that were made."""
        part = slice(first, first + count)
        return Samples(torch.cat(self.noise)[part], cut(joined(self.args), part), torch.cat(self.ends)[part])


def joined(args: list[Any]) -> Any:
    """Rows of all dicts of tensors, nested or not; what is no tensor is taken from the first."""
    first = args[0]
    if isinstance(first, dict):
        return {key: joined([a[key] for a in args]) for key in first}
    return torch.cat(args) if isinstance(first, Tensor) else first


@dataclass(frozen=True)
class Samples:
    """Unit noise `[n, ...]`, the model's further arguments, the converged end states."""

    noise: Tensor
    args: dict[str, Any]
    end: Tensor

    def __len__(self) -> int:
        return len(self.noise)

    def batches(self, size: int) -> Iterator["Samples"]:
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Samples(self.noise[part], cut(self.args, part), self.end[part])


def per_sample(end: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of each sample, float64 `[n]`."""
    return (end.double() - target.double()).square().flatten(1).mean(dim=1).cpu()


def robust(errors: Tensor, scale: float) -> float:
    """Cauchy's loss of mean squared errors `[n]`, as an error: sqrt(scale (exp(mean log(1 + e / scale)) -
    1)). A few samples whose end state jumps to another image do not decide; where none does, it is near their
    RMSE."""
    return math.sqrt(scale * math.expm1(float(torch.log1p(errors / scale).mean())))


@dataclass
class Fit:
    """One Levenberg-Marquardt fit under way: its form, current values, the matrix J^T W J of all iterations
    (older ones count less), and the best held-out state."""

    name: str
    form: Form
    values: Tensor
    matrix: Tensor | None = None
    iterations: int = 0
    recent: list[Tensor] = field(default_factory=list)
    best: Tensor | None = None
    held_out: float = math.inf
    waited: int = 0

    def step(self, vector: Tensor, damping: float) -> Tensor:
        """Where J^T W r = `vector` leads, damped along each constant's own scale."""
        scales = self.matrix.diagonal()
        damped = self.matrix + torch.diag(damping * scales + 1e-9 * scales.max() + 1e-30)
        return bounded(self.form, self.values, self.values - torch.linalg.solve(damped, vector))


class Calibration:
    """One fit of one solver at one number of evaluations.

    model(x, sigma, **args) -> denoised, guidance applied. draw(generator, count) -> (unit noise `[count,
    ...]`, args). references: shared with other calibrations. guide: lets the fit scale guidance, see
    amed.sampling.Guide. features(images) `[n, ...]` -> `[n, F]`: adds Fréchet distances. rivals: solvers as a
    host ships them, by name: (model, unit noise, args) -> end states, at the same evaluations. start: a table
    fitted before, to go on from (with another seed: on other noise).

    `run()` is a generator and may be closed, or interrupted by an exception of the model, at any point:
    `result()` then still gives the best so far, once the search is through. The same settings and model give
    the same result."""

    def __init__(
        self,
        model: Denoiser,
        draw: Draw,
        settings: Settings,
        *,
        references: References | None = None,
        guide: Guide | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        rivals: dict[str, Rival] | None = None,
        start: Fitted | None = None,
    ):
        if start is not None and (
            start.nfe != settings.nfe or start.spec.solver != solver_of(settings.sampler).name
        ):
            raise ValueError(
                f"{start.label} cannot be gone on from: it is not for {settings.sampler} at {settings.nfe}"
            )
        if references is not None and references.held_out != settings.held_out:
            raise ValueError(
                f"these references are for a budget with {references.held_out} held-out samples, not "
                f"{settings.held_out}"
            )
        self.settings, self.features, self.start = settings, features, start
        self.model = Counter(model)
        self.references = references or References(model, draw, settings)
        self.guide = guide
        self._guided = settings.scale_guidance and guide is not None and settings.guidance != 1
        self.rivals = usual(settings) if rivals is None else rivals
        self.ranking: list[tuple[float, plain.Setting]] = []
        self.fits: list[Fit] = []
        self.winner: Fit | None = None
        self.history: list[tuple[int, float]] = []
        self.scale = 1.0
        self._ends: dict[str, Tensor] = {}
        self._made = 0  # evaluations spent on references

    # --- counting -----------------------------------------------------------------------------------------

    @property
    def evaluations(self) -> int:
        """Of the model so far, a batch of n counting n; shared references count for who made them."""
        return self.model.rows + self._made

    def _progress(self, stage: str, text: str) -> Progress:
        best = self.winner.held_out if self.winner else math.nan
        return Progress(stage, text, min(self.evaluations, self.settings.budget), self.settings.budget, best)

    # --- stages -------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Progress]:
        """Everything, in order. Raises NotFiniteError if the model returns NaN, naming the sigma."""
        settings = self.settings
        yield from self._reference(settings.held_out)
        self.held_out = self.references.take(0, settings.held_out)
        yield from self._search()
        yield from self._compare_rivals()
        yield from self._fit()

    def _search(self) -> Iterator[Progress]:
        """Successive halving over all plain settings: the 80 on a sample or two, the best 20 on two or four
        more, the best FINALISTS on the held-out samples, which tell the best of all."""
        settings = self.settings
        found = plain.candidates(
            settings.nfe, settings.sigma_min, settings.sigma_max, plain.SOLVERS, settings.kinds
        )
        found = [s for s in found if settings.afs or not s.afs]
        found.sort(key=likely)  # what is cut for a small budget is what seldom wins
        unit = 2 if 240 * settings.nfe < 0.12 * settings.budget else 1
        share = 0.3 if settings.budget >= 8_000 else 0.15
        found = found[: max(12, int((share * settings.budget / settings.nfe - 40 * unit) / unit))]
        errors: dict[plain.Setting, list[Tensor]] = {s: [] for s in found}
        first = settings.held_out
        for rung, (keep, count) in enumerate(((len(found), unit), (20, 2 * unit))):
            found = found[:keep]
            yield from self._reference(first + count)
            samples = self.references.take(first, count)
            first += count
            for i, setting in enumerate(found):
                errors[setting].append(per_sample(self._plain(setting, samples), samples.end))
                yield self._progress("search", f"plain solvers, round {rung + 1}: {i + 1} of {len(found)}")
            told = {s: torch.cat(errors[s]) for s in found}
            self.scale = 0.5 * float(min(e.median() for e in told.values())) + 1e-12
            found.sort(key=lambda s: self._loss(errors[s]))
        self._next = settings.held_out
        for i, setting in enumerate(found[:FINALISTS]):
            end = self._on_held_out(lambda part, s=setting: self._plain(s, part))
            self._ends[key(setting)] = end
            errors[setting].append(per_sample(end, self.held_out.end))
            yield self._progress("search", f"plain solvers, last round: {i + 1} of {FINALISTS}")
        finalists = found[:FINALISTS]
        self.scale = 0.5 * float(min(torch.cat(errors[s]).median() for s in finalists)) + 1e-12
        finalists.sort(key=lambda s: self._loss(errors[s]))
        rest = sorted((s for s in errors if s not in finalists), key=lambda s: self._loss(errors[s]))
        self.ranking = [(self._loss(errors[s]), s) for s in finalists + rest]
        best = min(finalists, key=lambda s: self._score(self._ends[key(s)]))
        self.best_plain = best
        yield self._progress("search", f"best plain setting: {best.name} on {best.schedule}")

    def _compare_rivals(self) -> Iterator[Progress]:
        """The solvers as a host sets them, on the held-out samples."""
        for name, rival in self.rivals.items():
            self._ends[name] = self._on_held_out(lambda part, r=rival: r(self.model, part.noise, part.args))
            yield self._progress("compare", f"{name} as usually set: {self._error(self._ends[name]):.4f}")

    def _fit(self) -> Iterator[Progress]:
        """The starts compared on the held-out samples, and the best one fitted for what is left of the
        budget."""
        settings = self.settings
        if settings.sampler == "amed_multistep" and self.start is None:
            self._from_plain()
            yield from self._closed()
        for name, form in self._starts():
            yield self._open(name, form)
        if len(self.fits) > 1 and settings.sampler != "amed_multistep":
            for fit in self.fits:
                yield from self._iterate(fit, SAMPLES // 2, settings.held_out)
        while self.winner and self.winner.waited < PATIENCE and (count := self._affordable(self.winner)):
            yield from self._iterate(self.winner, count, self._next)
            self._next += count
        for count in (2, 3, 5):  # a mean of the last states is often better than any of them
            fit = self.winner
            if fit and len(fit.recent) >= count and self._left() >= settings.held_out * settings.nfe:
                mean = torch.stack(fit.recent[-count:]).mean(dim=0)
                self._judge(fit, bounded(fit.form, mean, mean))
        yield self._progress("fit", "done")

    def _open(self, name: str, form: Form) -> Progress:
        """A new fit at its start."""
        self.fits.append(Fit(name, form, form.vector()))
        self._judge(self.fits[-1], self.fits[-1].values)
        self.history.append((self.evaluations, self._last))
        return self._progress("fit", f"start: {name}: held-out error {self._last:.4f}")

    def _from_plain(self) -> None:
        """A start at the best plain setting that is a table; what it is worth is known."""
        for _, setting in self.ranking:
            if setting.solver.name != "heun" and key(setting) in self._ends:
                table = as_multistep(setting.solver, setting.sigmas(), setting.afs)
                form = MultistepForm(table, setting.afs, LAGS, self._guided)
                fit = Fit(f"{setting.name} on {setting.schedule}", form, form.vector(), best=form.vector())
                self._ends["fit"] = self._ends[key(setting)]
                fit.held_out = self._score(self._ends["fit"])
                self.fits.append(fit)
                self.winner = fit
                return

    def _closed(self) -> Iterator[Progress]:
        """Weights in closed form on the schedules that did best; the times of the best one refined, the
        weights following them."""
        settings = self.settings
        count = CLOSED if settings.budget >= 8_000 else SAMPLES
        yield from self._reference(settings.held_out + count)
        samples = self.references.take(settings.held_out, count)
        path = self.references.path(settings.held_out, count)
        parts = [(part.noise, part.args) for part in samples.batches(settings.batch)]
        tried = []
        for setting in self._schedules():
            sigmas, afs = setting.sigmas(), setting.afs
            run = closed.run(self.model, sigmas, afs, parts, path, LAGS)
            loss = robust(per_sample(run.end, samples.end), self.scale)
            tried.append((loss, f"closed form on {setting.schedule}", run, afs))
            yield self._progress("fit", f"closed form on {setting.schedule}: {loss:.4f}")
        best = min(tried, key=lambda t: t[0])
        _, name, run, afs = best
        yield self._open(name, MultistepForm(run.table, afs, LAGS, self._guided))
        moves = len(run.sigmas) - 2
        runs = moves * (moves + 1) // 2 + len(REFINED) * (moves + 1 - afs)
        if self.winner is self.fits[-1] and count * runs + settings.held_out * settings.nfe <= self._left():
            yield from self._refine(best, samples, parts, path)

    def _refine(self, tried: tuple, samples: Samples, parts: list, path: closed.Path) -> Iterator[Progress]:
        """One Gauss-Newton iteration on the times, whose weights follow in closed form, of the schedule tried
        with the least loss."""
        loss, name, run, afs = tried
        weight = (1 / (1 + per_sample(run.end, samples.end) / self.scale)).sqrt().to(run.end)[:, None]
        residual = ((run.end - samples.end.to(run.end)).flatten(1) * weight).flatten()
        logs, rows = run.sigmas.log(), []
        step = min(1.5 * RANGES["t"][0], 0.5 * float(-logs.diff().max()))
        for n in range(1, len(logs) - 1):
            sigmas = run.sigmas.clone()
            sigmas[n] *= math.exp(step)
            moved = closed.run(self.model, sigmas, afs, parts, path, LAGS, run, n - 1)
            rows.append(((moved.end - run.end).flatten(1) * weight / step).flatten())
            yield self._progress("fit", f"{name}: time {n} of {len(logs) - 2}")
        jacobian = torch.stack(rows)
        matrix, vector = ((jacobian @ v).double().cpu() for v in (jacobian.T, residual))
        best = loss, run
        for damping in REFINED:
            move = torch.linalg.solve(matrix + torch.diag(damping * matrix.diagonal() + 1e-30), vector)
            sigmas = run.sigmas.clone()
            sigmas[1:-1] = ordered(logs, logs[1:-1] - move.clamp(-RANGES["t"][3], RANGES["t"][3])).exp()
            refined = closed.run(self.model, sigmas, afs, parts, path, LAGS)
            loss = robust(per_sample(refined.end, samples.end), self.scale)
            best = min(best, (loss, refined), key=lambda b: b[0])
            yield self._progress("fit", f"{name}, times refined, damping {damping:g}: {loss:.4f}")
        if best[1] is not run:
            yield self._open(f"{name}, times refined", MultistepForm(best[1].table, afs, LAGS, self._guided))

    def _schedules(self) -> list[plain.Setting]:
        """Of the solvers with one evaluation a step, the settings with the best schedules, each schedule
        once; the best one with and without AFS."""
        found: dict[str, plain.Setting] = {}
        single = [s for _, s in self.ranking if s.solver.name not in TWO_POINT]
        for setting in single:
            found.setdefault(setting.schedule, setting)
        best = single[0]
        twin = [s for s in single if (s.kind, s.rho) == (best.kind, best.rho) and s.afs != best.afs]
        chosen = [
            best,
            *twin[:1],
            *(s for s in found.values() if s.schedule != best.schedule and s not in twin),
        ]
        return list({s.schedule: s for s in chosen}.values())[:SCHEDULES]

    def _starts(self) -> Iterator[tuple[str, Form]]:
        """The forms to fit, each at its start: the best plain settings of different solvers as tables, or for
        the paper's students greedy tables on the schedules that did best."""
        settings, told = self.settings, set()
        if self.start is not None:
            found = self.start
            if found.spec.solver == MULTISTEP:
                yield found.name, MultistepForm(found.predictor, found.spec.afs, LAGS, self._guided)
            else:
                yield found.name, TableForm(found.spec.settings, found.base, found.predictor, found.spec.afs)
            return
        if settings.sampler == "amed_multistep":
            return
        starts = 1 if settings.budget < 8_000 else 2
        solver = solver_of(settings.sampler)
        afs = bool(settings.nfe % 2)
        if afs and not settings.afs:
            raise ValueError(
                f"{settings.sampler} takes an odd number of evaluations only with the analytic first step, "
                f"which this model does not allow: set nfe to {settings.nfe + 1}, or the sampler to "
                "amed_multistep"
            )
        num_steps = (settings.nfe + afs) // 2 + 1
        for _, setting in self.ranking:
            if (setting.kind, setting.rho) in told or len(told) == starts:
                continue
            told.add((setting.kind, setting.rho))
            base = schedules.make(
                setting.kind, num_steps, settings.sigma_min, settings.sigma_max, setting.rho
            )
            samples = self.references.take(settings.held_out, 4)
            table = greedy_table(self.model, solver, base, samples.noise, samples.args, afs)
            yield f"greedy table on {setting.kind} {setting.rho:g}", TableForm(solver, base, table, afs)

    def _iterate(self, fit: Fit, count: int, first: int) -> Iterator[Progress]:
        """One Levenberg-Marquardt iteration on `count` samples from the `first` on: derivatives, and the best
        of the dampings.

        The normal equations are streamed: memory holds P + 1 end states of one batch. The finite differences
        of the first iteration are twice as wide."""
        yield from self._reference(first + count)
        runner, wide = Runner(self.model, fit.form, self.guide), 1 if fit.iterations else 2
        parts = list(self.references.take(first, count).batches(self.settings.batch))
        size = len(fit.values)
        matrix, vector = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        for part in parts:
            states = runner.states(fit.values, part.noise, part.args)
            end = states[-1].x
            weight = (1 / (1 + per_sample(end, part.end) / self.scale)).sqrt().to(end)[:, None]  # Cauchy's
            rows = []
            for i, c in enumerate(fit.form.constants):
                moved = fit.values.clone()
                moved[i] += wide * c.step
                change = runner.again(moved, part.noise, part.args, states, c) - end
                rows.append((change.flatten(1) * weight / (wide * c.step)).flatten())
                if i % 4 == 0:
                    yield self._progress("fit", f"{fit.name}: derivative {i + 1} of {size}")
            jacobian = torch.stack(rows)
            residual = ((end - part.end.to(end)).flatten(1) * weight).flatten()
            matrix += (jacobian @ jacobian.T).double().cpu()
            vector += (jacobian @ residual).double().cpu()
        fit.matrix = matrix if fit.matrix is None else FORGET * fit.matrix + matrix
        tried = []
        for damping in DAMPINGS:
            values = fit.step(vector, damping)
            told = [per_sample(runner.end(values, p.noise, p.args), p.end) for p in parts]
            tried.append((robust(torch.cat(told), self.scale), values))
            yield self._progress("fit", f"{fit.name}: damping {damping:g}")
        fit.values = min(tried, key=lambda t: t[0])[1]
        fit.recent.append(fit.values)
        fit.iterations += 1
        self._judge(fit, fit.values)
        self.history.append((self.evaluations, self._last))
        yield self._progress(
            "fit", f"{fit.name}: held-out error {self._last:.4f}, best {self.winner.held_out:.4f}"
        )

    # --- pieces -------------------------------------------------------------------------------------------

    def _reference(self, count: int) -> Iterator[Progress]:
        before = self.references.model.rows
        for made in self.references.make(count):
            self._made += self.references.model.rows - before
            before = self.references.model.rows
            yield self._progress("reference", f"{made} references")

    def _loss(self, errors: list[Tensor]) -> float:
        return robust(torch.cat(errors), self.scale)

    def _plain(self, setting: plain.Setting, samples: Samples) -> Tensor:
        sigmas = setting.sigmas()
        x = samples.noise * sigmas[0].to(samples.noise)
        return sample(self.model, x, sigmas, setting.solver, samples.args, disable=True, afs=setting.afs)

    def _on_held_out(self, run: Callable[[Samples], Tensor]) -> Tensor:
        return torch.cat([run(part) for part in self.held_out.batches(self.settings.batch)])

    def _error(self, end: Tensor) -> float:
        return rmse(end, self.held_out.end)

    def _distance(self, end: Tensor) -> float | None:
        if self.features is None:
            return None
        told, target = (Statistics.of(self.features(v)) for v in (end, self.held_out.end))
        return max(frechet(told, target), 0.0)

    def _score(self, end: Tensor) -> float:
        """What is kept by: the robust error, times the root of the Fréchet distance where there is one."""
        distance, error = self._distance(end), robust(per_sample(end, self.held_out.end), self.scale)
        return error * (1.0 if distance is None else distance**0.5)

    def _judge(self, fit: Fit, values: Tensor) -> None:
        runner = Runner(self.model, fit.form, self.guide)
        end = self._on_held_out(lambda part: runner.end(values, part.noise, part.args))
        self._last = self._score(end)
        fit.waited += 1
        if self._last < fit.held_out:
            fit.best, fit.held_out, fit.waited = values.clone(), self._last, 0
        if self.winner is None or fit.held_out < self.winner.held_out:
            self.winner = fit
        if self.winner is fit and fit.waited == 0:
            self._ends["fit"] = end

    def _left(self) -> int:
        return self.settings.budget - self.evaluations

    def _affordable(self, fit: Fit) -> int:
        """How many samples the next iteration can have, the comparison after it included."""
        run, derivatives = Runner(self.model, fit.form).evaluations()
        block, made = self.references.block, len(self.references.ends)

        def cost(count: int) -> int:
            blocks = max(0, -(-(self._next + count) // block) - made)
            each = derivatives + len(DAMPINGS) * run
            return count * each + blocks * block * self.settings.reference + self.settings.held_out * run

        return next((count for count in range(SAMPLES, 2, -1) if cost(count) <= self._left()), 0)

    @property
    def ready(self) -> bool:
        """Whether there is a result already."""
        return hasattr(self, "best_plain")

    # --- what came out ------------------------------------------------------------------------------------

    def result(self) -> Result:
        """The best so far. Raises RuntimeError before the search is through."""
        if not self.ready:
            raise RuntimeError("nothing to give yet: the search of plain solvers is not finished")
        settings, plain_end = self.settings, self._ends[key(self.best_plain)]
        improved = (
            self.winner is not None
            and self.winner.best is not None
            and self._score(self._ends["fit"]) < self._score(plain_end)
        )
        if improved:
            form = self.winner.form
            sigmas, table = form.build(self.winner.best)
            at_start = torch.equal(self.winner.best, form.vector())
            how = f"calibrated{':' if at_start else ' jointly on the end state, from'} {self.winner.name}"
            solver, afs, end, name = form.solver, form.afs, self._ends["fit"], settings.sampler
        else:
            kept = self.best_plain
            how = f"{kept.name} on {kept.schedule}: the fit did not beat it"
            sigmas, table = kept.sigmas(), as_multistep(kept.solver, kept.sigmas(), kept.afs)
            sigmas, solver, afs, end, name = (
                table.sigmas,
                Solver(MULTISTEP),
                kept.afs,
                plain_end,
                "amed_multistep",
            )
        rows = [self._row(name, "its own", end)]
        rows.append(self._row(self.best_plain.name, self.best_plain.schedule, plain_end))
        rows += [self._row(n, "as usually set", self._ends[n]) for n in self.rivals if n in self._ends]
        metrics = rows[0].as_dict() | {
            "plain": rows[1].solver,
            "plain_schedule": rows[1].schedule,
            "plain_error": round(rows[1].error, 5),
            "plain_rmse_ref": round(rows[1].rmse_ref, 5),
            "noises": settings.held_out,
            "evaluations": self.evaluations,
        }
        if rows[1].fd_ref is not None:
            metrics["plain_fd_ref"] = round(rows[1].fd_ref, 5)
        spec = Spec.on(
            solver,
            sigmas,
            afs=afs,
            prediction_type=settings.prediction_type,
            guidance=settings.guidance,
            model_family=settings.model_family,
            model_fingerprint=settings.model_fingerprint,
            model_name=settings.model_name,
            how=f"{how}; {self.evaluations} evaluations, seed {settings.seed}",
            metrics={k: v for k, v in metrics.items() if k not in ("solver", "schedule")},
        )
        images = {"fit": end, "plain": plain_end, "reference": self.held_out.end}
        images |= {n: self._ends[n] for n in self.rivals if n in self._ends}
        return Result(
            Fitted(spec, table, sigmas),
            improved,
            self.best_plain,
            rows,
            list(self.history),
            images,
            self.evaluations,
        )

    def _row(self, name: str, schedule: str, end: Tensor) -> Row:
        settings = self.settings
        typical = robust(per_sample(end, self.held_out.end), self.scale)
        return Row(
            name, schedule, settings.nfe, settings.guidance, typical, self._error(end), self._distance(end)
        )


def key(setting: plain.Setting) -> str:
    return f"{setting.name} {setting.schedule}"


LIKELY = ("iPNDM-2", "iPNDM-3", "DPM++ 3M", "DPM++ 2M", "iPNDM-4", "Euler", "DPM-Solver-2", "Heun")


def likely(setting: plain.Setting) -> tuple:
    """Plain solvers in the order in which they are worth trying at few evaluations."""
    return LIKELY.index(setting.name), not setting.afs


def usual(settings: Settings) -> dict[str, Rival]:
    """DPM++ 2M and iPNDM as hosts set them: on the karras schedule, `nfe` noise levels, then 0."""
    sigmas = schedules.make("polynomial", settings.nfe, settings.sigma_min, settings.sigma_max)
    sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])

    def rival(solver: Solver) -> Rival:
        def run(model: Denoiser, noise: Tensor, args: dict[str, Any]) -> Tensor:
            return sample(model, noise * sigmas[0].to(noise), sigmas, solver, args, disable=True)

        return run

    return {
        "DPM++ 2M, karras": rival(Solver("dpmpp", 2, predict_x0=True, lower_order_final=False)),
        "iPNDM-4, karras": rival(Solver("ipndm", 4)),
    }
