"""The node AMED Plain Solver."""

from comfy_api.latest import io

from ..amed import schedules
from ..amed.fit import plain_solvers
from .host.model import sampling_of, sigma_range
from .host.register import as_sampler
from .host.sampling import plain_function
from .schema import schema


class PlainSolver(io.ComfyNode):
    """Make SAMPLER and SIGMAS of a solver without learned constants."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDPlainSolver",
            display_name="AMED Plain Solver",
            search_aliases=["amed", "ipndm", "dpm-solver", "time_uniform", "schedule", "few steps"],
            description="A solver without a predictor, at exactly nfe evaluations: the baseline that AMED "
            "has to beat.",
            inputs=[
                io.Model.Input("model", tooltip="The model that is sampled. Its noise levels are used."),
                io.Combo.Input(
                    "solver",
                    options=list(plain_solvers.SOLVERS),
                    default="iPNDM-3",
                    tooltip="The solver. iPNDM-2 is the safest choice with guidance.",
                ),
                io.Int.Input(
                    "nfe",
                    default=5,
                    min=1,
                    max=10_000,
                    tooltip="Number of network evaluations in a run, from noise to image.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(schedules.KINDS),
                    default="time_uniform",
                    tooltip="The schedule of noise levels. polynomial is karras; time_uniform is usually "
                    "better at few evaluations. For flow models: shift, or polynomial with rho 1 or 2.",
                ),
                io.Float.Input(
                    "rho",
                    default=1.0,
                    min=0.1,
                    max=20.0,
                    step=0.1,
                    tooltip="Curvature of the schedule; higher values place more steps at low noise. Usual: "
                    "7 for polynomial, the model's shift for shift, 1 for the others.",
                ),
                io.Boolean.Input(
                    "afs",
                    default=False,
                    tooltip="Analytic first step: saves one evaluation. Only used when sampling starts from "
                    "pure noise.",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="The solver, for SamplerCustom and SamplerCustomAdvanced."),
                io.Sigmas.Output(tooltip="The schedule's noise levels, for the node that gets the SAMPLER."),
            ],
        )

    @classmethod
    def execute(cls, model, solver, nfe, schedule, rho, afs):
        low, high = sigma_range(sampling_of(model))
        settings = plain_solvers.candidates(
            nfe, low, high, {solver: plain_solvers.SOLVERS[solver]}, ((schedule, rho),)
        )
        setting = next((s for s in settings if s.afs == afs), None)
        if setting is None:
            raise ValueError(
                f"{solver} {'with' if afs else 'without'} the analytic first step cannot take {nfe} "
                f"evaluations, only {'odd' if afs else 'even'} numbers: change nfe or afs"
            )
        return io.NodeOutput(as_sampler(plain_function(setting)), setting.sigmas().float())
