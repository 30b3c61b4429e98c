"""Run the host on another device: the one in the file that AMED_TEST_DEVICE names (tests/no_float64.py).

The host's mode for unknown devices (DirectML's) is used."""

import importlib.util
import os

import comfy.model_management

from .shared import patched


def move_host():
    """Move the host to that device."""
    spec = importlib.util.spec_from_file_location("no_float64", os.environ["AMED_TEST_DEVICE"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    host = comfy.model_management
    host.directml_enabled, host.directml_device = True, module.device()


if "AMED_TEST_DEVICE" in os.environ:
    move_host()


class TestWhere:
    """MODEL -> MODEL that raises if its network does not run on a device of this type."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "device": ("STRING", {})}}

    def run(self, model, device):
        def check_device(network, args):
            out = network(args["input"], args["timestep"], **args["c"])
            devices = {args["input"].device.type, args["timestep"].device.type, out.device.type}
            if devices != {device}:
                raise RuntimeError(f"the network ran on {devices}, not on {device}")
            return out

        return patched(model, lambda m: m.set_model_unet_function_wrapper(check_device))


NODE_CLASS_MAPPINGS = {"TestWhere": TestWhere}
