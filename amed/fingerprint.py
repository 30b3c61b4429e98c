"""Which checkpoint is this? A short text that tells checkpoints apart and survives LoRA, prompts and
dtypes."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

PARAMETERS, VALUES = 16, 4096


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """16 hexadecimal digits for a network's (name, weight) pairs, such as `unet.named_parameters()`.

    Hashes shapes and signs of the first 4096 values of 16 matrices spread over the sorted names: signs are
    the same in float32, float16 and bfloat16, and any training flips some. Names serve for the order alone,
    so a common prefix does not matter. Raises ValueError where there is no matrix to look at."""
    matrices = sorted(
        ((n, w) for n, w in weights if w.ndim >= 2 and w.is_floating_point()), key=lambda item: item[0]
    )
    if not matrices:
        raise ValueError("the network has no weight matrix to take a fingerprint of")
    count = min(PARAMETERS, len(matrices))
    hash_ = hashlib.sha256()
    for i in range(count):
        weight = matrices[i * len(matrices) // count][1].detach()
        signs = (weight.flatten()[:VALUES].float() > 0).to("cpu", torch.uint8)
        hash_.update(str(tuple(weight.shape)).encode() + bytes(signs.tolist()))
    return hash_.hexdigest()[:16]
