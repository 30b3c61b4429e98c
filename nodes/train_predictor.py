"""The node Train AMED Predictor: the paper's network, trained by its Algorithm 1."""

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
from ..amed.files.names import fit_file_name
from ..amed.files.store import check_writable
from ..amed.fit import Target
from ..amed.fit.algorithm1 import HELD_OUT, Settings, TrainingPlan, plan, train
from ..amed.fit.compare import verdict, without_sampling
from ..amed.fit.measures import rmse
from ..amed.fit.target import seeded
from ..pictures import report
from .calibration import rgb_converter
from .host.fitting import PromptedDenoiser, Prompts, prompted_denoiser, target_of
from .host.folders import user_folder
from .host.model import base_times, is_flow, sampling_of
from .host.nested import joined_like, parts_of
from .host.running import progress_bar, show_text, text_ui
from .host.training import changes_weights, frozen_copy, trainable
from .schema import checked_name, fit_inputs, fit_outputs, guidance_input, name_input, schema, seed_input

NETWORKS = [name for name in SAMPLERS if name != "amed_multistep"]
TOO_EARLY = "interrupted before the first batch: nothing was saved"
SCALE_DIR, SCALE_TIME = 0.01, 0.0  # as in the paper for most data sets


@dataclass(frozen=True)
class TrainingJob:
    """What to train a predictor for: sampler, evaluations and guidance; with its teacher and file name."""

    sampler: str
    nfe: int  # evaluations
    guidance: float  # guidance scale (cfg)
    extra: int  # points of the teacher inside each interval (the paper's M)
    name: str  # beginning of the file's name


@dataclass
class Training:
    """The errors of a predictor during its training, and the trained predictor."""

    untrained: float = 0.0  # held-out error of the same solver with r = 1/2
    blank: float = math.inf  # held-out error without sampling
    # after each batch: (images so far, loss of each interval, held-out error)
    progress: list[tuple[int, list[float], float]] = field(default_factory=list)
    images: dict[str, Tensor] = field(default_factory=dict)  # held-out final states, by name
    fitted: Fitted | None = None  # the saved predictor, with the file's name; None until it is saved
    saved_text: str = ""  # where it was saved, as a sentence

    @property
    def best(self) -> float:
        """The lowest error so far on images that are not trained on. The best network is saved."""
        return min(error for _, _, error in self.progress)

    @property
    def text(self) -> str:
        """The training's result as text: errors, whether the predictor is usable, and where it was saved."""
        lines = [
            f"{self.fitted.name}: {self.fitted.spec.how}",
            f"held-out error to the teacher: {self.best:.4f}; untrained {self.untrained:.4f}",
        ]
        if self.best >= self.untrained:
            lines.append("the untrained solver is closer to the teacher: train longer, or use Calibrate AMED")
        if not self.fitted.spec.usable:
            lines.append(
                f"NOT USABLE: its error is no lower than {self.blank:.4g}, the error without any sampling. "
                "It is saved, but auto does not choose it. Train longer, or use Calibrate AMED"
            )
        return "\n".join([*lines, self.saved_text])


def train_and_save(
    model: Any, prompts: Prompts, job: TrainingJob, settings: Settings, node_id: str | None = None
) -> Training:
    """Train a predictor for a MODEL and save it. If the user interrupts, save the best so far.

    Raises:
        ValueError: if the sampler cannot take `nfe` evaluations, or a prompt has hooks that change weights.
        PredictorError: if the model has no U-Net middle block, which the predictor needs."""
    path = user_folder() / fit_file_name(job.name, job.nfe, job.guidance)
    if any(changes_weights(cond) for cond in (*prompts.positives, prompts.negative)):
        raise ValueError(
            "a prompt has hooks that change the network's weights during sampling, which gradients cannot "
            "pass through: remove the hooks, or use Calibrate AMED"
        )
    model_sampling = sampling_of(model)
    planned = plan(job.sampler, job.nfe, job.extra, may_afs=not is_flow(model_sampling))
    times = base_times(model_sampling, planned.points)
    check_writable(path)
    show, training = progress_bar(node_id, settings.images), Training()

    def work(denoiser: PromptedDenoiser, device: torch.device) -> None:
        target = target_of(model, denoiser)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed % 2**64)
            predictor = BottleneckPredictor(SCALE_DIR, SCALE_TIME).to(device)
        finished = False
        try:
            with closing(by_gradient(target, job, planned, times, predictor, settings, training)) as run:
                for images in run:
                    show(images)  # raises if the user interrupts
            finished = True
        finally:
            if training.progress:
                base = times[:: job.extra + 1]
                spec = spec_of(target, planned, base, job, settings, training)
                fitted = Fitted(spec, predictor.eval(), base)
                saved_path, training.saved_text = keep(path, fitted, finished)
                training.fitted = replace(fitted, name=saved_path.name)
                logging.info("AMED: %s", training.text)
            if node_id:
                show_text(node_id, training.text if training.fitted else TOO_EARLY)
        predictor.cpu()

    with torch.inference_mode(False):
        samples = prompts.latent["samples"]
        latent = {
            **prompts.latent,
            "samples": joined_like(samples, [part.clone() for part in parts_of(samples)]),
        }
        cloned = Prompts([trainable(p) for p in prompts.positives], trainable(prompts.negative), latent)
        frozen = frozen_copy(model)
        with prompted_denoiser(frozen, cloned, job.guidance, settings.seed, job.nfe) as denoiser:
            work(denoiser, frozen.load_device)
    return training


