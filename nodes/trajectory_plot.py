"""The node AMED Trajectory Plot: one image's trajectory from noise, in the plane of its first two
principal components (the paper's fig. 4)."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..amed import Fitted, Solver
from ..amed.choose import AUTO, PLAIN, choose, preferred
from ..amed.evaluate import Thresholded
from ..amed.fit.measures import Counter, rmse
from ..amed.fit.plain_solvers import Setting
from ..amed.geometry import Plane, Walk, walk
from ..amed.kdiffusion import ENTRIES
from ..amed.loop import Problem
from ..pictures import trajectory as drawing
from ..pictures.parts import names_of, trimmed
from ..pictures.report import as_image
from .choice.fingerprint import fingerprint, remember
from .host.fitting import Prompts, evaluate_prompted, prompted_denoiser
from .host.folders import library
from .host.model import applied_predictor, network_input, noise_scale, sampling_of
from .host.nested import packed
from .host.request import plain_choice, reference_setting, request
from .host.running import noise_of, progress_bar, show_text
from .schema import DEFAULT_PREDICTOR, Predictor, cfg_input, nfe_input, sampled_inputs, schema, seed_input

PAPER = 0.08  # the largest share of x outside the plane of two components, in the paper


@dataclass(frozen=True)
class Job:
    """A solver and the noise levels at which it runs, to draw its trajectory."""

    name: str  # for the picture
    solver: Solver
    sigmas: Tensor
    afs: bool = False  # whether the first step is analytic
    fitted: Fitted | None = None  # the predictor; None for a plain solver

    @classmethod
    def of_fitted(cls, fitted: Fitted, sigmas: Tensor) -> "Job":
        """Return the Job (solver and noise levels to run) for a predictor."""
        spec = fitted.spec
        name = ENTRIES[spec.sampler].label if spec.learned else f"plain {spec.solver}-{spec.max_order}"
        return cls(name, spec.student, sigmas, spec.afs, fitted)

    @classmethod
    def of_plain(cls, setting: Setting, name: str = "") -> "Job":
        """Return the Job (solver and noise levels to run) for a plain solver, which has no predictor.

        Args:
            setting: the solver and its schedule.
            name: label in the picture; "": the solver's name."""
        return cls(name or setting.name, setting.solver, setting.sigmas(), setting.afs)

    @property
    def predictor(self) -> Any:
        return None if self.fitted is None else self.fitted.predictor

    def walk(self, denoiser: Any, x: Tensor) -> Walk:
        """Run the solver from noise x; return x at each noise level, and each step's weights of slopes."""
        fitted = None if self.fitted is None else self.fitted.to(x.device)
        thresholds = fitted is not None and fitted.spec.thresholding
        evaluate = Thresholded(evaluate_prompted) if thresholds else evaluate_prompted
        prompt = torch.zeros(len(x), dtype=torch.long, device=x.device)
        problem = Problem(denoiser, {"prompt": prompt}, evaluate)
        predictor = None if fitted is None else fitted.predictor
        return walk(problem, self.solver, x, self.sigmas, predictor, self.afs)


@dataclass(frozen=True)
class Trajectory:
    """The states x of one solver's run, from noise to image."""

    job: Job
    walk: Walk
    evaluations: int  # counted

    def distance(self, reference: "Trajectory") -> float:
        """Return the root mean square distance of this run's final state to that of a reference run."""
        return rmse(self.walk.states[-1], reference.walk.states[-1])

    @property
    def shares(self) -> Tensor:
        """The weights of each step on the latest slopes (dx/dsigma), `[steps, slopes, parts]`.

        The parts are e.g. the frequency bands of a slope, if the predictor has a weight for each; else 1."""
        return self.walk.shares(self.job.predictor, self.job.afs)


