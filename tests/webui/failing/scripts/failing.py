"""A WebUI's extension, for the tests of a real one: GET /failing?call=N has the U-Net raise OutOfMemoryError
at its Nth call from now on (0: it does not), and tells how many hooks of others the U-Net has."""

import torch
from modules import script_callbacks, shared

left, hook = 0, None


def network():
    model = shared.sd_model
    objects = getattr(model, "forge_objects", None)
    return (objects.unet.model if objects else model.model).diffusion_model


def called(module, inputs):
    global left
    left -= 1
    if left == 0:
        raise torch.OutOfMemoryError("Tried to allocate 1.00 GiB (made by a test)")


def failing(call: int = 0) -> dict:
    global left, hook
    if hook is not None:
        hook.remove()
    left, unet = call, network()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())
    hook = unet.register_forward_pre_hook(called) if call else None
    return {"hooks": hooks}


script_callbacks.on_app_started(lambda _, app: app.add_api_route("/failing", failing, methods=["GET"]))
