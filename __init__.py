"""The entry point of the pack for ComfyUI. No other host imports this file."""

import logging

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the pack's nodes to ComfyUI, and add its samplers and schedule to ComfyUI's lists."""
    from comfy_api.latest import ComfyExtension

    from .nodes.apply_predictor import ApplyPredictor
    from .nodes.calibrate import Calibrate
    from .nodes.compare import Compare
    from .nodes.count_evaluations import CountEvaluations
    from .nodes.demo_decode import DemoDecode
    from .nodes.demo_model import DemoModel
    from .nodes.demo_prompt import DemoPrompt
    from .nodes.evaluations_used import EvaluationsUsed
    from .nodes.host.register import register
    from .nodes.ksampler import AmedKSampler
    from .nodes.load_predictor import LoadPredictor
    from .nodes.plain_solver import PlainSolver
    from .nodes.predictor_info import PredictorInfo
    from .nodes.sampler import AmedSampler
    from .nodes.save_predictor import SavePredictor
    from .nodes.scheduler import AmedScheduler
    from .nodes.train_predictor import TrainPredictor
    from .nodes.trajectory_plot import TrajectoryPlot

    for problem in register():
        logging.warning("AMED: %s", problem)

    class Amed(ComfyExtension):
        async def get_node_list(self):
            return [
                AmedKSampler,
                Calibrate,
                Compare,
                TrajectoryPlot,
                LoadPredictor,
                ApplyPredictor,
                AmedSampler,
                AmedScheduler,
                PredictorInfo,
                SavePredictor,
                TrainPredictor,
                PlainSolver,
                CountEvaluations,
                EvaluationsUsed,
                DemoModel,
                DemoPrompt,
                DemoDecode,
            ]

    return Amed()
