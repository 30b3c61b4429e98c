"""Writes a checkpoint of Stable Diffusion 1.5's architecture, two levels deep, with random weights.

    python tests/comfyui/tiny_sd.py COMFYUI_FOLDER FILE

A process of its own, for it imports ComfyUI: the network is the host's own U-Net class.
"""

import sys


def main(comfyui: str, file: str) -> None:
    sys.path.insert(0, comfyui)
    sys.argv = ["tiny_sd", "--cpu"]
    import comfy.options
    import torch
    from safetensors.torch import save_file
    comfy.options.enable_args_parsing()
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, channel_mult=(1, 1),
        num_res_blocks=[1, 1], transformer_depth=[1, 0], transformer_depth_output=[1, 1, 0, 0],
        transformer_depth_middle=1, num_heads=8, context_dim=768, use_spatial_transformer=True,
        legacy=False, operations=comfy.ops.disable_weight_init)  # fmt: skip
    torch.manual_seed(0)
    weights = {}
    for name, weight in unet.state_dict().items():
        if weight.ndim < 2:
            value = torch.ones_like(weight) if name.endswith("weight") else torch.zeros_like(weight)
        else:
            value = torch.randn_like(weight) * (weight[0].numel() ** -0.5)
        weights[name] = value.half()
    save_file(weights, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