def run_jobs(
    model: Any, prompts: Prompts, guidance: float, seed: int, jobs: list[Job], node_id: str | None
) -> list[Trajectory]:
    """Run each solver for one image from the same noise, and return the trajectories."""
    trajectories: list[Trajectory] = []
    bar = progress_bar(node_id, sum(len(job.sigmas) for job in jobs))

    steps = max(job.predictor is not None and len(job.sigmas) - 1 for job in jobs)
    with prompted_denoiser(model, prompts, guidance, seed, steps) as denoiser:
        noise = packed(noise_of(denoiser.blank.float(), seed))
        noise = noise.to(model.load_device) * noise_scale(sampling_of(model))
        for job in jobs:
            spent = sum(trajectory.evaluations for trajectory in trajectories)
            counter = Counter(denoiser, lambda _: bar(spent + counter.evaluations))  # noqa: B023 - called in this iteration
            walk = job.walk(counter, noise * float(job.sigmas[0]))
            trajectories.append(Trajectory(job, walk, counter.evaluations))
    return trajectories


def scaled(model: Any, walk: Walk) -> Tensor:
    """Scale the states x of a run as the network's input is, so that all noise levels fit in one plot."""
    levels = torch.tensor(walk.times, dtype=torch.float32)
    return network_input(sampling_of(model), levels, walk.states)


def text_lines(trajectories: list[Trajectory], fitted: Fitted, scaled_loss: float, loss: float) -> list[str]:
    """Describe the plotted trajectories as text: evaluations, distances, and each step's weights.

    Args:
        trajectories: of the reference (a run of many evaluations), of the predictor and of a plain solver,
            which has no fitted constants.
        fitted: the predictor.
        scaled_loss: largest relative distance of the reference to the plane of its first two principal
            components, with x scaled as the network's input, as in the plot.
        loss: the same with x unscaled, to compare with the paper."""
    reference, learned, *_ = trajectories
    counted = ", ".join(f"{t.job.name} {t.evaluations}" for t in trajectories)
    lines = [
        f"predictor: {fitted.label}",
        f"evaluations counted: {counted}",
        f"two components leave out at most {scaled_loss:.1%} of this trajectory as drawn, and {loss:.1%} of "
        f"x itself (the paper: at most {PAPER:.0%})",
    ]
    for other in trajectories[1:]:
        distance = other.distance(reference)
        lines.append(f"distance of the end to the reference's: {other.job.name} {distance:.4f}")
    offsets = getattr(learned.job.predictor, "offset", None)
    names = names_of(getattr(learned.job.predictor, "parts", ""), learned.shares.shape[-1])
    on_parts = f" on {' | '.join(names)}" if len(names) > 1 else ""
    lines.append(
        f"moves (sigma from, to; the level the model is given; weights{on_parts}, the newest slope's first):"
    )
    times = learned.walk.times
    for n, (row, weights) in enumerate(zip(learned.walk.table.rows, learned.shares)):
        level = times[n] if row.sigma_model is None else row.sigma_model
        given = "none, the slope of pure noise" if row.analytic else f"{level:.5g}"
        given += " in one pass" if "cond" in row.wants else ""
        parts = " | ".join(" ".join(f"{w:.4f}" for w in trimmed(part)) for part in weights.T.tolist())
        if offsets is not None:
            parts += "; offset " + " ".join(f"{v:.4f}" for v in offsets[n].tolist())
        lines.append(f"{n + 1}: {times[n]:.5g}, {times[n + 1]:.5g}; {given}; {parts}")
    return lines


def draw(trajectories: list[Trajectory], points: list[Tensor], caption: str) -> Image.Image:
    """Draw trajectories in the plane of the reference's first two principal components, and the weights of
    the slopes dx/dsigma in each of the predictor's steps.

    Args:
        trajectories: of the reference (a run of many evaluations), of the predictor and of a plain solver,
            which has no fitted constants.
        points: for each trajectory, its states as 2D points in that plane.
        caption: the line under the title."""
    reference, learned, *_ = trajectories
    runs = []
    for trajectory, states in zip(trajectories, points):
        mids = (*(not row.opens for row in trajectory.walk.table.rows), False)
        distance = "" if trajectory is reference else f"its end {trajectory.distance(reference):.3f} away"
        runs.append(drawing.SolverRun(trajectory.job.name, trajectory.walk.times, states, mids, distance))
    shares = learned.shares
    names = names_of(getattr(learned.job.predictor, "parts", ""), shares.shape[-1])
    weights = {f"weights of each move on {name}": shares[..., part] for part, name in enumerate(names)}
    return drawing.picture("One trajectory in its plane", caption, runs[0], runs[1:], weights)


