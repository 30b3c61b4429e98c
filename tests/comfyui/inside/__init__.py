"""Nodes for tests, put into the custom_nodes of the ComfyUI that runs them."""

from . import device, lists, looks, small, stateful, watch, without, wraps

ROOMS = (device, lists, looks, small, stateful, watch, without, wraps)
NODE_CLASS_MAPPINGS = {name: node for room in ROOMS for name, node in room.NODE_CLASS_MAPPINGS.items()}
assert len(NODE_CLASS_MAPPINGS) == sum(len(room.NODE_CLASS_MAPPINGS) for room in ROOMS), "two of one name"
