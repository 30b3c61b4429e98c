"""AMED for ComfyUI: the door. Other hosts never import this file."""

import logging

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """What ComfyUI asks for: the pack's nodes. The dropdown entries are added on the way."""
    from comfy_api.latest import ComfyExtension

    from .nodes import (
        calibrate,
        compare,
        compare_grid,
        demo_model,
        files,
        predictors,
        register,
        sampler,
        train,
        trajectory,
    )

    for problem in register.register():
        logging.warning("AMED: %s", problem)

    class Amed(ComfyExtension):
        async def get_node_list(self):
            rooms = (sampler, calibrate, compare_grid, trajectory, predictors, files, train)
            rooms += (compare, demo_model)
            return [node for room in rooms for node in room.NODES]

    return Amed()
