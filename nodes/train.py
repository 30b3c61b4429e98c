"""Train AMED Predictor: the paper's Algorithm 1, for those who want its network."""

import logging
from dataclasses import dataclass, replace

import torch
from comfy_api.latest import io, ui

from ..amed import SAMPLERS, BottleneckPredictor, Fitted, PredictorError, Spec, report, store
from ..amed.evaluation import rmse
from ..amed.sampling import sample
from ..amed.training import HELD_OUT, Settings, plan, train
from . import host
from .schema import fit_inputs, fit_outputs, guidance_input, schema

NETWORKS = [name for name in SAMPLERS if name != "amed_multistep"]
SCALE_DIR, SCALE_TIME = 0.01, 0.0  # the paper's, for most data sets


@dataclass
class Job:
    """What is trained, for a MODEL: prompt, negative, LATENT (its size), sampler, evaluations, guidance
    scale, the teacher's points inside an interval, and the name to save under."""

    positive: list
    negative: list
    latent: dict
    sampler: str
    nfe: int
    guidance: float
    extra: int
    name: str


@dataclass
class Trained:
    """What came of it: `progress` is (images, loss of each interval, held-out error) after each batch;
    `untrained` the held-out error of the same solver with r = 1/2, `best` the least one; `images` held-out
    end states by name."""

    fitted: Fitted
    progress: list[tuple[int, list[float], float]]
    best: float
    untrained: float
    images: dict[str, torch.Tensor]

    @property
    def text(self) -> str:
        lines = [
            f"{self.fitted.name}: {self.fitted.spec.how}",
            f"held-out error to the teacher: {self.best:.4f}; untrained {self.untrained:.4f}",
        ]
        if self.best >= self.untrained:
            lines.append("the untrained solver is nearer to the teacher: train longer, or use Calibrate AMED")
        return "\n".join(lines)


def trained(model: object, job: Job, settings: Settings, node_id: str | None = None) -> Trained:
    """Train on a copy of the MODEL and save; interrupted, the best so far is saved. Raises ValueError for
    numbers that do not go together, PredictorError for a model without a middle block."""
    path = host.user_folder() / store.saved_as(job.name, job.nfe, job.guidance)
    model_sampling, who = host.sampling_of(model), host.identity(model)
    planned = plan(job.sampler, job.nfe, job.extra, may_afs=not host.is_flow(model_sampling))
    times = host.base_times(model_sampling, planned.points)
    base = times[:: job.extra + 1]
    solver, afs = planned.solver, planned.afs
    spec = Spec.on(
        solver, base, afs=afs,
        prediction_type=host.prediction_type(model_sampling), guidance=job.guidance, model_family=who.family,
        model_fingerprint=who.fingerprint, model_name=f"{who.family} {who.fingerprint[:8]}".strip(),
        features="bottleneck", scale_dir=SCALE_DIR, scale_time=SCALE_TIME,
    )  # fmt: skip
    done = host.progress_bar(node_id, settings.images)
    found: list[Trained] = []

    def work(denoiser: host.Prompted, shape: tuple[int, ...], device: torch.device) -> None:
        scale = host.noise_scale(model_sampling) * float(times[0])
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            predictor = BottleneckPredictor(SCALE_DIR, SCALE_TIME).to(device)

        def draw(generator: torch.Generator, count: int) -> tuple[torch.Tensor, dict]:
            noise = torch.randn(count, *shape, generator=generator) * scale
            return noise.to(device), {"prompt": torch.zeros(count, dtype=torch.long, device=device)}

        x, args = draw(torch.Generator().manual_seed(settings.seed + HELD_OUT), settings.held_out)
        one = {"prompt": args["prompt"][:1]}
        if host.capture(denoiser, x[:1], times[:1].to(x), one)[1] is None:
            raise PredictorError(
                f"{who.family or 'this model'} has no middle block for the paper's network to read: use "
                "Calibrate AMED, which fits constants to any model"
            )
        truth = planned.teacher.states(denoiser, x, times, args)[-1]

        def sampled(fitted: Fitted) -> torch.Tensor:
            return sample(denoiser, x, base, solver, args, disable=True, predictor=fitted, afs=afs,
                          capture=host.capture)  # fmt: skip

        plain = sampled(host.untrained(job.sampler, base, afs))
        progress: list[tuple[int, list[float], float]] = []

        untrained = rmse(plain, truth)

        def keep() -> None:
            best = min(p[2] for p in progress)
            how = f"Algorithm 1: {progress[-1][0]} images, batch {settings.batch}, "
            how += f"{planned.teacher.solver.name} teacher, M={job.extra}"
            metrics = {"error": round(best, 5), "untrained_error": round(untrained, 5)}
            fitted = Fitted(replace(spec, how=how, metrics=metrics), predictor.eval(), base)
            fitted = replace(fitted, name=store.save(path, fitted).name)
            found.append(Trained(fitted, progress, best, untrained, {}))
            logging.info("AMED: %s", found[-1].text)

        def error(end: torch.Tensor, *_: object) -> float:
            return rmse(end, truth)

        steps = train(denoiser, solver, predictor, times, draw, planned.teacher, settings, afs=afs,
                      capture=host.capture, error=error)  # fmt: skip
        try:
            for step in steps:
                progress.append((step.images, step.losses, step.held_out))
                done(step.images)
        finally:  # an interrupt too: the best so far is worth keeping
            steps.close()
            if progress:
                keep()
        found[0].images |= {"teacher": truth, "network": sampled(found[0].fitted), "untrained": plain}
        predictor.cpu()

    with torch.inference_mode(False):
        latent = {"samples": job.latent["samples"].clone()}
        prompts = host.trainable(job.positive), host.trainable(job.negative)
        host.inside_sampling(host.frozen_copy(model), [prompts[0]], prompts[1], job.guidance, latent,
                             settings.seed, work)  # fmt: skip
    return found[0]


class TrainPredictor(io.ComfyNode):
    """MODEL, prompt, LATENT size -> AMED_PREDICTOR with the paper's network."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDTrainPredictor",
            display_name="Train AMED Predictor",
            search_aliases=["amed", "train", "algorithm 1"],
            description="Train the paper's network by gradient (Algorithm 1). It needs more memory "
            "than sampling; Calibrate AMED needs no more than sampling and gives better images.",
            inputs=[
                *fit_inputs(),
                io.Combo.Input("sampler", options=NETWORKS, default="amed"),
                io.Int.Input("nfe", default=5, min=2, max=100, tooltip="evaluations, one after the other"),
                guidance_input(),
                io.Int.Input("images", default=400, min=4, max=1_000_000, tooltip="trajectories to train on"),
                io.Int.Input("batch", default=4, min=1, max=256, tooltip="trajectories at once"),
                io.Int.Input("teacher_points", default=1, min=1, max=8,
                             tooltip="the paper's M: points the teacher takes inside each interval"),
                io.Float.Input("learning_rate", default=5e-3, min=1e-6, max=1.0, step=1e-4),
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1),
                io.String.Input("name", default="trained", tooltip="the file is NAME-nfe5-cfg1.safetensors"),
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
        job = Job(positive, negative, latent_image, sampler, nfe, guidance, teacher_points, name)
        settings = Settings(images, batch, held_out=max(8, batch), lr=learning_rate, seed=seed)
        result = trained(model, job, settings, cls.hidden.unique_id)
        rows = {name: host.preview_pixels(model, made) for name, made in result.images.items()}
        picture = report.as_image(report.training(result.text, result.progress, result.untrained, rows))
        return io.NodeOutput(result.fitted, picture, result.text, ui=ui.PreviewText(result.text))


NODES = [TrainPredictor]
