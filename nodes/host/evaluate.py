"""How the host's denoiser is asked (amed.loop.Evaluate): its image, its bottleneck, the halves of guidance.

Nothing stays on a MODEL: what one evaluation needs is put on a copy of its options. Host: comfy/samplers.py
(sampling_function, KSamplerX0Inpaint), and the patches of its U-Nets (transformer_options)."""

from typing import Any

from torch import Tensor

from ...amed import Evaluation
from .denoiser import guider_of, inpainting
from .hooks import mask_at, prompts_of_call, watch_halves, watch_middle
from .log import warn_once
from .model import own_options

BOTTLENECK, HALVES, COND = "bottleneck", "halves", "cond"
LACKING = {
    BOTTLENECK: "no bottleneck could be captured from this model: the AMED predictor is fed zeros",
    HALVES: "the halves of guidance could not be captured from this model: guidance is taken as one",
}


def evaluate(
    model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
) -> Evaluation:
    """amed.loop.Evaluate for the host's denoiser, by patches on a copy of this one evaluation's options.

    The bottleneck: conditional rows of the middle block's output, the first capture. The halves: what the
    positive and the negative prompt alone denoise to, before anything of other packs; uncond None where
    guidance is off. What the model cannot give is None, with one warning."""
    if COND in wants:
        return Evaluation(conditional(model, x, sigma, extra_args))
    if not wants & LACKING.keys():
        return Evaluation(model(x, sigma, **extra_args))
    options, seen = own_options(extra_args), dict[str, Tensor]()
    if BOTTLENECK in wants:
        keep_bottleneck(options, positive_ids(model), len(x), seen)
    if HALVES in wants:
        keep_halves(options, seen)
    denoised = model(x, sigma, **{**extra_args, "model_options": options})
    halves = (with_kept_part(model, sigma, extra_args, seen.get(name)) for name in ("cond", "uncond"))
    result = Evaluation(denoised, seen.get(BOTTLENECK), *halves)
    if HALVES in wants and result.cond is None:  # of a missing bottleneck the engine warns
        warn_once(LACKING[HALVES])
    return result


def conditional(model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Tensor:
    """What the positive prompt alone denoises to: at guidance 1 the host leaves the negative one out. In
    float32: of the half left out the host makes 0 / 1e-37, and fp16 has no such number."""
    guider = guider_of(model)
    scale, guider.cfg = guider.cfg, 1.0
    try:
        return model(x.float(), sigma.float(), **extra_args).to(x.dtype)
    finally:
        guider.cfg = scale


def lacking(seen: Evaluation, wants: frozenset[str]) -> list[str]:
    """What was asked for and is not there, in words."""
    given = {BOTTLENECK: seen.bottleneck, HALVES: seen.denoised if COND in wants else seen.cond}
    return [text for name, text in LACKING.items() if name in wants and given[name] is None]


def keep_bottleneck(options: dict, positive: set, batch: int, seen: dict[str, Tensor]) -> None:
    """Let a call with these options write its bottleneck, `[batch, C, H, W]`, into `seen`."""

    def keep(h: Tensor, network_options: dict) -> None:
        rows = None if BOTTLENECK in seen else conditional_rows(h, network_options, positive, batch)
        if rows is not None:
            seen[BOTTLENECK] = rows

    watch_middle(options, keep)


def keep_halves(options: dict, seen: dict[str, Tensor]) -> None:
    """Let a call with these options write `cond` and `uncond` into `seen`."""

    def keep(denoised: list[Tensor], prompts: list) -> None:
        for name, prompt, half in zip(("cond", "uncond"), prompts, denoised):
            if prompt is not None and name not in seen:
                seen[name] = half.clone()  # others may change theirs in place

    watch_halves(options, keep)


def positive_ids(model: Any) -> set:
    """The ids of the positive prompts of the guider that samples; a Prompted has several lists of them."""
    conds = getattr(guider_of(model), "conds", None) or {}
    mine = [cond for name, listed in conds.items() if name.startswith("positive") for cond in listed or []]
    return {cond["uuid"] for cond in mine if "uuid" in cond}


def conditional_rows(h: Tensor, network_options: dict, positive: set, batch: int) -> Tensor | None:
    """Of a middle block's output `[chunks * B, C, H, W]` the rows of the positive prompt, `[B, C, H, W]`.

    By the prompt's own id where the host tells ids: guiders with more than two prompts, and attention
    guidance, use index 0 for other things. None when this call has no such rows (the halves may come in two
    calls)."""
    indices, ids = prompts_of_call(network_options)
    if h.ndim != 4 or len(h) != batch * len(indices):
        return None
    for i, index in enumerate(indices):
        if (ids[i] in positive) if ids and positive else index == 0:
            return h[i * batch : (i + 1) * batch].detach().clone()
    return None


def with_kept_part(
    model: Any, sigma: Tensor, extra_args: dict[str, Any], half: Tensor | None
) -> Tensor | None:
    """A half of guidance with the part an inpainting mask keeps, as the host's denoiser has it for their
    sum; None where the image that is kept is not found."""
    mask = extra_args.get("denoise_mask")
    if mask is None or half is None:
        return half
    host = inpainting(model)
    if host is None:
        return None
    mask = mask_at(extra_args.get("model_options") or {}, mask, sigma, host)
    return half * mask + host.latent_image * (1 - mask)
