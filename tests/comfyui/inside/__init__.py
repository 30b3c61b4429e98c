"""Nodes for tests, put into the custom_nodes of the ComfyUI that runs them."""

from . import looks, small, watch, without

NODE_CLASS_MAPPINGS = {
    name: node for room in (looks, without, small, watch) for name, node in room.NODE_CLASS_MAPPINGS.items()
}
