"""Train AMED Predictor: the paper's Algorithm 1, for those who want its network."""

import logging
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..amed import SAMPLERS, BottleneckPredictor, Fitted, PredictorError, Spec, sample
from ..amed.choose import untrained
from ..amed.files.keep import keep
from ..amed.files.store import check_room, saved_as
from ..amed.fit import Target
from ..amed.fit.algorithm1 import HELD_OUT, Plan, Settings, plan, train
from ..amed.fit.compare import verdict, without_sampling
from ..amed.fit.measures import rmse
from ..amed.fit.target import seeded
from ..pictures import report
from .fitting import Prompted, Prompts, changes_weights, fitted_on, frozen_copy, target_of, trainable
from .folders import user_folder
from .model import base_times, is_flow, preview_pixels, sampling_of
from .nested import blank_of, first_part, like, parts_of
from .running import face, progress_bar, show_text
from .schema import checked_name, fit_inputs, fit_outputs, guidance_input, name_input, schema, seed_input

NETWORKS = [name for name in SAMPLERS if name != "amed_multistep"]
TOO_EARLY = "stopped before the first batch: nothing was saved"
SCALE_DIR, SCALE_TIME = 0.01, 0.0  # the paper's, for most data sets


@dataclass(frozen=True)
class TrainingJob:
    """What is trained: sampler, evaluations, guidance scale, the teacher's points inside an interval, and the
    name to save under."""

    sampler: str
    nfe: int
    guidance: float
    extra: int
    name: str


@dataclass
class Trained:
    """What came of it: `progress` is (images, loss of each interval, held-out error) after each batch;
    `untrained` the held-out error of the same solver with r = 1/2, `blank` that of no sampling; `images`
    held-out end states by name;
    `kept` the sentence that says where it was saved. `fitted`, None before it was saved, is named as its
    file."""

    untrained: float = 0.0
    blank: float = math.inf
    progress: list[tuple[int, list[float], float]] = field(default_factory=list)
    images: dict[str, Tensor] = field(default_factory=dict)
    fitted: Fitted | None = None
    kept: str = ""

    @property
    def best(self) -> float:
        """The least held-out error, that of the state which is kept."""
        return min(error for _, _, error in self.progress)

    @property
    def text(self) -> str:
        """For people."""
        lines = [
            f"{self.fitted.name}: {self.fitted.spec.how}",
            f"held-out error to the teacher: {self.best:.4f}; untrained {self.untrained:.4f}",
        ]
        if self.best >= self.untrained:
            lines.append("the untrained solver is nearer to the teacher: train longer, or use Calibrate AMED")
        if not self.fitted.spec.usable:
            lines.append(
                f"NOT USABLE: no better than {self.blank:.4g}, the error of no sampling at all. It is saved, "
                "but auto does not choose it. Train longer, or use Calibrate AMED"
            )
        return "\n".join([*lines, self.kept])


def trained(
    model: Any, prompts: Prompts, job: TrainingJob, settings: Settings, node_id: str | None = None
) -> Trained:
    """Train on a copy of the MODEL and keep; interrupted, the best so far is kept too. Raises ValueError for
    numbers that do not go together, PredictorError for a model without a middle block."""
    path = user_folder() / saved_as(job.name, job.nfe, job.guidance)
    if any(changes_weights(cond) for cond in (*prompts.positives, prompts.negative)):
        wrong = "a prompt carries hooks that change the network's weights while it samples"
        raise ValueError(f"{wrong}, and no gradient goes through that: take them off, or use Calibrate AMED")
    model_sampling = sampling_of(model)
    planned = plan(job.sampler, job.nfe, job.extra, may_afs=not is_flow(model_sampling))
    times = base_times(model_sampling, planned.points)
    check_room(path)
    show, outcome = progress_bar(node_id, settings.images), Trained()

    def work(denoiser: Prompted, device: torch.device) -> None:
        target = target_of(model, denoiser)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed % 2**64)
            predictor = BottleneckPredictor(SCALE_DIR, SCALE_TIME).to(device)
        finished = False
        try:
            with closing(by_gradient(target, job, planned, times, predictor, settings, outcome)) as run:
                for images in run:
                    show(images)  # raises, too, when the user stops it
            finished = True
        finally:
            if outcome.progress:
                base = times[:: job.extra + 1]
                fitted = Fitted(
                    described(target, planned, base, job, settings, outcome), predictor.eval(), base
                )
                saved, outcome.kept = keep(path, fitted, finished)
                outcome.fitted = replace(fitted, name=saved.name)
                logging.info("AMED: %s", outcome.text)
            if node_id:
                show_text(node_id, outcome.text if outcome.fitted else TOO_EARLY)
        predictor.cpu()

    with torch.inference_mode(False):
        samples = prompts.latent["samples"]
        latent = {**prompts.latent, "samples": like(samples, [part.clone() for part in parts_of(samples)])}
        cloned = Prompts([trainable(p) for p in prompts.positives], trainable(prompts.negative), latent)
        frozen = frozen_copy(model)
        with fitted_on(frozen, cloned, job.guidance, settings.seed, job.nfe) as denoiser:
            work(denoiser, frozen.load_device)
    return outcome


