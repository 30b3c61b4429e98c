"""Evaluations of ComfyUI's denoiser (amed.loop.Evaluate): denoised image, bottleneck, halves of guidance.

Nothing stays on a MODEL: hooks are set on a copy of the options, for one evaluation. Host: sampling_function
and KSamplerX0Inpaint in comfy/samplers.py."""

from typing import Any

from torch import Tensor

from ...amed import Evaluation
from .denoiser import guider_of, inpaint_denoiser
from .hooks import mask_at, prompts_of_call, watch_halves, watch_middle
from .log import warn_once
from .model import copied_options

BOTTLENECK, HALVES, COND = "bottleneck", "halves", "cond"
MISSING = {
    BOTTLENECK: "no bottleneck could be captured from this model: the AMED predictor is fed zeros",
    HALVES: "the halves of guidance could not be captured from this model: guidance is not split",
}


def evaluate(
    model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
) -> Evaluation:
    """Evaluate ComfyUI's denoiser and return the denoised images, with additional outputs for a solver.

    Args:
        model: the denoiser.
        x: states `[B, ...]`.
        sigma: noise levels `[B]`.
        extra_args: the run's arguments.
        wants: names of the additional outputs. `bottleneck`: the output of the U-Net's middle block for the
            positive prompt. `halves`: the images denoised with the positive prompt alone and with the
            negative prompt alone, before other packs change guidance. `cond`: instead of the guided images,
            return those denoised with the positive prompt alone.

    Returns:
        The evaluation; an output that the model cannot give is None."""
    if COND in wants:
        return Evaluation(conditional(model, x, sigma, extra_args))
    if not wants & MISSING.keys():
        return Evaluation(model(x, sigma, **extra_args))
    options, seen = copied_options(extra_args), dict[str, Tensor]()
    if BOTTLENECK in wants:
        capture_bottleneck(options, positive_ids(model), len(x), seen)
    if HALVES in wants:
        capture_halves(options, seen)
    denoised = model(x, sigma, **{**extra_args, "model_options": options})
    halves = (with_original(model, sigma, extra_args, seen.get(name)) for name in ("cond", "uncond"))
    result = Evaluation(denoised, seen.get(BOTTLENECK), *halves)
    if HALVES in wants and result.cond is None:  # for a missing bottleneck the engine warns
        warn_once(MISSING[HALVES])
    return result


def conditional(model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Tensor:
    """Return the images denoised with the positive prompt alone, i.e. at guidance 1.

    They are computed in float32: ComfyUI divides the skipped negative prompt's result, 0, by 1e-37, which
    fp16 would round to 0."""
    guider = guider_of(model)
    scale, guider.cfg = guider.cfg, 1.0
    try:
        return model(x.float(), sigma.float(), **extra_args).to(x.dtype)
    finally:
        guider.cfg = scale


def missing_outputs(evaluation: Evaluation, wants: frozenset[str]) -> list[str]:
    """Return a message for each output that a solver wants but the model could not give.

    Args:
        evaluation: the outputs that the model gave.
        wants: names of the outputs that the solver wants, as in `evaluate`."""
    outputs = {
        BOTTLENECK: evaluation.bottleneck,
        HALVES: evaluation.denoised if COND in wants else evaluation.cond,
    }
    return [text for name, text in MISSING.items() if name in wants and outputs[name] is None]


def capture_bottleneck(options: dict, positive: set, batch: int, seen: dict[str, Tensor]) -> None:
    """Set hooks on an evaluation's options that store the output of the U-Net's middle block (bottleneck).

    Args:
        options: the evaluation's model options, which are changed in place.
        positive: ids of the positive prompts, whose part of the output is stored.
        batch: the number of images.
        seen: the dict in which the output `[batch, C, H, W]` is stored as "bottleneck"."""

    def capture(h: Tensor, network_options: dict) -> None:
        rows = None if BOTTLENECK in seen else conditional_rows(h, network_options, positive, batch)
        if rows is not None:
            seen[BOTTLENECK] = rows

    watch_middle(options, capture)


def capture_halves(options: dict, seen: dict[str, Tensor]) -> None:
    """Set a hook on an evaluation's options that stores the denoised images of each prompt.

    They are stored in the dict `seen`: of the positive prompt as "cond", of the negative one as "uncond"."""

    def capture(denoised: list[Tensor], prompts: list) -> None:
        for name, prompt, half in zip(("cond", "uncond"), prompts, denoised):
            if prompt is not None and name not in seen:
                seen[name] = half.clone()  # other packs may change the original in place

    watch_halves(options, capture)


def positive_ids(model: Any) -> set:
    """Return the ids of the positive prompts of the guider that samples."""
    conds = getattr(guider_of(model), "conds", None) or {}
    positive = [
        cond for name, listed in conds.items() if name.startswith("positive") for cond in listed or []
    ]
    return {cond["uuid"] for cond in positive if "uuid" in cond}


def conditional_rows(h: Tensor, network_options: dict, positive: set, batch: int) -> Tensor | None:
    """Return the positive prompt's part `[B, C, H, W]` of the output of a U-Net's middle block.

    Args:
        h: the output `[prompts * B, C, H, W]` for all prompts of the call.
        network_options: the options of this call of the network (`transformer_options`).
        positive: ids of the positive prompts. If ComfyUI gives no ids, the prompt with 0 in `cond_or_uncond`
            is used, which may be wrong for guiders with more than two prompts and with attention guidance.
        batch: the number of images, B.

    Returns:
        The part; None if this call of the network has no positive prompt."""
    indices, ids = prompts_of_call(network_options)
    if h.ndim != 4 or len(h) != batch * len(indices):
        return None
    for i, index in enumerate(indices):
        if (ids[i] in positive) if ids and positive else index == 0:
            return h[i * batch : (i + 1) * batch].detach().clone()
    return None


def with_original(
    model: Any, sigma: Tensor, extra_args: dict[str, Any], half: Tensor | None
) -> Tensor | None:
    """Return the image denoised with one prompt, with the original image outside the inpainting mask.

    Returns None if the original image cannot be found.

    Args:
        model: ComfyUI's denoiser.
        sigma: the noise level.
        extra_args: the run's arguments.
        half: the image denoised with the positive or the negative prompt alone, or None (then the result is
            None too)."""
    mask = extra_args.get("denoise_mask")
    if mask is None or half is None:
        return half
    host = inpaint_denoiser(model)
    if host is None:
        return None
    mask = mask_at(extra_args.get("model_options") or {}, mask, sigma, host)
    return half * mask + host.latent_image * (1 - mask)
