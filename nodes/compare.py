"""To compare samplers fairly: the plain solvers at any of their settings, and evaluations counted around the
MODEL."""

from comfy_api.latest import io

from ..amed import schedules
from ..amed.fit import plain_solvers
from .counting import Tally, count_of, counting, read_count, used
from .model import sampling_of, sigma_range
from .register import as_sampler
from .running import executing, face
from .sampling import plain_function
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
                    options=list(plain_solvers.SOLVERS),
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
        settings = plain_solvers.candidates(
            nfe, low, high, {solver: plain_solvers.SOLVERS[solver]}, ((schedule, rho),)
        )
        setting = next((s for s in settings if s.afs == afs), None)
        if setting is None:
            raise ValueError(
                f"{solver} {'with' if afs else 'without'} the analytic first step cannot take {nfe} "
                f"evaluations: it takes 2 an interval{', less 1' if afs else ''}; change nfe or afs"
            )
        return io.NodeOutput(as_sampler(plain_function(setting)), setting.sigmas().float())


class CountEvaluations(io.ComfyNode):
    """MODEL -> a MODEL that counts what is asked of it."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDCountEvaluations",
            display_name="AMED Count Evaluations",
            search_aliases=["amed", "nfe", "count steps"],
            description="Put before any sampler; read the count with AMED Evaluations Used after it.",
            inputs=[io.Model.Input("model", tooltip="stays as it is: a copy counts")],
            outputs=[io.Model.Output(tooltip="for any sampler, and for AMED Evaluations Used")],
        )

    @classmethod
    def execute(cls, model):
        return io.NodeOutput(counting(model))


class EvaluationsUsed(io.ComfyNode):
    """The count of the node that made a LATENT, which goes through, so that it is read after sampling."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDEvaluationsUsed",
            display_name="AMED Evaluations Used",
            search_aliases=["amed", "nfe", "count steps"],
            description="How many evaluations the sampler before it took, counted around the network.",
            inputs=[
                io.Model.Input("model", tooltip="from AMED Count Evaluations"),
                io.Latent.Input("samples", tooltip="of the sampler that is counted"),
            ],
            outputs=[
                io.Latent.Output(tooltip="the same samples"),
                io.Int.Output(display_name="evaluations", tooltip="one after the other"),
                io.Int.Output(
                    display_name="rows", tooltip="images through the network; guidance doubles them"
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, samples):
        count, now = count_of(model), executing()
        if now is None:  # a host that does not say which node runs
            tally = Tally(*read_count(model))
        else:
            tally = used(count.name, cls.hidden.dynprompt, now.node, now.item)
        text = f"{tally.evaluations} evaluations, {tally.rows} rows through the network"
        return io.NodeOutput(samples, tally.evaluations, tally.rows, ui=face(cls.hidden.unique_id, text))


NODES = [PlainSolver, CountEvaluations, EvaluationsUsed]
