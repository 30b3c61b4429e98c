"""ComfyUI's hooks, under the names by which ComfyUI knows them.

A run of ComfyUI is watched and changed through a dict of options (`model_options`, and in it the options of
the network) and through wrappers around its functions. Only this file knows their names, so a hook that
ComfyUI renames is renamed here.

Host: comfy/samplers.py (guidance functions, masks, KSAMPLER, guiders), comfy/patcher_extension.py (wrappers),
comfy/context_windows.py, and the U-Nets in comfy/ldm (patches)."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

OWN = "amed_"  # the keys of the pack's wrappers begin with this
NETWORK = "transformer_options"  # the options that the network gets, within those of the run
PRE_CFG = "sampler_pre_cfg_function"
# options with functions that change guidance:
GUIDANCE = ("sampler_cfg_function", "sampler_post_cfg_function", PRE_CFG, "sampler_calc_cond_batch_function")
MASK = "denoise_mask_function"
LEVELS = "sample_sigmas"  # the noise levels of the run, among the network's options
OUTPUT_PATCH, MIDDLE_PATCH = "output_block_patch", "middle_block_after_patch"
CALL, EVALUATION = "apply_model", "predict_noise"  # types of wrappers, as they stand in options
# types of wrappers that may answer in place of the network:
ANSWERING = ("outer_sample", "sampler_sample", EVALUATION, "calc_cond_batch", CALL, "diffusion_model")
TYPES = {  # names of wrapper types in the host's WrappersMP
    "sampling": "SAMPLER_SAMPLE",
    "evaluation": "PREDICT_NOISE",
    "call": "APPLY_MODEL",
    "network": "DIFFUSION_MODEL",
}


class MissingHookError(RuntimeError):
    """A hook that this version of ComfyUI does not have."""


def network_options(options: dict) -> dict:
    """Return `transformer_options` of a run's model options; if missing, add it as an empty dict."""
    if options.get(NETWORK) is None:
        options[NETWORK] = {}
    return options[NETWORK]


def without_hooks(model: Any) -> Any:
    """Return a clone of a MODEL with its network, weights and noise levels, but without caches, context
    windows and other packs' guidance."""
    clone = model.clone()
    clone.wrappers, clone.callbacks, clone.model_options = {}, {}, {NETWORK: {}}
    return clone


# --- wrappers ----------------------------------------------------------------------------------------------


def wrap_model(model: Any, key: str, **wrappers: Callable) -> None:
    """Add ComfyUI wrappers `wrapper(executor, ...)` to a MODEL, which is changed in place.

    Args:
        model: the MODEL, e.g. a clone.
        key: the key under which ComfyUI stores the wrappers.
        wrappers: the wrappers by what they wrap: `sampling` (`SAMPLER.sample`), `evaluation` (ComfyUI's
            `predict_noise`, for both prompts), `call` (`apply_model`) or `network` (the diffusion model's
            forward function).

    Raises:
        MissingHookError: this ComfyUI is too old for one of these wrappers."""
    try:
        from comfy.patcher_extension import WrappersMP

        for name, function in wrappers.items():
            model.add_wrapper_with_key(getattr(WrappersMP, TYPES[name]), key, function)
    except (ImportError, AttributeError):
        raise MissingHookError(
            f"this ComfyUI is too old for wrappers around {', '.join(wrappers)} of a model: update ComfyUI"
        ) from None


def wrap_calls(options: dict, key: str, function: Callable) -> None:
    """Set a wrapper `function(executor, x, ...)` around each call of the network on a run's options.

    `key`: the key under which ComfyUI stores it. Raises MissingHookError in a ComfyUI that is too old."""
    try:
        from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

        kind = getattr(WrappersMP, TYPES["call"])
    except (ImportError, AttributeError):
        raise MissingHookError("this ComfyUI has no wrappers around `apply_model`: update it") from None
    add_wrapper_with_key(kind, key, function, options, is_model_options=True)


