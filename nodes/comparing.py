"""What Compare AMED runs: its lines of samplers, what each is at so many evaluations, what is measured."""

import difflib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from ..amed import SAMPLERS, PredictorError
from ..amed.choose import AUTO, Choice, choose, usable
from ..amed.fit.measures import rmse
from ..amed.fit.plain_solvers import Setting
from .choosing import plain_choice, reference_setting, request
from .counting import COUNT, bare, counting, read_count
from .folders import library
from .model import Interrupted, attached, is_flow, own_space, preview_pixels, sampling_of
from .nested import first_part, like, packed, parts_of
from .recall import remember
from .register import as_sampler, host_sampler, host_samplers, our_sampler
from .running import run
from .sampling import SCHEDULER, plain_function

AMED, PLAIN, REFERENCE = "amed", "plain", "reference"
OURS = {AMED: AUTO, "amed_solver": "amed"} | {name: name for name in SAMPLERS if name != AMED}
NEAREST = 4  # names offered for one that there is not
LONG = 240  # letters of a reason


@dataclass(frozen=True)
class Entry:
    """A line of `samplers`: a name, and the host's scheduler for one of the host's own."""

    sampler: str
    scheduler: str = ""


@dataclass(frozen=True)
class Plan:
    """What a row runs: SAMPLER and SIGMAS, and what is said of them."""

    sampler: Any
    sigmas: Tensor
    setting: str
    note: str = ""


@dataclass
class Measured:
    """A row. asked: evaluations. pixels: of its images `[n, 3, H, W]`, uint8; None where `note` says why
    there are none. evaluations, passes: an image, counted; seconds: their median. distance: to the reference,
    nan where there is none."""

    entry: Entry
    asked: int
    setting: str = ""
    steps: int = 0
    note: str = ""
    images: list[Tensor] | None = None
    pixels: Tensor | None = None
    evaluations: float = 0.0
    passes: float = 0.0
    seconds: float = 0.0
    distance: float = math.nan


@dataclass(frozen=True)
class Scene:
    """What every row has alike. model: one that counts. first: the seed of the first of `count` images."""

    model: Any
    positive: list
    negative: list
    latent: dict
    guidance: float
    first: int
    count: int
    vae: Any = None

    @property
    def seeds(self) -> list[int]:
        return [(self.first + number) % 2**64 for number in range(self.count)]

    def start(self, number: int) -> dict:
        """The LATENT of one image: of a batch each in turn. Its noise is that of a batch of one."""
        size = len(parts_of(self.latent["samples"])[0])
        parts = {}
        for name in ("samples", "noise_mask"):
            value = self.latent.get(name)
            if value is not None:
                of_batch = [v[[number % size]] if len(v) == size else v for v in parts_of(value)]
                parts[name] = like(value, of_batch)
        return {k: v for k, v in self.latent.items() if k != "batch_index"} | parts

    def sample(self, made: Plan, number: int) -> Any:
        """A LATENT's samples, nested ones too."""
        around = self.guidance, self.positive, self.negative, self.start(number)
        seed = self.seeds[number]
        return run(self.model, made.sampler, made.sigmas, seed, *around, quiet=True)["samples"]

    def pixels(self, image: Any) -> Tensor:
        """`[3, H, W]`, uint8; of nested samples the first part."""
        if self.vae is None:
            shown = first_part(image, own_space(self.model, packed(image)))
            values = preview_pixels(self.model, shown)[0] / 2 + 0.5
        else:
            decoded = self.vae.decode(parts_of(image)[0])
            values = decoded.flatten(0, -4)[0, ..., :3].movedim(-1, 0)  # of a video the first frame
        return (values.float().cpu().clamp(0, 1) * 255).round().byte()


# --- the lines ---------------------------------------------------------------------------------------------


