"""Nodes for tests, put into the custom_nodes of the ComfyUI that runs them."""

from . import device, looks, small, without

NODE_CLASS_MAPPINGS = {
    name: node for room in (device, looks, without, small) for name, node in room.NODE_CLASS_MAPPINGS.items()
}
