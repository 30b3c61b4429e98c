"""The node AMED Plain Solver."""

from comfy_api.latest import io

from ..amed import schedules
from ..amed.fit import plain
from .host.model import sampling_of, sigma_range
from .host.register import as_sampler
from .host.sampling import plain_function
from .schema import schema


class PlainSolver(io.ComfyNode):
    """A solver that learns nothing, at a setting of your choice -> SAMPLER and SIGMAS."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDPlainSolver",
            display_name="AMED Plain Solver",
            search_aliases=["amed", "ipndm", "dpm-solver", "time_uniform", "schedule", "few steps"],
            description="The solvers AMED starts from, without a predictor: what it has to beat, at "
            "exactly nfe evaluations.",
            inputs=[
                io.Model.Input("model", tooltip="for its noise levels"),
                io.Combo.Input(
                    "solver",
                    options=list(plain.SOLVERS),
                    default="iPNDM-3",
                    tooltip="iPNDM-2 is the safe one under guidance",
                ),
                io.Int.Input("nfe", default=5, min=1, max=10_000, tooltip="evaluations, one after the other"),
                io.Combo.Input(
                    "schedule",
                    options=list(schedules.KINDS),
                    default="time_uniform",
                    tooltip="polynomial is karras; time_uniform is usually better at few steps",
                ),
                io.Float.Input(
                    "rho",
                    default=1.0,
                    min=0.1,
                    max=20.0,
                    step=0.1,
                    tooltip="bends the schedule: 7 is usual for polynomial, 1 for the others",
                ),
                io.Boolean.Input(
                    "afs",
                    default=False,
                    tooltip="analytic first step: saves an evaluation; only from pure noise",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="for SamplerCustom and SamplerCustomAdvanced"),
                io.Sigmas.Output(tooltip="its noise levels, for the same node"),
            ],
        )

    @classmethod
    def execute(cls, model, solver, nfe, schedule, rho, afs):
        low, high = sigma_range(sampling_of(model))
        settings = plain.candidates(nfe, low, high, {solver: plain.SOLVERS[solver]}, ((schedule, rho),))
        setting = next((s for s in settings if s.afs == afs), None)
        if setting is None:
            raise ValueError(
                f"{solver} {'with' if afs else 'without'} the analytic first step cannot take {nfe} "
                f"evaluations: it takes 2 an interval{', less 1' if afs else ''}; change nfe or afs"
            )
        return io.NodeOutput(as_sampler(plain_function(setting)), setting.sigmas().float())
