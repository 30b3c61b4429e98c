"""Build the graph of a recipe, in API format."""

from dataclasses import dataclass
from typing import Any

from .ingredients import INGREDIENTS
from .recipe import Recipe, to_json
from .scene import WATCH, Scene
from .ways import WAYS, Sampled

WHOLE, LIST, NUMBERED, START = "whole", "list", "numbered", "start"


@dataclass
class Built:
    """A graph, and the nodes whose output is checked."""

    nodes: dict[str, dict[str, Any]]
    sampled: Sampled
    saved: str = ""
    """Id of the SaveLatent node."""
    counts_node: str = ""
    """Id of the GraphSeen node, which counts the network's calls."""
    after: str = ""
    """Id of the GraphAfter node, which reports changes left on the MODEL."""


def build(recipe: Recipe, variant: str = WHOLE, looks: bool = True) -> Built:
    """Build the graph of a recipe.

    Args:
        variant: the whole batch; the batch with numbered images, for which the host draws noise one by one;
            each image in a list; one image, by its number; or the LATENT before sampling.
        looks: whether to add the nodes that count and compare."""
    scene = Scene(recipe.base, recipe.settings)
    for name, inputs in recipe.ingredients:
        INGREDIENTS[name].put(scene, **inputs)
    around = {**scene.around(), "cfg": recipe["cfg"], "name": to_json(recipe)}
    if looks:
        scene.model = [scene.add("GraphBefore", **around), 0]
    if fault := recipe.settings.get("fault"):  # set only by test_graphs.py
        scene.patch("GraphFault", which=fault)
    if variant == START:
        saved = scene.add("SaveLatent", samples=scene.latent, filename_prefix="graphs")
        return Built(scene.nodes, Sampled(), saved)
    if variant == LIST:
        scene.latent = [scene.add("RebatchLatents", latents=scene.latent, batch_size=1), 0]
    elif variant != WHOLE:
        first, length = (0, 64) if variant == NUMBERED else (int(variant), 1)
        picked = {"samples": scene.latent, "batch_index": first, "length": length}
        scene.latent = [scene.add("LatentFromBatch", **picked), 0]
    sampled = WAYS[recipe.way].put(scene, recipe.settings)
    built = Built(scene.nodes, sampled)
    if sampled.latent is not None:
        built.saved = scene.add("SaveLatent", samples=sampled.latent, filename_prefix="graphs")
    if looks:
        last_output = sampled.latent or sampled.finished
        built.counts_node = scene.add("GraphSeen", name=WATCH, after=last_output)
        waited = {**around, "after": [built.counts_node, 0]}
        waited["model"] = scene.nodes[scene.model[0]]["inputs"]["model"] if fault else scene.model
        built.after = scene.add("GraphAfter", **waited)
    return built
