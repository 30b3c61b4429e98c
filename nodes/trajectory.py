"""AMED Trajectory Plot: one seed's way from noise to image, in the plane it keeps to (the paper's fig. 4)."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..amed import Fitted, Solver
from ..amed.choose import AUTO, PLAIN, choose
from ..amed.evaluate import Thresholded
from ..amed.fit.measures import Counter, rmse
from ..amed.fit.plain import Setting
from ..amed.fit.plane import Plane, Walk, walk
from ..amed.kdiffusion import ENTRIES
from ..amed.loop import Problem
from ..hosts import plane as drawing
from ..hosts.parts import names_of, trimmed
from ..hosts.report import as_image
from .choosing import plain_choice, reference_setting, request
from .fitting import Prompts, evaluate_prompted, fitted_on
from .folders import library
from .model import as_input, attached, noise_scale, sampling_of
from .nested import packed
from .recall import fingerprint, remember
from .running import noise_of, progress_bar, show_text
from .schema import Predictor, cfg_input, nfe_input, schema, seed_input, shown_inputs

PAPER = 0.08  # what two components leave out of x at most, in the paper


@dataclass(frozen=True)
class Job:
    """A solver on its noise levels, with what it has learned."""

    name: str
    solver: Solver
    sigmas: Tensor
    afs: bool = False
    fitted: Fitted | None = None

    @classmethod
    def of_fitted(cls, fitted: Fitted, sigmas: Tensor) -> "Job":
        spec = fitted.spec
        name = ENTRIES[spec.sampler].label if spec.learned else f"plain {spec.solver}-{spec.max_order}"
        return cls(name, spec.student, sigmas, spec.afs, fitted)

    @classmethod
    def of_plain(cls, setting: Setting, name: str = "") -> "Job":
        return cls(name or setting.name, setting.solver, setting.sigmas(), setting.afs)

    @property
    def predictor(self) -> Any:
        return None if self.fitted is None else self.fitted.predictor

    def walk(self, denoiser: Any, x: Tensor) -> Walk:
        fitted = None if self.fitted is None else self.fitted.to(x.device)
        thresholds = fitted is not None and fitted.spec.thresholding
        evaluate = Thresholded(evaluate_prompted) if thresholds else evaluate_prompted
        prompt = torch.zeros(len(x), dtype=torch.long, device=x.device)
        problem = Problem(denoiser, {"prompt": prompt}, evaluate)
        predictor = None if fitted is None else fitted.predictor
        return walk(problem, self.solver, x, self.sigmas, predictor, self.afs)


@dataclass(frozen=True)
class Walked:
    """A job, its walk, and the evaluations counted."""

    job: Job
    walk: Walk
    evaluations: int

    def away(self, reference: "Walked") -> float:
        """How far its end is from the reference's, root mean square."""
        return rmse(self.walk.states[-1], reference.walk.states[-1])

    @property
    def shares(self) -> Tensor:
        """Weights of its moves `[N, H, S]`."""
        return self.walk.shares(self.job.predictor, self.job.afs)


def walked(
    model: Any, prompts: Prompts, guidance: float, seed: int, jobs: list[Job], node_id: str | None
) -> list[Walked]:
    """Each job from the same noise, one image, without a noise mask."""
    done: list[Walked] = []
    bar = progress_bar(node_id, sum(len(job.sigmas) for job in jobs))

    steps = max(job.predictor is not None and len(job.sigmas) - 1 for job in jobs)
    with fitted_on(model, prompts, guidance, seed, steps) as denoiser:
        noise = packed(noise_of(denoiser.one.float(), seed))
        noise = noise.to(model.load_device) * noise_scale(sampling_of(model))
        for job in jobs:
            spent = sum(one.evaluations for one in done)
            counter = Counter(denoiser, lambda _: bar(spent + counter.evaluations))  # noqa: B023 - at once
            made = job.walk(counter, noise * float(job.sigmas[0]))
            done.append(Walked(job, made, counter.evaluations))
    return done


def scaled(model: Any, walk: Walk) -> Tensor:
    """The states as the network's input has them: of one size at every noise level."""
    levels = torch.tensor(walk.times, dtype=torch.float32)
    return as_input(sampling_of(model), levels, walk.states)


