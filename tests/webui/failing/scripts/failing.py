"""A WebUI extension for tests of a real host: GET /failing?call=N makes the U-Net run out of memory.

It raises OutOfMemoryError at its Nth call from now on (0: never). The answer has the number of other hooks on
the U-Net."""

import torch
from modules import script_callbacks, shared

calls_left, hook = 0, None


def network():
    model = shared.sd_model
    objects = getattr(model, "forge_objects", None)
    return (objects.unet.model if objects else model.model).diffusion_model


def called(module, inputs):
    global calls_left
    calls_left -= 1
    if calls_left == 0:
        raise torch.OutOfMemoryError("Tried to allocate 1.00 GiB (made by a test)")


def failing(call: int = 0) -> dict:
    global calls_left, hook
    if hook is not None:
        hook.remove()
    calls_left, unet = call, network()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())
    hook = unet.register_forward_pre_hook(called) if call else None
    return {"hooks": hooks}


script_callbacks.on_app_started(lambda _, app: app.add_api_route("/failing", failing, methods=["GET"]))
