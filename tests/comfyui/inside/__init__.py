"""Nodes for tests, put into the custom_nodes of the ComfyUI that runs them."""

from . import looks, small, without, wraps

NODE_CLASS_MAPPINGS = {
    name: node for room in (looks, without, small, wraps) for name, node in room.NODE_CLASS_MAPPINGS.items()
}
