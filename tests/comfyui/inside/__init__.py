"""Nodes for tests, put into the custom_nodes of the ComfyUI that runs them."""

from . import lists, looks, small, without

NODE_CLASS_MAPPINGS = {
    name: node for room in (looks, without, small, lists) for name, node in room.NODE_CLASS_MAPPINGS.items()
}