class TrajectoryPlot(io.ComfyNode):
    """Plot an accurate sampling trajectory of one image in its first two principal components, with the steps
    of a predictor and of a plain solver (without fitted constants)."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDTrajectoryPlot",
            display_name="AMED Trajectory Plot",
            search_aliases=["amed", "trajectory", "pca", "plot sigmas", "learned schedule", "see sampling"],
            description="Plot how one image forms: its trajectory from noise, which lies close to a plane, "
            "the steps of AMED and of a plain solver (without fitted constants), and the learned noise "
            "levels and weights.",
            inputs=[
                *sampled_inputs(
                    "The model to look at. The input itself is not changed.",
                    "A latent of the size to sample at. Its content is not used; sampling starts from noise.",
                ),
                seed_input("Seed of the noise, the same as in the KSampler for one image."),
                nfe_input(2, default=5,
                          tooltip="Number of model evaluations, for the predictor and for the plain solver "
                                  "(without fitted constants) that it is compared with."),
                cfg_input(),
                io.Int.Input("reference", default=60, min=20, max=20_000,
                             tooltip="Number of model evaluations of the reference, an accurate trajectory "
                                     "that the others are compared with."),
                Predictor.Input("predictor", optional=True,
                                tooltip=DEFAULT_PREDICTOR),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The trajectories in the first two "
                                "principal components of the reference, the noise levels and the weights."),
                io.String.Output(display_name="text", tooltip="The plotted values as text: distances, noise "
                                                              "levels, weights."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, latent_image, seed, nfe, guidance, reference, predictor=None):
        if reference < 2 * nfe:
            raise ValueError(
                f"reference is {reference}, which is too few evaluations for a trajectory to draw {nfe} "
                f"steps on: set it to at least {2 * nfe}"
            )

        def choice_with(fitted=None):
            wanted = request(model, AUTO, guidance, nfe=nfe, fitted=fitted, if_missing=PLAIN)
            remember(wanted)
            return choose(library(), wanted)

        applied = applied_predictor(model.model_options)
        choice, _ = preferred(choice_with, choice_with, named=predictor, attached=applied)
        plain = plain_choice(model, nfe, guidance)
        jobs = [
            Job.of_plain(reference_setting(model, reference), "reference"),
            Job.of_fitted(choice.fitted, choice.sigmas),
        ]
        if choice.fitted.name != PLAIN:
            jobs.append(Job.of_fitted(plain.fitted, plain.sigmas))
        prompts, node_id = Prompts([positive], negative, latent_image), cls.hidden.unique_id
        trajectories = run_jobs(model, prompts, guidance, seed, jobs, node_id)
        states = [scaled(model, trajectory.walk) for trajectory in trajectories]
        plane, unscaled = Plane.of(states[0]), trajectories[0].walk.states
        scaled_loss = float(plane.lost(states[0]).max())
        loss = float(Plane.of(unscaled).lost(unscaled).max())
        lines = text_lines(trajectories, choice.fitted, scaled_loss, loss)
        text = "\n".join([*lines, *(f"note: {remark}" for remark in choice.remarks)])
        caption = f"seed {seed}, guidance {guidance:g}; two components leave out at most {loss:.1%} of x"
        caption += f" (in the paper {PAPER:.0%})"
        image = as_image(draw(trajectories, [plane.project(s) for s in states], caption))
        logging.info("AMED Trajectory Plot: %s", text.replace("\n", "; "))
        if node_id:
            show_text(node_id, "\n".join(lines[:5]))
        return io.NodeOutput(image, text, ui=ui.PreviewImage(image, cls=cls))

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint(**inputs)
