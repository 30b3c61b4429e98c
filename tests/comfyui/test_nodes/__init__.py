"""Nodes for tests, put into the custom_nodes of the ComfyUI that runs them."""

from . import graph_nodes, inspection, lists, missing_features, other_device, small_models, stateful, wrappers

MODULES = (other_device, lists, inspection, small_models, stateful, graph_nodes, missing_features, wrappers)
NODE_CLASS_MAPPINGS = {name: node for module in MODULES for name, node in module.NODE_CLASS_MAPPINGS.items()}
assert len(NODE_CLASS_MAPPINGS) == sum(len(module.NODE_CLASS_MAPPINGS) for module in MODULES), (
    "two nodes have the same name"
)
