"""The modular nodes: load a predictor, put it on a MODEL, make a SAMPLER and SIGMAS of it."""

import torch
from comfy_api.latest import io, ui

from ..amed import SAMPLERS, Fitted, PredictorError
from ..amed.sampling import solver_of
from . import host
from .calibrate import CALIBRATE, Job, calibrate_now
from .schema import Predictor, schema

SOLVERS = ["auto", *SAMPLERS]


class LoadPredictor(io.ComfyNode):
    """A predictor file, from models/amed_predictors or the bundled ones."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDLoadPredictor",
            display_name="Load AMED Predictor",
            search_aliases=["amed"],
            description="Load a fitted AMED predictor from models/amed_predictors or the pack's own.",
            inputs=[io.Combo.Input("name", options=host.library().names(), tooltip="the predictor file")],
            outputs=[Predictor.Output(display_name="predictor")],
        )

    @classmethod
    def execute(cls, name):
        fitted = host.library().load(name)
        return io.NodeOutput(fitted, ui=ui.PreviewText(fitted.label))

    @classmethod
    def fingerprint_inputs(cls, **_inputs):
        return host.library_state()


class ApplyPredictor(io.ComfyNode):
    """A predictor on a MODEL, for the ordinary KSampler's amed entries."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDApplyPredictor",
            display_name="Apply AMED Predictor",
            description="Put a predictor on a MODEL: the ordinary KSampler's amed... samplers then use it, "
            "and its amed schedule is the predictor's own. Without one linked, the library's for this model.",
            inputs=[
                io.Model.Input("model"),
                Predictor.Input("predictor", optional=True, tooltip="left open: the library's for it"),
                io.Combo.Input("sampler", options=SOLVERS, default="auto", optional=True,
                               tooltip="which to look up, with no predictor linked"),
                io.Int.Input("nfe", default=5, min=2, max=100, optional=True,
                             tooltip="evaluations to look up, with no predictor linked"),
                io.Float.Input("guidance", default=1.0, min=0.0, max=100.0, step=0.1, optional=True,
                               tooltip="the cfg you will sample with, with no predictor linked"),
                io.Combo.Input("if_missing", options=["error", CALIBRATE, "untrained"], default="error",
                               optional=True, tooltip="when the library has none for this model"),
                io.Conditioning.Input("positive", optional=True, tooltip="only to calibrate now"),
                io.Conditioning.Input("negative", optional=True, tooltip="only to calibrate now"),
                io.Latent.Input("latent_image", optional=True, tooltip="only to calibrate now: its size"),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model,
        predictor=None,
        sampler="auto",
        nfe=5,
        guidance=1.0,
        if_missing="error",
        positive=None,
        negative=None,
        latent_image=None,
    ):
        report = host.Report()
        if predictor is None:
            job = Job([positive], negative, latent_image, sampler, (nfe,), guidance, "quick", 0, "auto")
            predictor = look_up(model, job, if_missing, report, cls.hidden.unique_id)
        lines = [
            predictor.label,
            f"KSampler: sampler {host.sampler_for(predictor)}, scheduler {host.SCHEDULER}, "
            f"steps {predictor.spec.num_steps - 1}, cfg {predictor.spec.guidance:g}: "
            f"{predictor.nfe} evaluations",
        ]
        remarks = host.mismatches(predictor, host.identity(model), predictor.spec.guidance) + report.remarks
        text = "\n".join(lines + [f"note: {remark}" for remark in remarks])
        return io.NodeOutput(host.attach(model, predictor), ui=ui.PreviewText(text))

    @classmethod
    def fingerprint_inputs(cls, **_inputs):
        return host.library_state()


def look_up(
    model: object, job: Job, if_missing: str, report: host.Report, node_id: str | None
) -> Fitted:
    """The library's predictor for a MODEL, or by `if_missing` one calibrated for `job` now, or the
    untrained solver. A calibration is for this very checkpoint: where it is asked for, another checkpoint's
    predictor does not count as found.

    Raises PredictorError where there is none, ValueError where a calibration lacks what it needs."""
    sampler, (nfe,), guidance = job.sampler, job.nfe, job.guidance
    solver, order = asked(sampler)
    who = host.identity(model)
    try:
        found = host.find(who, solver, nfe, guidance, order)
        wrong = host.mismatches(found, who, guidance)
        if if_missing != CALIBRATE or not wrong:
            return found
        missing = "; ".join(wrong)
    except PredictorError as error:
        missing = str(error).splitlines()[0]
        if if_missing == "error":
            raise
    if if_missing == CALIBRATE:
        if None in (job.positives[0], job.negative, job.latent):
            raise ValueError(
                "to calibrate now, link positive, negative and latent_image too: the fit needs prompts of "
                "the kind you use and the size of the images"
            )
        fitted = calibrate_now(model, job, node_id)
        report.remarks.append(f"calibrated now, as asked ({missing}); kept as {fitted.name}")
        return fitted
    report.remarks.append(f"untrained, as asked: {missing}")
    return untrained(model, sampler if sampler != "auto" else "amed", nfe)


