"""Write checkpoints with random weights: Stable Diffusion 1.5's architecture with two levels, and SDXL's (as
in Segmind-Vega) with 320 channels at every level.

    python tests/comfyui/tiny_sd.py COMFYUI_FOLDER FOLDER

A separate process, because it imports ComfyUI: the networks are of the host's own U-Net class."""

import sys
from pathlib import Path

PREFIX = "model.diffusion_model."  # where checkpoints of these models keep their U-Net
SETTINGS = {
    "tiny_sd15": {
        "channel_mult": (1, 1), "num_res_blocks": [1, 1], "transformer_depth": [1, 0], "num_heads": 8,
        "transformer_depth_output": [1, 1, 0, 0], "transformer_depth_middle": 1, "context_dim": 768,
    },
    "tiny_sdxl": {
        "channel_mult": (1, 1, 1), "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2], "transformer_depth_middle": 2,
        "num_head_channels": 64, "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential",
        "use_linear_in_transformer": True,
    },
}  # fmt: skip


def imports(comfyui: str) -> None:
    """Make ComfyUI's modules importable, as on a machine without a GPU."""
    sys.path.insert(0, comfyui)
    sys.argv = ["tiny", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()


def network(name: str):
    """Return the U-Net of SETTINGS, with untrained weights."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(image_size=32, in_channels=4, out_channels=4, model_channels=320, legacy=False,
                     use_spatial_transformer=True, operations=comfy.ops.disable_weight_init,
                     **SETTINGS[name])  # fmt: skip


def weights(network, prefix: str) -> dict:
    """Return random weights whose scale keeps signals bounded."""
    import torch

    torch.manual_seed(0)
    block, tensors = torch.randn(1_000_003).half(), {}
    for key, weight in network.state_dict().items():
        if weight.ndim < 2:
            value = torch.ones_like(weight) if key.endswith(("weight", "scale")) else torch.zeros_like(weight)
        elif weight.numel() > 4_000_000:  # drawing each separately is slow
            value = block.repeat(weight.numel() // len(block) + 1)[: weight.numel()].view(weight.shape)
            value *= weight[0].numel() ** -0.5
        else:
            value = torch.randn_like(weight) * (weight[0].numel() ** -0.5)
        tensors[prefix + key] = value.half()
    return tensors


def main(comfyui: str, folder: str) -> None:
    imports(comfyui)
    from safetensors.torch import save_file

    for name in SETTINGS:
        save_file(weights(network(name), PREFIX), Path(folder) / f"{name}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
