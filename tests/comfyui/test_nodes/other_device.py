"""The host on another device: the one whose file AMED_TEST_DEVICE names (tests/no_float64.py), in the host's
own mode for devices it does not know (DirectML's)."""

import importlib.util
import os

import comfy.model_management

from .shared import patched


def moved():
    """Put the host on that device."""
    spec = importlib.util.spec_from_file_location("no_float64", os.environ["AMED_TEST_DEVICE"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    host = comfy.model_management
    host.directml_enabled, host.directml_device = True, module.device()


if "AMED_TEST_DEVICE" in os.environ:
    moved()


class TestWhere:
    """MODEL -> MODEL whose network runs on a device of this name, or fails."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "device": ("STRING", {})}}

    def run(self, model, device):
        def asked(network, told):
            out = network(told["input"], told["timestep"], **told["c"])
            found = {told["input"].device.type, told["timestep"].device.type, out.device.type}
            if found != {device}:
                raise RuntimeError(f"the network ran on {found}, not on {device}")
            return out

        return patched(model, lambda m: m.set_model_unet_function_wrapper(asked))


NODE_CLASS_MAPPINGS = {"TestWhere": TestWhere}
