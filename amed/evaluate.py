"""How a model is asked outside a host (amed.loop.Evaluate): a U-Net's bottleneck by a hook, guidance's halves
by `Guided`. Hosts bring their own."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .loop import Denoiser, Evaluate, Evaluation, denoised_only


class FromModule:
    """The bottleneck is the output of `module` (a U-Net's middle block), by a forward hook that lives for one
    evaluation.

    Under classifier-free guidance the module sees more rows than the sampler; `conditional_first` says which
    end of them is conditional. The first output with enough rows is kept."""

    def __init__(self, module: nn.Module, conditional_first: bool = True):
        self.module, self.conditional_first = module, conditional_first

    def __call__(self, model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any],
                 wants: frozenset[str] = frozenset({"bottleneck"})) -> Evaluation:  # fmt: skip
        if "bottleneck" not in wants:
            return asked(model, x, sigma, extra_args, wants)
        seen: list[Tensor] = []

        def listen(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if not seen and len(output) >= len(x):
                rows = output.detach()
                seen.append(rows[: len(x)] if self.conditional_first else rows[-len(x) :])

        handle = self.module.register_forward_hook(listen)
        try:
            evaluation = asked(model, x, sigma, extra_args, wants)
        finally:
            handle.remove()
        return Evaluation(evaluation.denoised, seen[0] if seen else None, evaluation.cond, evaluation.uncond)


class Guided(nn.Module):
    """D = D_uncond + scale (D_cond - D_uncond) (Ho & Salimans 2022), both halves in one call, conditional
    first.

    Called as `guided(x, sigma, cond=..., uncond=...)`: dicts of the inner model's extra arguments, tensors of
    `[B, ...]`. At scale 1 the unconditional half is not computed."""

    def __init__(self, model: Denoiser, scale: float):
        super().__init__()
        self.model, self.scale = model, float(scale)

    def halves(
        self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor], uncond: dict[str, Tensor]
    ) -> Evaluation:
        """The denoised image, and what each half alone denoises to."""
        if self.scale == 1.0:
            return Evaluation(self.model(x, sigma, **cond))
        both = {key: torch.cat([cond[key], uncond[key]]) for key in cond}
        positive, negative = self.model(torch.cat([x, x]), torch.cat([sigma, sigma]), **both).chunk(2)
        return Evaluation(negative + self.scale * (positive - negative), None, positive, negative)

    def conditional(
        self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor], uncond: dict[str, Tensor]
    ) -> Evaluation:
        """What the conditional half alone denoises to, for one pass."""
        return Evaluation(self.model(x, sigma, **cond))

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor], uncond: dict[str, Tensor]) -> Tensor:
        return self.halves(x, sigma, cond, uncond).denoised


def asked(
    model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
) -> Evaluation:
    """amed.loop.Evaluate for Guided, and for modules that have a `halves` and a `conditional` like it."""
    alone = getattr(model, "conditional", None)
    if "cond" in wants and alone is not None:
        half: Evaluation = alone(x, sigma, **extra_args)
        return half
    halves = getattr(model, "halves", None)
    if "halves" in wants and halves is not None:
        both: Evaluation = halves(x, sigma, **extra_args)
        return both
    return Evaluation(model(x, sigma, **extra_args))


def dynamic_threshold(denoised: Tensor, quantile: float = 0.995) -> Tensor:
    """Imagen's dynamic thresholding, for pixel models only: clamp each sample to the quantile of its |x0|, at
    least 1, and divide by it."""
    # not torch.quantile, which takes 16 million values at most, and makes float64 of them
    ordered = denoised.abs().flatten(1).sort(dim=1).values
    rank = quantile * (ordered.shape[1] - 1)
    near = ordered[:, int(rank)], ordered[:, math.ceil(rank)]
    bound = torch.lerp(*near, rank - int(rank)).clamp(min=1.0)
    bound = bound.view(-1, *[1] * (denoised.ndim - 1))
    return denoised.clamp(-bound, bound) / bound


class Thresholded:
    """An Evaluate with dynamic thresholding, for pixel models; what a run ends in is left as it is, as the
    method's authors have it."""

    def __init__(self, evaluate: Evaluate = denoised_only):
        self.evaluate = evaluate

    def __call__(
        self, model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
    ) -> Evaluation:
        seen = self.evaluate(model, x, sigma, extra_args, wants)
        return seen if "end" in wants else replace(seen, denoised=dynamic_threshold(seen.denoised))
