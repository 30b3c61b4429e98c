"""The modular nodes: load a predictor, put it on a MODEL, make a SAMPLER and SIGMAS of it."""

import torch
from comfy_api.latest import io, ui

from ..amed import SAMPLERS
from ..amed.sampling import solver_of
from . import host
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
            "and its amed schedule is the predictor's own.",
            inputs=[io.Model.Input("model"), Predictor.Input("predictor")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, predictor):
        lines = [
            predictor.label,
            f"KSampler: sampler {host.sampler_for(predictor)}, scheduler {host.SCHEDULER}, "
            f"steps {predictor.spec.num_steps - 1}, cfg {predictor.spec.guidance:g}: "
            f"{predictor.nfe} evaluations",
        ]
        lines += [
            f"note: {m}" for m in host.mismatches(predictor, host.identity(model), predictor.spec.guidance)
        ]
        return io.NodeOutput(host.attach(model, predictor), ui=ui.PreviewText("\n".join(lines)))


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
