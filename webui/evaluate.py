"""The conditional rows of the U-Net's middle block during one evaluation, whatever order a WebUI runs them
in.

A denoiser call of a WebUI is one or several calls of its U-Net, with the rows of prompt and negative prompt
in an order of the host's own:

- A1111 (modules/sd_samplers_cfg_denoiser.py, 1.10.1): all prompt rows first, image by image, several for an
image whose prompt has AND; then the negative ones; together or cut into calls in that order; without the
negative ones where `s_min_uncond` or `skip_early_cond` leaves them out. - Forge and reForge
(backend/sampling/sampling_function.py): one chunk of all images for each prompt of AND and for the negative
one, in reversed order, `transformer_options["cond_or_uncond"]` with 0 for prompts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Seen:
    """One call of the U-Net: its middle block's output `[R, C, H, W]`, and what its chunks are (0 a prompt,
    1 the negative one), if the host says so."""

    output: Tensor
    chunks: list[int] | None = None


def in_order(seen: list[Seen], count: int, extra_args: dict[str, Any]) -> Tensor | None:
    """A1111: of each image the row of its first prompt, `[count, C, H, W]`; None if there are too few."""
    prompts = getattr(extra_args.get("cond"), "batch", None)
    repeats = [len(image) for image in prompts] if prompts is not None else [1] * count
    if len(repeats) != count:
        return None
    rows = [sum(repeats[:i]) for i in range(count)]
    outputs = torch.cat([s.output for s in seen]) if len({s.output.shape[1:] for s in seen}) == 1 else None
    return outputs[rows] if outputs is not None and len(outputs) > rows[-1] else None


def by_chunks(seen: list[Seen], count: int, extra_args: dict[str, Any]) -> Tensor | None:
    """Forge, reForge: the last prompt chunk, which is the first prompt's, as they run in reversed order."""
    for call in reversed(seen):
        chunks = call.chunks or []
        if len(call.output) != count * len(chunks):
            continue
        prompts = [i for i, kind in enumerate(chunks) if kind == 0]
        if prompts:
            return call.output[prompts[-1] * count :][:count]
    return None


class RowCapture:
    """amed.bottleneck.Capture by a forward hook on `unet().middle_block[-1]`, for one evaluation at a time.

    unet: the module now in use (a refiner may have replaced it), None for a model that has no U-Net. rows:
    `in_order` or `by_chunks`. `failed` counts the evaluations whose rows could not be told: these get None,
    which the predictor takes as zeros."""

    def __init__(
        self,
        unet: Callable[[], nn.Module | None],
        rows: Callable[[list[Seen], int, dict[str, Any]], Tensor | None],
    ):
        self.unet, self.rows, self.failed = unet, rows, 0

    def __call__(
        self, model: Callable[..., Tensor], x: Tensor, sigma: Tensor, extra_args: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        unet = self.unet()
        middle = getattr(unet, "middle_block", None)
        if middle is None:
            self.failed += 1
            return model(x, sigma, **extra_args), None
        seen: list[Seen] = []
        chunks: list[list[int] | None] = [None]

        def entered(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            options = kwargs.get("transformer_options") or {}
            chunks[0] = options.get("cond_or_uncond")

        def left(_module: nn.Module, _args: tuple, output: Tensor) -> None:
            seen.append(Seen(output.detach(), chunks[0]))

        handles = [
            unet.register_forward_pre_hook(entered, with_kwargs=True),
            middle[-1].register_forward_hook(left),
        ]
        try:
            denoised = model(x, sigma, **extra_args)
        finally:  # an interruption is a BaseException
            for handle in handles:
                handle.remove()
        found = self.rows(seen, len(x), extra_args) if seen else None
        self.failed += found is None
        return denoised, found
