"""Calibrate AMED: a predictor for this MODEL, by forward evaluations only."""

import logging
from dataclasses import dataclass, replace

import torch
from comfy_api.latest import io, ui

from ..amed import SAMPLERS, Fitted, plain, report, store
from ..amed.calibration import PRESETS, Calibration, References, Result, Settings, budget_of, numbers
from . import host
from .schema import fit_inputs, fit_outputs, guidance_input, schema

CALIBRATE = "calibrate now (quick)"
MORE = tuple(f"positive_{i}" for i in (2, 3, 4))


@dataclass(frozen=True)
class Job:
    """What is calibrated, for a MODEL: prompts, negative, LATENT (its size), sampler, the numbers of
    evaluations, guidance scale, budget of each, seed, and the name to save under."""

    positives: list
    negative: list
    latent: dict
    sampler: str
    nfe: tuple[int, ...]
    guidance: float
    budget: str | int
    seed: int
    name: str


def calibrate(model: object, job: Job, node_id: str | None = None) -> tuple[list[Result], list[Fitted]]:
    """Fit, compare and save each number of evaluations of a job; they share their references. What is
    finished when the user interrupts, and the best so far of the one under way, is saved."""
    for nfe in job.nfe:  # before any work is done
        store.saved_as(job.name, nfe, job.guidance)
    model_sampling, who = host.sampling_of(model), host.identity(model)
    low, high = host.sigma_range(model_sampling)
    flow = host.is_flow(model_sampling)
    settings = [
        Settings(
            nfe, low, high, job.sampler, budget_of(job.budget, nfe), job.guidance,
            afs=not flow, seed=job.seed,
            batch=8, kinds=plain.FLOW_SCHEDULES if flow else plain.SCHEDULES,
            prediction_type=host.prediction_type(model_sampling), model_family=who.family,
            model_fingerprint=who.fingerprint, model_name=f"{who.family} {who.fingerprint[:8]}".strip(),
        )
        for nfe in job.nfe
    ]  # fmt: skip
    total, before = sum(one.budget for one in settings), 0
    done = host.progress_bar(node_id, total)
    results: list[Result] = []
    saved: list[Fitted] = []

    def keep(calibration: Calibration, nfe: int) -> None:
        result = calibration.result()
        path = host.user_folder() / store.saved_as(job.name, nfe, job.guidance)
        saved.append(replace(result.fitted, name=store.save(path, result.fitted).name))
        results.append(result)
        logging.info("AMED: %s; saved as %s", result.text, path.name)

    def work(denoiser: host.Prompted, shape: tuple[int, ...], device: torch.device) -> None:
        scale = host.noise_scale(model_sampling)

        def draw(generator: torch.Generator, count: int) -> tuple[torch.Tensor, dict]:
            noise = torch.randn(count, *shape, generator=generator) * scale
            number = int(torch.randint(len(job.positives), (1,), generator=generator))
            return noise.to(device), {"prompt": torch.full((count,), number, device=device)}

        nonlocal before
        references = References(denoiser, draw, settings[0])
        for one in settings:
            rivals = host.shipped(model_sampling, one.nfe, denoiser)
            calibration = Calibration(
                denoiser, draw, one, references=references, guide=host.guide, rivals=rivals
            )
            try:
                for progress in calibration.run():
                    done(before + progress.evaluations)
            except BaseException:  # an interrupt is one: the best so far is worth keeping
                if calibration.ready:
                    keep(calibration, one.nfe)
                raise
            keep(calibration, one.nfe)
            done(before := before + one.budget)

    host.inside_sampling(model, job.positives, job.negative, job.guidance, job.latent, job.seed, work)
    return results, saved


def calibrate_now(model: object, job: Job, node_id: str | None) -> Fitted:
    """A calibration because there is none yet; saved under the checkpoint's own name, found the next time."""
    who = host.identity(model)
    sampler = "amed_multistep" if job.sampler == "auto" else job.sampler
    name = f"{who.family}-{who.fingerprint[:8] or 'unknown'}-{sampler.removeprefix('amed_')}"
    _, saved = calibrate(model, replace(job, sampler=sampler, name=name), node_id)
    return saved[0]


class Calibrate(io.ComfyNode):
    """MODEL, prompts, LATENT size -> AMED_PREDICTOR, saved and found by `auto` from then on."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDCalibrate",
            display_name="Calibrate AMED",
            search_aliases=["amed", "calibrate", "fit predictor", "few steps"],
            description="Fit a few dozen constants to this model, by sampling only: better images at few "
            "evaluations. Saved under models/amed_predictors and found by auto from then on.",
            inputs=[
                *fit_inputs(),
                io.Combo.Input("sampler", options=list(SAMPLERS), default="amed_multistep",
                               tooltip="amed_multistep is the best there is; the others are the paper's"),
                io.String.Input("nfe", default="5", tooltip="evaluations; several in one run: 5, 7, 9"),
                guidance_input(),
                io.Combo.Input("budget", options=[*PRESETS, "custom"], default="quick",
                               tooltip=", ".join(f"{k}: {v}" for k, v in PRESETS.items()) + " evaluations"),
                io.Int.Input("evaluations", default=PRESETS["quick"], min=1000, max=1_000_000, step=100,
                             tooltip="the budget if it is custom"),
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1),
                io.String.Input("name", default="calibrated", tooltip="files are NAME-nfe5-cfg1.safetensors"),
                *(io.Conditioning.Input(n, optional=True, tooltip="another prompt to fit to") for n in MORE),
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
        budget,
        evaluations,
        seed,
        name,
        **more,
    ):
        job = Job(
            [positive, *(more[key] for key in MORE if more.get(key) is not None)], negative, latent_image,
            sampler,
            numbers(nfe), guidance, evaluations if budget == "custom" else budget, seed, name,
        )  # fmt: skip
        results, saved = calibrate(model, job, cls.hidden.unique_id)
        text = "\n\n".join(r.table(f.name) for r, f in zip(results, saved))
        images = [report.as_image(report.picture(r, pictures(model, r))) for r in results]
        high = max(image.shape[1] for image in images)
        images = [torch.nn.functional.pad(i, (0, 0, 0, 0, 0, high - i.shape[1]), value=1.0) for i in images]
        images = torch.cat(images)
        return io.NodeOutput(saved[0], images, text, ui=ui.PreviewText(text))


def pictures(model: object, result: Result) -> dict[str, torch.Tensor]:
    """Rows of the sample grid."""
    best = f"best plain\n{result.rows[1].solver}"
    named = {"reference": "reference", "fit": "AMED" if result.improved else "kept", "plain": best}
    rows = {told: result.images[name] for name, told in named.items()}
    rows |= {n.replace(", ", "\n"): v for n, v in result.images.items() if n not in named}
    return {name: host.preview_pixels(model, images) for name, images in rows.items()}


NODES = [Calibrate]