def entries(text: str) -> list[Entry]:
    """The lines of `samplers`. Raises ValueError for one that names what there is not."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError("samplers is empty: write one a line, as amed, plain or dpmpp_2m / karras")
    return list(dict.fromkeys(entry(line, number) for number, line in lines))


def entry(line: str, number: int) -> Entry:
    """One of them. Raises ValueError."""
    names, schedulers = host_samplers()
    name, _, scheduler = (part.strip().lower() for part in line.partition("/"))
    where, ours = f"samplers, line {number}", (PLAIN, *OURS)
    if name not in ours and name not in names:
        told = nearest(name, [*ours, *names])
        raise ValueError(
            f"{where}: there is no sampler {name!r}\n{told}\n"
            "Write amed, plain, or a name as the KSampler's list has it, then / and a scheduler"
        )
    if name in ours and scheduler not in ("", SCHEDULER):
        raise ValueError(f"{where}: {name} brings its own noise levels: leave out / {scheduler}")
    if name in ours:
        return Entry(name)
    if scheduler not in ("", *schedulers):
        told = nearest(scheduler, schedulers)
        raise ValueError(
            f"{where}: there is no scheduler {scheduler!r}\n{told}\n"
            f"Write one as the KSampler's list has it, or leave it out: {name}"
        )
    return Entry(name, scheduler)


def nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, NEAREST, 0.4) or names[:NEAREST]
    return f"The nearest there are: {', '.join(dict.fromkeys(near))}"


# --- what a line is ----------------------------------------------------------------------------------------


def plan(scene: Scene, asked: Entry, nfe: int) -> Plan:
    """What an entry runs at so many evaluations. Raises what it cannot be for."""
    if asked.sampler == REFERENCE:
        return setting_plan(reference_setting(scene.model, nfe))
    if asked.sampler == PLAIN:
        return plain_plan(scene, nfe)
    if asked.sampler in OURS:
        return amed_plan(scene, OURS[asked.sampler], nfe)
    scheduler = asked.scheduler or ("simple" if is_flow(sampling_of(scene.model)) else "karras")
    steps = steps_within(scene, asked.sampler, scheduler, nfe)
    return Plan(*host_sampler(scene.model, asked.sampler, scheduler, steps), scheduler)


def amed_plan(scene: Scene, sampler: str, nfe: int) -> Plan:
    """A predictor of so many evaluations: the one on the MODEL, else the library's. Raises ValueError: there
    is none, and what to do."""
    own = attached(scene.model.model_options)
    fits = own is not None and not own.spec.of and own.nfe == nfe and own.spec.answers(sampler)
    asked = request(scene.model, sampler, scene.guidance, nfe=nfe, fitted=own if fits else None)
    if fits and own is not None and own.halved and not asked.halves:
        asked = replace(asked, fitted=None)  # this MODEL does not allow what it carries
    remember(asked)
    try:
        choice = choose(library(), asked)
    except PredictorError:
        kin = [f for f in usable(library(), asked) if f.spec.model_family == asked.model.family]
        there = sorted({f.nfe for f in kin if f.spec.answers(sampler)})
        others = f" There are some for {', '.join(map(str, there))}." if there else ""
        raise ValueError(
            f"no predictor for this model at {nfe} evaluations.{others} "
            f"Make one with Calibrate AMED: nfe {nfe}, guidance {scene.guidance:g}."
        ) from None
    return choice_plan(choice, choice.fitted.name.removesuffix(".safetensors"))


def plain_plan(scene: Scene, nfe: int) -> Plan:
    """The best plain solver known, which needs no predictor."""
    choice = plain_choice(scene.model, nfe, scene.guidance)
    spec = choice.fitted.spec
    return choice_plan(choice, f"{spec.solver}-{spec.max_order}{' + AFS' if spec.afs else ''}")


def choice_plan(choice: Choice, setting: str) -> Plan:
    made = our_sampler(choice.sampler, predictor=choice.fitted)
    return Plan(made, choice.sigmas.float(), setting, "; ".join(choice.remarks))


def setting_plan(setting: Setting) -> Plan:
    sampler = as_sampler(plain_function(setting))
    return Plan(sampler, setting.sigmas().float(), f"{setting.name}, {setting.schedule}")


class TooManyError(Exception):
    """A trial that takes more than would ever fit."""


def steps_within(scene: Scene, sampler: str, scheduler: str, nfe: int) -> int:
    """The most steps a sampler of the host takes in `nfe` evaluations. Counted: the sampler is run as it will
    be, and the network is not asked; on the bare MODEL, for a cache would leave evaluations out of the count
    and keep answers that are none. Raises ValueError where not even one step fits."""
    most, told = 4 * nfe + 20, scene.model.model_options[COUNT].before

    def stop_at_most() -> None:
        told()
        if count.evaluations >= most:
            raise TooManyError

    idle = replace(scene, model=counting(bare(scene.model), stop_at_most))
    count = idle.model.model_options[COUNT]
    count.idle = True

    def trial(steps: int) -> int:
        read_count(idle.model)
        try:
            idle.sample(Plan(*host_sampler(idle.model, sampler, scheduler, steps), scheduler), 0)
        except TooManyError:
            return most
        return read_count(idle.model)[0]

    steps, taken = nfe, trial(nfe)
    while taken > nfe and steps > 1:
        steps = min(steps - 1, steps * nfe // taken + 1)
        taken = trial(steps)
    while taken < nfe and steps < 2 * nfe and (more := trial(steps + 1)) <= nfe:
        steps, taken = steps + 1, more
    if not 0 < taken <= nfe:
        raise ValueError(f"{sampler} cannot keep to {nfe} evaluations, whatever its steps")
    return steps


# --- what is measured --------------------------------------------------------------------------------------


def measure(scene: Scene, made: Plan, row: Measured, reference: list[Tensor] | None) -> None:
    """Run a row and write into it what came of it. Raises what the sampler does."""
    row.setting, row.steps = made.setting, len(made.sigmas) - 1
    read_count(scene.model)
    images, pixels, seconds = [], [], []
    for number in range(scene.count):
        begin = time.monotonic()
        image = scene.sample(made, number)
        if not bool(packed(image).isfinite().all()):
            raise ValueError("its result is not finite (NaN or infinity)")
        seconds.append(time.monotonic() - begin)
        images.append(packed(image))
        pixels.append(scene.pixels(image))
    evaluations, rows = read_count(scene.model)
    row.evaluations, row.passes = evaluations / scene.count, rows / scene.count
    row.seconds = median(seconds)
    if reference is not None:
        pairs = ((own_space(scene.model, v) for v in pair) for pair in zip(images, reference))
        row.distance = mean(rmse(a, b) for a, b in pairs)
    row.pixels, row.images = torch.stack(pixels), images
    row.note = made.note


def attempt(row: Measured, work: Callable[..., Any], *given: Any) -> Any:
    """What `work` gives; None where it fails, and the row says why. An interrupt stays one."""
    try:
        return work(*given)
    except Interrupted:
        raise
    except Exception as error:  # of a sampler of the host, or of another pack: anything
        said = " ".join(str(error).split()) or type(error).__name__
        row.note = said if len(said) <= LONG else said[:LONG].rsplit(" ", 1)[0] + " ..."
        return None


def compare(scene: Scene, rows: list[Measured], planned: Callable[[int], None]) -> Iterator[Measured]:
    """Each row as it is done, one that fails too. `planned`: told all evaluations there will be."""
    plans = [attempt(row, plan, scene, row.entry, row.asked) for row in rows]
    planned(scene.count * sum(row.asked for row, made in zip(rows, plans) if made))
    reference = None
    for row, made in zip(rows, plans):
        if made is not None:
            attempt(row, measure, scene, made, row, reference)
            read_count(scene.model)
        reference = row.images if row.entry.sampler == REFERENCE else reference
        yield row