def by_gradient(
    target: Target,
    job: TrainingJob,
    planned: TrainingPlan,
    times: Tensor,
    predictor: BottleneckPredictor,
    settings: Settings,
    training: Training,
) -> Iterator[int]:
    """Train the AMED paper's network by gradient descent; yield the number of images so far, per batch.

    At the end, also after an interrupt, the network has the weights with the lowest error on images that are
    not trained on.

    Args:
        target: the diffusion model to train for.
        job: sampler, number of evaluations and guidance scale to train for.
        planned: the student (the solver to train for) and the teacher (a solver with more steps).
        times: the teacher's noise levels, falling, float64.
        predictor: the network to train, changed in place.
        settings: batch size, learning rate and others.
        training: filled with the errors and with sample images.

    Raises:
        PredictorError: if the diffusion model has no U-Net middle block, which the network needs."""
    denoiser, solver, afs = target.model, planned.solver, planned.afs
    base = times[:: job.extra + 1]

    def draw(generator: torch.Generator, count: int) -> tuple[Tensor, dict]:
        noise, args = target.draw(generator, count)
        return noise * float(times[0]), args

    x, args = draw(seeded(settings.seed + HELD_OUT), settings.held_out)
    first_args = {"prompt": args["prompt"][:1]}
    evaluation = target.evaluate(denoiser, x[:1], times[:1].to(x), first_args, frozenset({"bottleneck"}))
    if evaluation.bottleneck is None:
        raise PredictorError(
            f"{target.family or 'this model'} has no U-Net middle block, whose output the AMED paper's "
            "network needs as input: use Calibrate AMED, which fits constants to any model"
        )
    truth = planned.teacher.states(denoiser, x, times, args)[-1]

    def sampled(constants: Any) -> Tensor:
        return sample(denoiser, x, base, solver, args, disable=True, predictor=constants, afs=afs,
                      evaluate=target.evaluate)  # fmt: skip

    plain = sampled(untrained(job.sampler, base, afs).predictor)
    training.untrained, training.blank = rmse(plain, truth), rmse(without_sampling(truth), truth)
    steps = train(denoiser, solver, predictor, times, draw, planned.teacher, settings, afs=afs,
                  evaluate=target.evaluate, error=lambda end, *_: rmse(end, truth))  # fmt: skip
    try:
        for step in steps:
            training.progress.append((step.images, step.losses, step.held_out))
            yield step.images
    finally:
        steps.close()
    training.images |= {"teacher": truth, "network": sampled(predictor), "untrained": plain}


def spec_of(
    target: Target,
    planned: TrainingPlan,
    base: Tensor,
    job: TrainingJob,
    settings: Settings,
    training: Training,
) -> Spec:
    """Return the header of the trained predictor's file: what it is for, how it was trained, and its errors.

    Args:
        target: the diffusion model.
        planned: the trained solver, and the teacher that it was trained to follow.
        base: the trained solver's given noise levels; the predictor adds one between each two.
        job: sampler, number of evaluations and guidance scale.
        settings: batch size and others.
        training: the errors during training."""
    how = f"Algorithm 1: {training.progress[-1][0]} images, batch {settings.batch}, "
    how += f"{planned.teacher.solver.name} teacher, M={job.extra}"
    metrics = {"error": round(training.best, 5), "untrained_error": round(training.untrained, 5)}
    metrics |= verdict(training.best, training.blank)
    return Spec.on(
        planned.solver, base, afs=planned.afs,
        prediction_type=target.prediction_type, guidance=job.guidance, model_family=target.family,
        model_fingerprint=target.fingerprint, model_name=target.name, model_signature=target.signature,
        features="bottleneck", scale_dir=SCALE_DIR, scale_time=SCALE_TIME, how=how, metrics=metrics,
    )  # fmt: skip


class TrainPredictor(io.ComfyNode):
    """Train the AMED paper's network for a MODEL and a prompt, and save it."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDTrainPredictor",
            display_name="Train AMED Predictor",
            search_aliases=["amed", "train", "algorithm 1", "few steps"],
            description="Train the AMED paper's network by gradient descent (its Algorithm 1). Training "
            "needs more memory than sampling. Calibrate AMED needs no more memory than sampling, and gives "
            "better images.",
            inputs=[
                *fit_inputs(),
                io.Combo.Input("sampler", options=NETWORKS, default="amed",
                               tooltip="The sampler to train for. amed: the paper's AMED-Solver; the others: "
                               "its AMED-Plugin on another solver."),
                io.Int.Input("nfe", default=5, min=2, max=100,
                             tooltip="Number of network evaluations to train for."),
                guidance_input(),
                io.Int.Input("images", default=400, min=4, max=1_000_000,
                             tooltip="Number of trajectories to train on."),
                io.Int.Input("batch", default=4, min=1, max=256,
                             tooltip="Number of trajectories per training step. More need more memory."),
                io.Int.Input("teacher_points", default=1, min=1, max=8,
                             tooltip="Additional steps of the teacher inside each interval (M in the paper). "
                             "More: a more exact teacher, more evaluations."),
                io.Float.Input("learning_rate", default=5e-3, min=1e-6, max=1.0, step=1e-4,
                               tooltip="Learning rate of Adam."),
                seed_input(),
                name_input("trained", "Beginning of the saved file's name: NAME-nfe5-cfg1.safetensors."),
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
        result = train_and_save(model, prompts, job, settings, cls.hidden.unique_id)
        to_rgb = rgb_converter(model, prompts)
        rows = {name: to_rgb(end) for name, end in result.images.items()}
        picture = report.as_image(report.training(result.progress, result.untrained, rows))
        return io.NodeOutput(
            result.fitted, picture, result.text, ui=text_ui(cls.hidden.unique_id, result.text)
        )