def told(all_of: list[Walked], fitted: Fitted, drawn: float, whole: float) -> list[str]:
    """The text: what ran, how flat the trajectory is (as drawn, and x itself), how near the ends are, the
    moves."""
    reference, learned, *_ = all_of
    counted = ", ".join(f"{one.job.name} {one.evaluations}" for one in all_of)
    lines = [
        f"predictor: {fitted.label}",
        f"evaluations counted: {counted}",
        f"two components leave out at most {drawn:.1%} of this trajectory as it is drawn, and {whole:.1%} of "
        f"x itself (the paper: at most {PAPER:.0%})",
    ]
    for other in all_of[1:]:
        lines.append(f"distance of the end to the reference's: {other.job.name} {other.away(reference):.4f}")
    offsets = getattr(learned.job.predictor, "offset", None)
    names = names_of(getattr(learned.job.predictor, "parts", ""), learned.shares.shape[-1])
    of = f" on {' | '.join(names)}" if len(names) > 1 else ""
    lines.append(
        f"moves (sigma from, to; the level the model is told; weights{of}, the newest slope's first):"
    )
    times = learned.walk.times
    for n, (row, weights) in enumerate(zip(learned.walk.table.rows, learned.shares)):
        level = times[n] if row.sigma_model is None else row.sigma_model
        asked = "none, the slope of pure noise" if row.analytic else f"{level:.5g}"
        asked += " in one pass" if "cond" in row.wants else ""
        parts = " | ".join(" ".join(f"{w:.4f}" for w in trimmed(part)) for part in weights.T.tolist())
        if offsets is not None:
            parts += "; offset " + " ".join(f"{v:.4f}" for v in offsets[n].tolist())
        lines.append(f"{n + 1}: {times[n]:.5g}, {times[n + 1]:.5g}; {asked}; {parts}")
    return lines


def drawn(all_of: list[Walked], points: list[Tensor], under: str) -> Image.Image:
    """The picture: the reference, then the learned solver and what it is compared with."""
    runs = []
    for one, at in zip(all_of, points):
        mids = (*(not row.opens for row in one.walk.table.rows), False)
        said = "" if one is all_of[0] else f"its end {one.away(all_of[0]):.3f} away"
        runs.append(drawing.Run(one.job.name, one.walk.times, at, mids, said))
    learned = all_of[1]
    shares = learned.shares
    names = names_of(getattr(learned.job.predictor, "parts", ""), shares.shape[-1])
    weights = {f"weights of each move on {name}": shares[..., part] for part, name in enumerate(names)}
    return drawing.picture("One trajectory in its plane", under, runs[0], runs[1:], weights)


class TrajectoryPlot(io.ComfyNode):
    """MODEL, prompts, LATENT, seed, predictor -> IMAGE of one trajectory, and a text."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDTrajectoryPlot",
            display_name="AMED Trajectory Plot",
            search_aliases=["amed", "trajectory", "pca", "plot sigmas", "learned schedule", "see sampling"],
            description="How one image comes about: its way from noise in the plane it keeps to, where AMED "
            "and a plain solver stop on it, and the times and weights that were learned.",
            inputs=[
                *shown_inputs("the model to look at; it is not changed",
                              "its size; the way starts from noise"),
                seed_input("the noise, as the KSampler has it for one image"),
                nfe_input(2, default=5, tooltip="evaluations of the predictor and of the plain solver"),
                cfg_input(tooltip="classifier-free guidance (cfg); 1 is none and half the work"),
                io.Int.Input("reference", default=60, min=20, max=20_000,
                             tooltip="evaluations of the trajectory that is drawn"),
                Predictor.Input("predictor", optional=True,
                                tooltip="left open: the one applied to the MODEL, or the library's for it"),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="the plane, the noise levels and the weights"),
                io.String.Output(display_name="text", tooltip="the same in numbers"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, latent_image, seed, nfe, guidance, reference, predictor=None):
        if reference < 2 * nfe:
            raise ValueError(
                f"reference is {reference}: to draw {nfe} evaluations on, give at least {2 * nfe}"
            )
        fitted = predictor or attached(model.model_options)
        asked = request(model, AUTO, guidance, nfe=nfe, fitted=fitted, if_missing=PLAIN)
        remember(asked)
        choice, plain = choose(library(), asked), plain_choice(model, nfe, guidance)
        jobs = [
            Job.of_plain(reference_setting(model, reference), "reference"),
            Job.of_fitted(choice.fitted, choice.sigmas),
        ]
        if choice.fitted.name != PLAIN:
            jobs.append(Job.of_fitted(plain.fitted, plain.sigmas))
        prompts, node_id = Prompts([positive], negative, latent_image), cls.hidden.unique_id
        made = walked(model, prompts, guidance, seed, jobs, node_id)
        states = [scaled(model, one.walk) for one in made]
        plane, own = Plane.of(states[0]), made[0].walk.states
        lost = float(plane.lost(states[0]).max())
        whole = float(Plane.of(own).lost(own).max())
        lines = told(made, choice.fitted, lost, whole)
        text = "\n".join([*lines, *(f"note: {remark}" for remark in choice.remarks)])
        under = f"seed {seed}, guidance {guidance:g}; two components leave out at most {whole:.1%} of x"
        under += f" (in the paper {PAPER:.0%})"
        image = as_image(drawn(made, [plane.project(s) for s in states], under))
        logging.info("AMED Trajectory Plot: %s", text.replace("\n", "; "))
        if node_id:
            show_text(node_id, "\n".join(lines[:5]))
        return io.NodeOutput(image, text, ui=ui.PreviewImage(image, cls=cls))

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint(**inputs)


NODES = [TrajectoryPlot]
