"""Nodes that give lists, other nodes and other checkpoints, and numbers as other packs give them."""

import copy

import comfy.model_patcher
import torch
from comfy_execution.graph_utils import GraphBuilder

from .shared import PROMPTS


class TestSeed:
    """A text as an INT of any size."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("INT",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("STRING", {})}}

    def run(self, value):
        return (int(value),)


class TestModels:
    """Two MODELs as a list, so that the nodes after it run twice."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_IS_LIST = ("MODEL",), "run", "test", (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"first": ("MODEL",), "second": ("MODEL",)}}

    def run(self, first, second):
        return ([first, second],)


class TestCheckpoint:
    """A MODEL of the same network with other weights."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        other = copy.copy(model.model)  # in newer hosts the configuration cannot be deep-copied
        other._modules = dict(other._modules)
        other.diffusion_model = copy.deepcopy(model.model.diffusion_model)
        drawn = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in other.diffusion_model.parameters():
                noise = torch.randn(weight.shape, generator=drawn)
                weight.add_(noise.to(weight) * (0.1 * float(weight.std() if weight.numel() > 1 else 0)))
        return (comfy.model_patcher.ModelPatcher(other, model.load_device, model.offload_device),)


class TestExpands:
    """LATENT -> LATENT sampled by a KSampler, and counted by a node, both of which this node creates while it
    runs."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT", "INT"), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": PROMPTS | {"steps": ("INT", {})}}

    def run(self, model, positive, negative, latent_image, steps):
        graph = GraphBuilder()
        around = {"model": model, "positive": positive, "negative": negative, "latent_image": latent_image}
        sampled = graph.node("KSampler", **around, seed=3, steps=steps, cfg=1.0, sampler_name="euler",
                             scheduler="normal", denoise=1.0)  # fmt: skip
        read = graph.node("AMEDEvaluationsUsed", model=model, samples=sampled.out(0))
        return {"result": (sampled.out(0), read.out(1)), "expand": graph.finalize()}


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (TestSeed, TestModels, TestCheckpoint, TestExpands)}