def by_gradient(
    target: Target,
    job: TrainingJob,
    planned: Plan,
    times: Tensor,
    predictor: BottleneckPredictor,
    settings: Settings,
    outcome: Trained,
) -> Iterator[int]:
    """Train the predictor in place; a generator of images seen, that fills `outcome`. Closed or ended, the
    predictor has its best state."""
    denoiser, solver, afs = target.model, planned.solver, planned.afs
    base = times[:: job.extra + 1]

    def draw(generator: torch.Generator, count: int) -> tuple[Tensor, dict]:
        noise, args = target.draw(generator, count)
        return noise * float(times[0]), args

    x, args = draw(seeded(settings.seed + HELD_OUT), settings.held_out)
    one = {"prompt": args["prompt"][:1]}
    if target.evaluate(denoiser, x[:1], times[:1].to(x), one, frozenset({"bottleneck"})).bottleneck is None:
        raise PredictorError(
            f"{target.family or 'this model'} has no middle block for the paper's network to read: use "
            "Calibrate AMED, which fits constants to any model"
        )
    truth = planned.teacher.states(denoiser, x, times, args)[-1]

    def sampled(constants: Any) -> Tensor:
        return sample(denoiser, x, base, solver, args, disable=True, predictor=constants, afs=afs,
                      evaluate=target.evaluate)  # fmt: skip

    plain = sampled(untrained(job.sampler, base, afs).predictor)
    outcome.untrained, outcome.blank = rmse(plain, truth), rmse(without_sampling(truth), truth)
    steps = train(denoiser, solver, predictor, times, draw, planned.teacher, settings, afs=afs,
                  evaluate=target.evaluate, error=lambda end, *_: rmse(end, truth))  # fmt: skip
    try:
        for step in steps:
            outcome.progress.append((step.images, step.losses, step.held_out))
            yield step.images
    finally:
        steps.close()
    outcome.images |= {"teacher": truth, "network": sampled(predictor), "untrained": plain}


def described(
    target: Target, planned: Plan, base: Tensor, job: TrainingJob, settings: Settings, outcome: Trained
) -> Spec:
    """What the file says of itself."""
    how = f"Algorithm 1: {outcome.progress[-1][0]} images, batch {settings.batch}, "
    how += f"{planned.teacher.solver.name} teacher, M={job.extra}"
    metrics = {"error": round(outcome.best, 5), "untrained_error": round(outcome.untrained, 5)}
    metrics |= verdict(outcome.best, outcome.blank)
    return Spec.on(
        planned.solver, base, afs=planned.afs,
        prediction_type=target.prediction_type, guidance=job.guidance, model_family=target.family,
        model_fingerprint=target.fingerprint, model_name=target.name, model_signature=target.signature,
        features="bottleneck", scale_dir=SCALE_DIR, scale_time=SCALE_TIME, how=how, metrics=metrics,
    )  # fmt: skip


class TrainPredictor(io.ComfyNode):
    """MODEL, prompt, LATENT size -> AMED_PREDICTOR with the paper's network."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDTrainPredictor",
            display_name="Train AMED Predictor",
            search_aliases=["amed", "train", "algorithm 1", "few steps"],
            description="Train the paper's network by gradient (Algorithm 1). It needs more memory "
            "than sampling; Calibrate AMED needs no more than sampling and gives better images.",
            inputs=[
                *fit_inputs(),
                io.Combo.Input("sampler", options=NETWORKS, default="amed",
                               tooltip="AMED-Solver, or the plugin on another solver"),
                io.Int.Input("nfe", default=5, min=2, max=100, tooltip="evaluations, one after the other"),
                guidance_input(),
                io.Int.Input("images", default=400, min=4, max=1_000_000, tooltip="trajectories to train on"),
                io.Int.Input("batch", default=4, min=1, max=256, tooltip="trajectories at once"),
                io.Int.Input("teacher_points", default=1, min=1, max=8,
                             tooltip="the paper's M: points the teacher takes inside each interval"),
                io.Float.Input("learning_rate", default=5e-3, min=1e-6, max=1.0, step=1e-4,
                               tooltip="of Adam"),
                seed_input(),
                name_input("trained", "the file is NAME-nfe5-cfg1.safetensors"),
            ],
            outputs=fit_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        sampler,
        nfe,
        guidance,
        images,
        batch,
        teacher_points,
        learning_rate,
        seed,
        name,
    ):
        job = TrainingJob(sampler, nfe, guidance, teacher_points, checked_name(name))
        settings = Settings(images, batch, held_out=max(8, batch), lr=learning_rate, seed=seed)
        prompts = Prompts([positive], negative, latent_image)
        result = trained(model, prompts, job, settings, cls.hidden.unique_id)
        one = blank_of(model, latent_image)
        rows = {label: preview_pixels(model, first_part(one, end)) for label, end in result.images.items()}
        picture = report.as_image(report.training(result.progress, result.untrained, rows))
        return io.NodeOutput(result.fitted, picture, result.text, ui=face(cls.hidden.unique_id, result.text))


NODES = [TrainPredictor]
