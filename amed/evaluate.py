"""Evaluate a model outside a host (implementations of loop.Evaluate): capture a U-Net's bottleneck with a
hook, take the halves of guidance from `Guided`, and apply dynamic thresholding. Hosts have their own
implementations."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .loop import Denoiser, Evaluate, Evaluation, denoised_only


class FromModule:
    """Evaluates a model (see loop.Evaluate), and also returns the output of its U-Net's middle block (the
    bottleneck, input of an AMED predictor), captured by a forward hook.

    Args:
        module: the middle block.
        conditional_first: whether the conditional images come first in the model's batch under guidance, or
            last. Default: True."""

    def __init__(self, module: nn.Module, conditional_first: bool = True):
        self.module, self.conditional_first = module, conditional_first

    def __call__(self, model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any],
                 wants: frozenset[str] = frozenset({"bottleneck"})) -> Evaluation:  # fmt: skip
        if "bottleneck" not in wants:
            return evaluate_guided(model, x, sigma, extra_args, wants)
        captured: list[Tensor] = []

        def capture(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if not captured and len(output) >= len(x):
                rows = output.detach()
                captured.append(rows[: len(x)] if self.conditional_first else rows[-len(x) :])

        handle = self.module.register_forward_hook(capture)
        try:
            evaluation = evaluate_guided(model, x, sigma, extra_args, wants)
        finally:
            handle.remove()
        bottleneck = captured[0] if captured else None
        return Evaluation(evaluation.denoised, bottleneck, evaluation.cond, evaluation.uncond)


class Guided(nn.Module):
    """A denoiser with classifier-free guidance, D = D_uncond + scale (D_cond - D_uncond) (Ho & Salimans
    2022).

    Call it as guided(x, sigma, cond=..., uncond=...), where both are dicts of extra arguments for the model,
    tensors `[B, ...]`. D_cond and D_uncond are computed in one batch, D_cond first. At scale 1, D_uncond is
    not computed.

    Args:
        model: the denoiser without guidance, model(x, sigma, **cond) -> denoised.
        scale: the guidance scale."""

    def __init__(self, model: Denoiser, scale: float):
        super().__init__()
        self.model, self.scale = model, float(scale)

    def halves(
        self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor], uncond: dict[str, Tensor]
    ) -> Evaluation:
        """Return the guided denoised image, and the conditional and the unconditional one.

        At guidance scale 1 the last two are None: the guided image is then the conditional one."""
        if self.scale == 1.0:
            return Evaluation(self.model(x, sigma, **cond))
        both = {key: torch.cat([cond[key], uncond[key]]) for key in cond}
        positive, negative = self.model(torch.cat([x, x]), torch.cat([sigma, sigma]), **both).chunk(2)
        return Evaluation(negative + self.scale * (positive - negative), None, positive, negative)

    def conditional(
        self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor], uncond: dict[str, Tensor]
    ) -> Evaluation:
        """Return the denoised image for the condition `cond` alone, without guidance, which takes one network
        pass per sample instead of two."""
        return Evaluation(self.model(x, sigma, **cond))

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor], uncond: dict[str, Tensor]) -> Tensor:
        """Return the guided denoised image `[B, ...]`."""
        return self.halves(x, sigma, cond, uncond).denoised


def evaluate_guided(
    model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
) -> Evaluation:
    """Evaluate a denoiser with guidance. If `wants` contains "halves", also return the conditional and the
    unconditional result; if "cond", return only the conditional one.

    For these, `model` must be a `Guided` or have its methods `halves` and `conditional`; else it is just
    called. See loop.Evaluate for the arguments."""
    conditional = getattr(model, "conditional", None)
    if "cond" in wants and conditional is not None:
        half: Evaluation = conditional(x, sigma, **extra_args)
        return half
    halves = getattr(model, "halves", None)
    if "halves" in wants and halves is not None:
        both: Evaluation = halves(x, sigma, **extra_args)
        return both
    return Evaluation(model(x, sigma, **extra_args))


def dynamic_threshold(denoised: Tensor, quantile: float = 0.995) -> Tensor:
    """Apply Imagen's dynamic thresholding to the denoised images of a pixel model, `[B, ...]`.

    Each sample is clamped to plus or minus a bound and divided by it. The bound is the `quantile` of the
    sample's absolute values, but at least 1."""
    # torch.quantile takes 16 million values at most, and converts them to float64
    ordered = denoised.abs().flatten(1).sort(dim=1).values
    rank = quantile * (ordered.shape[1] - 1)
    near = ordered[:, int(rank)], ordered[:, math.ceil(rank)]
    bound = torch.lerp(*near, rank - int(rank)).clamp(min=1.0)
    bound = bound.view(-1, *[1] * (denoised.ndim - 1))
    return denoised.clamp(-bound, bound) / bound


class Thresholded:
    """A way to evaluate a model (loop.Evaluate) that applies dynamic thresholding to the denoised image, for
    pixel models.

    As in AMED's authors' code, the image at the end of the run is not thresholded."""

    def __init__(self, evaluate: Evaluate = denoised_only):
        self.evaluate = evaluate

    def __call__(
        self, model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
    ) -> Evaluation:
        evaluation = self.evaluate(model, x, sigma, extra_args, wants)
        if "end" in wants:
            return evaluation
        return replace(evaluation, denoised=dynamic_threshold(evaluation.denoised))
