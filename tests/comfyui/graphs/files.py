"""Files that random graphs need beside the pack: predictors of each kind, and LoRAs."""

from pathlib import Path

import torch
from comfyui.predictor_kinds import write_files
from safetensors.torch import save_file

LORAS = {"sd15": (128, 64), "file": (320, 768)}  # widths of the middle block and of the prompts


def write(base: Path) -> list[Path]:
    """Write the files into a server's folders; return the predictor files."""
    folder = base / "models" / "amed_predictors"
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    write_files(folder)
    loras = base / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    for name, (width, tokens) in LORAS.items():
        write_lora(loras / f"graphs-{name}.safetensors", width, tokens)
    return sorted(set(folder.iterdir()) - before)


def write_lora(path: Path, width: int, tokens: int) -> None:
    """Write a LoRA of rank 2 on two layers of the middle block."""
    drawn, tensors = torch.Generator().manual_seed(5), {}
    for name, inside in (("attn1_to_q", width), ("attn2_to_v", tokens)):
        key = f"lora_unet_middle_block_1_transformer_blocks_0_{name}"
        tensors[f"{key}.lora_down.weight"] = torch.randn(2, inside, generator=drawn)
        tensors[f"{key}.lora_up.weight"] = torch.randn(width, 2, generator=drawn)
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