def untrained(model: object, sampler: str, nfe: int) -> Fitted:
    """The untrained solver at `nfe` evaluations, with the analytic first step if nfe is odd (multistep:
    without).

    Raises ValueError for a number the solver cannot take."""
    model_sampling = host.sampling_of(model)
    flow = host.is_flow(model_sampling)
    if sampler == "amed_multistep":
        return host.untrained(sampler, host.base_times(model_sampling, nfe + 1))
    if nfe < 2 - (not flow) or (flow and nfe % 2):
        raise ValueError(
            f"the untrained {sampler} cannot take {nfe} evaluations on this model: set nfe to "
            f"{'an even number' if flow else 'at least 1'}"
        )
    times = host.base_times(model_sampling, (nfe + 1) // 2 + 1)
    return host.untrained(sampler, times, afs=nfe % 2 == 1)


class AmedSampler(io.ComfyNode):
    """SAMPLER, for SamplerCustom and SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDSampler",
            display_name="AMED Sampler",
            description="A SAMPLER that runs an AMED predictor. Pair it with AMED Scheduler.",
            inputs=[
                io.Combo.Input(
                    "sampler", options=SOLVERS, tooltip="auto: the predictor's own; without a predictor, amed"
                ),
                io.Combo.Input(
                    "if_missing",
                    options=["error", "untrained"],
                    tooltip="when there is no predictor for the model: stop, or run the plain solver",
                ),
                Predictor.Input(
                    "predictor",
                    optional=True,
                    tooltip="left open: the one applied to the MODEL, or the library's for it",
                ),
            ],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, sampler, if_missing, predictor=None):
        if sampler == "auto":
            sampler = host.sampler_for(predictor) if predictor is not None else "amed"
        elif predictor is not None and predictor.spec.solver != solver_of(sampler).name:
            raise ValueError(
                f"{predictor.label} was fitted for {host.sampler_for(predictor)}, not for {sampler}: "
                f"set sampler to auto or {host.sampler_for(predictor)}"
            )
        return io.NodeOutput(host.sampler_object(sampler, predictor=predictor, if_missing=if_missing))

    @classmethod
    def fingerprint_inputs(cls, **_inputs):
        return host.library_state()


class AmedScheduler(io.ComfyNode):
    """SIGMAS a predictor was fitted on."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDScheduler",
            display_name="AMED Scheduler",
            description="The noise levels a predictor was fitted on.",
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input(
                    "sampler", options=SOLVERS, tooltip="for which sampler to look up a predictor"
                ),
                io.Int.Input(
                    "nfe",
                    default=5,
                    min=1,
                    max=100,
                    tooltip="evaluations: which predictor to look up. Unused with a predictor linked",
                ),
                io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01),
                Predictor.Input(
                    "predictor",
                    optional=True,
                    tooltip="left open: the one applied to the MODEL, or the library's for it",
                ),
            ],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, model, sampler, nfe, denoise, predictor=None):
        predictor = predictor or host.attached(model)
        if predictor is None:
            solver, order = asked(sampler if sampler != "auto" else "amed")
            predictor = host.find(host.identity(model), solver, nfe, 1.0, order)
        return io.NodeOutput(cut(predictor.sigmas(), model, denoise), ui=ui.PreviewText(predictor.label))

    @classmethod
    def fingerprint_inputs(cls, **_inputs):
        return host.library_state()


def asked(sampler: str) -> tuple[str | None, int | None]:
    """(solver, order) to look for; order only where one sampler name means one order."""
    if sampler == "auto":
        return None, None
    solver = solver_of(sampler)
    return solver.name, solver.max_order if solver.name == "dpmpp" else None


def cut(times: torch.Tensor, model: object, denoise: float) -> torch.Tensor:
    """The base times from the noise level on at which `denoise` of the model's time is left, float32.

    Raises ValueError when that is below the last time."""
    if denoise >= 1.0:
        return times.float()
    start = host.start_sigma(host.sampling_of(model), denoise)
    rest = times[times < start * 0.99]
    if len(rest) == 0:
        raise ValueError(
            f"denoise {denoise:g} starts at the noise level {start:.4g}, below this schedule's last one "
            f"({float(times[-1]):.4g}): nothing is left to do. Raise denoise"
        )
    return torch.cat([torch.tensor([start], dtype=times.dtype), rest]).float()


NODES = [LoadPredictor, ApplyPredictor, AmedSampler, AmedScheduler]
