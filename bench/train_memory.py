"""Measure the memory of a gradient through a Stable Diffusion 1.5 U-Net, beside an evaluation without one.

    python bench/train_memory.py [COMFYUI_FOLDER]

The network is ComfyUI's U-Net class at full size with random weights, float32 on the CPU, batch 1, for one
512 x 512 image (a latent of 64 x 64). The figure is the peak resident memory of a separate process, less what
it holds after loading the weights."""

import argparse
import importlib.util
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODES = {
    "evaluate": "an evaluation, as in sampling",
    "train": "an evaluation and its gradient, with checkpointed blocks (Train AMED Predictor)",
    "train, nothing checkpointed": "the same, with all activations kept",
}


def peak() -> float:
    """Return this process's peak resident memory, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(comfyui: str, mode: str) -> float:
    """Return the GB of memory that one evaluation of a Stable Diffusion 1.5 U-Net adds.

    It includes the gradient unless `mode` is "evaluate". Imports ComfyUI into this process."""
    sys.path.insert(0, comfyui)
    sys.argv = ["train_memory", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    spec = importlib.util.spec_from_file_location(
        "pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    pack = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = pack
    from pack.nodes.host import training

    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, channel_mult=(1, 2, 4, 4),
        num_res_blocks=[2, 2, 2, 2], transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], transformer_depth_middle=1,
        num_heads=8,
        context_dim=768, use_spatial_transformer=True, legacy=False,
        operations=comfy.ops.disable_weight_init,
    ).requires_grad_(False)  # fmt: skip
    for weight in unet.parameters():
        weight.normal_(0, 0.02)
    if mode == "train":
        training.checkpoint_blocks(unet)
    x, t, context = torch.randn(1, 4, 64, 64), torch.tensor([500.0]), torch.randn(1, 77, 768)
    before = peak()
    with torch.set_grad_enabled(mode != "evaluate"):
        out = unet(x.requires_grad_(mode != "evaluate"), t, context)
        if mode != "evaluate":
            out.square().mean().backward()
    return peak() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comfyui", nargs="?", default=str(ROOT / ".comfyui"))
    parser.add_argument("--mode", choices=list(MODES), help="only measure this one, in this process")
    args = parser.parse_args()
    if args.mode:
        print(f"{measure(args.comfyui, args.mode):.2f}")
        return
    print("| | GB |\n|---|---|")
    for mode, text in MODES.items():
        command = [sys.executable, __file__, args.comfyui, "--mode", mode]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"| {text} | {printed.split()[-1]} |", flush=True)


if __name__ == "__main__":
    main()