def watch_calls(options: dict, key: str, listener: Callable[[], None]) -> None:
    """Set a wrapper on a run's options that calls `listener()` before each call of the network.

    It has no effect in a ComfyUI without wrappers. `key`: the key under which ComfyUI stores the wrapper."""

    def apply_model(executor: Any, *args: Any, **kwargs: Any) -> Any:
        listener()
        return executor(*args, **kwargs)

    wrappers = network_options(options).setdefault("wrappers", {})
    wrappers.setdefault(CALL, {}).setdefault(key, []).append(apply_model)


def wrappers_of(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield type, key and function of each wrapper on a MODEL, except those that this pack sets."""
    options = model.model_options.get(NETWORK) or {}
    for by_type in (model.wrappers, options.get("wrappers", {})):
        for kind, by_key in by_type.items():
            for key, functions in by_key.items():
                yield from ((kind, key, function) for function in functions if not is_own(key))


def is_own(key: Any) -> bool:
    """Whether a wrapper with this key is one that this pack sets (its key begins with `amed_`)."""
    return str(key).startswith(OWN)


def network_function(options: dict) -> Callable | None:
    """Return the function that another pack has set on a MODEL in place of the network's call, or None."""
    return options.get("model_function_wrapper")


# --- guidance ----------------------------------------------------------------------------------------------


def guidance_functions(options: dict) -> dict[str, list]:
    """Return the functions that other packs set on a MODEL to change guidance, by the option's name."""
    set_options = {name: options[name] for name in GUIDANCE if options.get(name)}
    return {name: value if isinstance(value, list) else [value] for name, value in set_options.items()}


def whole_guidance(options: dict) -> list[str]:
    """Return the names of functions on a MODEL that do not allow evaluating the positive prompt alone.

    They work on the results of both prompts (RescaleCFG, PAG, SAG), or may replace both by cached ones
    (LazyCache)."""
    by_type = (options.get(NETWORK) or {}).get("wrappers", {})
    keys = [key for key, functions in by_type.get(EVALUATION, {}).items() if functions and not is_own(key)]
    return [*guidance_functions(options), *map(str, keys)]


def watch_halves(options: dict, listener: Callable[[list[Tensor], list], None]) -> None:
    """Call `listener(denoised, prompts)` at each evaluation before any function that changes guidance.

    `denoised` holds the denoised images of the positive prompt, then those of the negative prompt.
    `prompts` holds the two conditionings; that of a prompt that was not evaluated is None."""

    def pre_cfg(args: dict) -> list:
        denoised = args["conds_out"]
        listener(denoised, args.get("conds", denoised))
        return denoised

    options[PRE_CFG] = [pre_cfg, *options.get(PRE_CFG, [])]


def guides_plainly(guider: Any) -> bool:
    """Whether a guider combines two prompts with one scale by ComfyUI's own function.

    False for DualCFGGuider, PerpNegGuider and other packs' guiders."""
    predict = getattr(getattr(guider, "predict_noise", None), "__func__", None)
    return getattr(predict, "__module__", "") == "comfy.samplers" and hasattr(guider, "cfg")


# --- the network's middle block ----------------------------------------------------------------------------


def watch_middle(options: dict, listener: Callable[[Tensor, dict], None]) -> None:
    """Call `listener(h, network_options)` with the output h of a U-Net's middle block.

    It is called before other packs' patches, e.g. FreeU, change h; in some versions of ComfyUI twice per
    call of the U-Net."""

    def before_first_output(h: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        if options.get("block") == ("output", 0):
            listener(h, options)
        return h, skip

    def after_middle(args: dict) -> dict:
        listener(args["h"], args[NETWORK])
        return args

    patches = network_options(options).setdefault("patches", {})
    for name, patch in ((OUTPUT_PATCH, before_first_output), (MIDDLE_PATCH, after_middle)):
        patches[name] = [patch, *patches.get(name, [])]


def patched_middle(h: Tensor, x: Tensor, timesteps: Tensor, context: Tensor, options: dict) -> Tensor:
    """Apply the patches of a MODEL to the output of a U-Net's middle block, as ComfyUI's own U-Nets do.

    For a U-Net that is not ComfyUI's (the demo network), so that patches work on it too. h is the output;
    `options`, the `transformer_options` of the call, hold the patches."""
    patches = options.get("patches", {})
    call = {"x": x, "emb": None, "context": context, "y": None, "timesteps": timesteps, NETWORK: options}
    for patch in patches.get(MIDDLE_PATCH, ()):
        h = patch({"h": h, **call})["h"]
    options["block"] = ("output", 0)
    for patch in patches.get(OUTPUT_PATCH, ()):
        h, _ = patch(h, None, options)
    return h


def prompts_of_call(options: dict) -> tuple[list[int], list | None]:
    """Return two lists for the prompts in the batch of one network call: 0 for a positive and 1 for a
    negative prompt; and their ids (None in older versions of ComfyUI)."""
    return options.get("cond_or_uncond") or [0], options.get("uuids")


# --- inpainting --------------------------------------------------------------------------------------------


def watch_mask(options: dict, listener: Callable[[Tensor], None]) -> None:
    """Call `listener(mask)` with each mask that a MODEL's `denoise_mask_function` (if any) returns."""
    function = options.get(MASK)
    if function is None:
        return

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        mask = function(*args, **kwargs)
        listener(mask)
        return mask

    options[MASK] = watched


def drop_mask_function(options: dict) -> None:
    """Remove the function that changes the inpainting mask from a run's options."""
    options.pop(MASK, None)


def mask_at(options: dict, mask: Tensor, sigma: Tensor, denoiser: Any) -> Tensor:
    """Return the inpainting mask at noise level sigma.

    It is `mask` (the LATENT's noise mask), or what a `denoise_mask_function` in the run's options makes of
    it. `denoiser` is ComfyUI's own (KSamplerX0Inpaint)."""
    function = options.get(MASK)
    if function is None:
        return mask
    return function(sigma, mask, extra_options={"model": denoiser.inner_model, "sigmas": denoiser.sigmas})


# --- context windows ---------------------------------------------------------------------------------------


def has_context_windows(options: dict) -> bool:
    """Whether a MODEL is sampled in context windows."""
    return options.get("context_handler") is not None


def at_listed_level(extra_args: dict[str, Any], sigma: Tensor) -> dict[str, Any]:
    """Return the arguments of an evaluation, with its noise level sigma among the run's noise levels.

    Context windows look sigma up in the run's list of noise levels (`sample_sigmas`). If a solver evaluates
    between two of them, sigma replaces the higher one. Without context windows nothing is changed."""
    options = extra_args.get("model_options") or {}
    network = options.get(NETWORK) or {}
    levels = network.get(LEVELS)
    if not has_context_windows(options) or levels is None:
        return extra_args
    level = sigma.flatten()[0].to(levels)
    if torch.isclose(levels, level, rtol=1e-4).any():
        return extra_args
    levels = levels.clone()
    levels[max(int((levels > level).sum()) - 1, 0)] = level
    return {**extra_args, "model_options": {**options, NETWORK: {**network, LEVELS: levels}}}


# --- SAMPLERs ----------------------------------------------------------------------------------------------


def is_sampler(value: Any) -> bool:
    """Whether a value is a SAMPLER with a k-diffusion function."""
    return hasattr(value, "sampler_function") and not isinstance(value, type)


def function_of(sampler: Any) -> Callable[..., Tensor] | None:
    """Return the k-diffusion function that a SAMPLER calls, or None."""
    return getattr(sampler, "sampler_function", None)


def options_of(sampler: Any) -> dict[str, Any]:
    """Return a copy of the options with which a SAMPLER calls its function."""
    return dict(getattr(sampler, "extra_options", None) or {})


def sampler_fields(sampler: Any) -> dict[str, Any]:
    """Return a dict of a SAMPLER's function, options and inpainting options, without empty ones."""
    fields = {
        "sampler_function": function_of(sampler),
        "extra_options": getattr(sampler, "extra_options", None),
        "inpaint_options": getattr(sampler, "inpaint_options", None),
    }
    return {name: value for name, value in fields.items() if value}


def copy_inpaint_options(source: Any, target: Any) -> None:
    """Give a SAMPLER the inpainting options of another."""
    target.inpaint_options = getattr(source, "inpaint_options", {})
