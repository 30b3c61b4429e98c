"""Evaluates a WebUI's denoiser for AMED (see amed.loop.Evaluate).

Each evaluation counts the rows that pass through the network. On request it also returns the output of the
U-Net's middle block for each image's prompt (the bottleneck), and the denoised images of the prompt and of
the negative prompt (the halves of guidance).

One call of a WebUI's denoiser makes one or several calls of its network. The order of the rows in these
calls depends on the WebUI:

- A1111 (modules/sd_samplers_cfg_denoiser.py, 1.10.1): first the rows of all prompts, image by image (an image
  whose prompt contains AND has several), then those of the negative prompts. They run together or cut into
  several calls in that order. `s_min_uncond` and `skip_early_cond` leave the negative rows out. All rows pass
  through `CFGDenoiser.inner_model`, whose outputs are the halves, except in the evaluation in which a
  refiner takes over.
- Forge (backend/sampling/sampling_function.py) and reForge (ldm_patched/modules/samplers.py): one chunk with
  a row per image for each prompt of AND and for the negative prompt, in reversed order;
  `transformer_options["cond_or_uncond"]` has a 0 for each prompt chunk and a 1 for the negative one. At CFG
  scale 1 the negative chunk is left out. The functions in `model_options["sampler_post_cfg_function"]` of the
  U-Net's patcher receive the halves.

Everything is read with hooks and options that are removed after the evaluation; no additional pass is run."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from amed.loop import Denoiser, Evaluation

Half = Tensor | None  # denoised images [B, ...] of one half of guidance; None where it is not available


@dataclass
class NetworkCall:
    """One recorded call of the denoising network, e.g. of the U-Net."""

    rows: int  # rows of the call's input
    chunks: list[int] | None = None  # kind of each chunk: 0 prompt, 1 negative prompt; None if not stated
    output: Tensor | None = None  # output of the middle block [rows, C, H, W]; None if not recorded


@dataclass
class Recording:
    """The network calls and denoised images recorded during one evaluation of the denoiser."""

    calls: list[NetworkCall] = field(default_factory=list)  # in the order in which they ran
    # A1111: the denoised rows of each call; Forge: one pair (prompt, negative prompt) of denoised images
    denoised: list[Any] = field(default_factory=list)


class RowOrder(Protocol):
    """Finds the entries of each image in the batches that a WebUI passes through its network.

    A batch has an entry (row) for each combination of an image with one of its prompts or negative prompts.
    In all methods `count` is the number of images and `extra_args` the arguments of the WebUI's denoiser."""

    def bottleneck(self, calls: list[NetworkCall], count: int, extra_args: dict[str, Any]) -> Tensor | None:
        """Return the U-Net's middle block's output for the first prompt of each image, `[count, C, H, W]`;
        None if it is unknown which entry of the batch belongs to which image."""

    def recording_halves(self, denoiser: Any, recording: Recording) -> AbstractContextManager[None]:
        """Return a context manager that adds the denoised images of the prompts alone and of the negative
        prompt alone to `recording.denoised`."""

    def halves(self, recording: Recording, count: int, extra_args: dict[str, Any]) -> tuple[Half, Half]:
        """Return the denoised images `[count, ...]` of the prompts alone and of the negative prompt alone.

        Several prompts joined by AND give their weighted mean. Either is None if it was not computed or
        cannot be assigned to the images."""


def prompts_of(extra_args: dict[str, Any], count: int) -> list[list[Any]] | None:
    """Return the prompts of each of `count` images (several if joined by AND), as the WebUI encoded them;
    None if the WebUI has prompts for another number of images."""
    prompts = getattr(extra_args.get("cond"), "batch", None)
    prompts = [[None]] * count if prompts is None else prompts
    return prompts if len(prompts) == count else None


class PromptsFirst:
    """The order of a network batch in A1111: the images with their prompts, then with negative prompts."""

    def bottleneck(self, calls: list[NetworkCall], count: int, extra_args: dict[str, Any]) -> Tensor | None:
        prompts = prompts_of(extra_args, count)
        if prompts is None or len({call.output.shape[1:] for call in calls}) != 1:
            return None
        first_rows = [sum(map(len, prompts[:i])) for i in range(count)]
        outputs = torch.cat([call.output for call in calls])
        return outputs[first_rows] if len(outputs) > first_rows[-1] else None

    @contextmanager
    def recording_halves(self, denoiser: Any, recording: Recording) -> Iterator[None]:
        inner = getattr(denoiser, "inner_model", None)  # k-diffusion's wrapper; a refiner may replace it
        if not isinstance(inner, nn.Module):
            yield
            return
        handle = inner.register_forward_hook(lambda _module, _args, output: recording.denoised.append(output))
        try:
            yield
        finally:
            handle.remove()

    def halves(self, recording: Recording, count: int, extra_args: dict[str, Any]) -> tuple[Half, Half]:
        prompts = prompts_of(extra_args, count)
        if prompts is None or not recording.denoised:
            return None, None
        rows = torch.cat(recording.denoised)
        ends = [sum(map(len, prompts[: i + 1])) for i in range(count)]
        if len(rows) not in (ends[-1], ends[-1] + count):  # an image-editing checkpoint has a third row
            return None, None
        means = [
            weighted_mean(rows[end - len(image) : end], [getattr(prompt, "weight", 1.0) for prompt in image])
            for end, image in zip(ends, prompts)
        ]
        # at CFG scale 1 the negative rows run, but A1111 does not use them
        guided = len(rows) > ends[-1] and extra_args.get("cond_scale") != 1
        return torch.stack(means), rows[ends[-1] :] if guided else None


def weighted_mean(rows: Tensor, weights: list[float]) -> Tensor:
    """Return the weighted mean of n denoised images `[n, ...]`; a single image is returned unchanged."""
    if len(rows) == 1:
        return rows[0]
    return sum(weight * row for weight, row in zip(weights, rows)) / sum(weights)


class Chunks:
    """The order of a network batch in Forge and reForge: all images with one prompt, then with the next."""

    def bottleneck(self, calls: list[NetworkCall], count: int, extra_args: dict[str, Any]) -> Tensor | None:
        """Return the U-Net's middle block's output for the first prompt of each image, `[count, C, H, W]`.

        Forge runs the prompts in reversed order: the first one comes last in the batch."""
        for call in reversed(calls):
            chunks = call.chunks or []
            if len(call.output) != count * len(chunks):
                continue
            prompts = [i for i, kind in enumerate(chunks) if kind == 0]
            if prompts:
                return call.output[prompts[-1] * count :][:count]
        return None

    @contextmanager
    def recording_halves(self, denoiser: Any, recording: Recording) -> Iterator[None]:
        checkpoint = getattr(getattr(denoiser, "inner_model", None), "inner_model", None)
        patcher = getattr(getattr(checkpoint, "forge_objects", None), "unet", None)
        if patcher is None:
            yield
            return

        def record(args: dict[str, Any]) -> Tensor:
            recording.denoised.append((args["cond_denoised"], args["uncond_denoised"]))
            return args["denoised"]

        before, name = patcher.model_options, "sampler_post_cfg_function"
        during = patcher.model_options = {**before, name: [record, *before.get(name, [])]}
        try:
            yield
        finally:
            if patcher.model_options is during:
                patcher.model_options = before

    def halves(self, recording: Recording, count: int, extra_args: dict[str, Any]) -> tuple[Half, Half]:
        if not recording.denoised:
            return None, None
        cond, uncond = recording.denoised[0]
        uncond_ran = any(1 in (call.chunks or []) for call in recording.calls)  # otherwise Forge gives zeros
        return cond, uncond if uncond_ran else None


class HostEvaluate:
    """Evaluates a WebUI's CFGDenoiser; on request also returns the output of the U-Net's middle block,
    and the results of the prompt and of the negative prompt alone (an amed.loop.Evaluate).

    Args:
        network: returns the network in use now (a refiner may replace it during a run), or None if the model
            has none.
        order: the order of prompts and negative prompts in this WebUI's network batches."""

    def __init__(self, network: Callable[[], nn.Module | None], order: RowOrder):
        self.network, self.order = network, order
        self.evaluations = 0  # evaluations of the denoiser so far
        # evaluations whose bottleneck could not be read; they return None, which a predictor takes as zeros
        self.failed = 0
        self.rows: int | None = None  # rows through the network so far; None if they cannot be counted

    def __call__(
        self, model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
    ) -> Evaluation:
        if "cond" in wants:  # at scale 1 Forge skips the negative prompt; A1111 runs it, without effect
            extra_args = {**extra_args, "cond_scale": 1.0}
        return self.record(lambda: model(x, sigma, **extra_args), model, len(x), extra_args, wants)

    def record(
        self,
        denoise: Callable[[], Tensor],
        denoiser: Any,
        count: int,
        extra_args: dict[str, Any],
        wants: frozenset[str],
    ) -> Evaluation:
        """Run one evaluation; return its result and the additional outputs named in `wants`.

        Args:
            denoise: calls `denoiser` and returns the denoised images.
            denoiser: the WebUI's CFGDenoiser.
            count: number of images.
            extra_args: the arguments with which `denoise` calls the denoiser.
            wants: may contain "bottleneck" (the output of the U-Net's middle block) and "halves" (the
                results of the prompt and of the negative prompt alone)."""
        self.evaluations += 1
        recording, network = Recording(), self.network()
        middle = getattr(network, "middle_block", None) if "bottleneck" in wants else None
        with ExitStack() as hooks:  # removes them after an interruption too, which is a BaseException
            if network is not None:
                hook = self.count_rows(recording)
                hooks.callback(network.register_forward_pre_hook(hook, with_kwargs=True).remove)
            if middle is not None:
                hooks.callback(middle[-1].register_forward_hook(record_bottleneck(recording)).remove)
            if "halves" in wants:
                hooks.enter_context(self.order.recording_halves(denoiser, recording))
            denoised = denoise()
        bottleneck, halves = None, (None, None)
        if "bottleneck" in wants:
            calls = [call for call in recording.calls if call.output is not None]
            bottleneck = self.order.bottleneck(calls, count, extra_args) if calls else None
            self.failed += bottleneck is None
        if "halves" in wants:
            halves = self.order.halves(recording, count, extra_args)
        return Evaluation(denoised, bottleneck, *(apply_mask(denoiser, half, denoised) for half in halves))

    def count_rows(self, recording: Recording) -> Callable[..., None]:
        """Make a network pre-hook that records each call and adds its batch size to the count of passes."""

        def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs.get("x")
            rows = len(x) if isinstance(x, Tensor) else 0
            options = kwargs.get("transformer_options") or {}
            recording.calls.append(NetworkCall(rows, options.get("cond_or_uncond")))
            self.rows = (self.rows or 0) + rows

        return hook


def record_bottleneck(recording: Recording) -> Callable[..., None]:
    """Make a forward hook of the U-Net's middle block that stores its output in the last recorded call."""

    def hook(_module: nn.Module, _args: tuple, output: Tensor) -> None:
        if not recording.calls:
            recording.calls.append(NetworkCall(len(output)))
        recording.calls[-1].output = output.detach()

    return hook


def apply_mask(denoiser: Any, half: Half, denoised: Tensor) -> Half:
    """Restore the original image outside the inpainting mask, in the images denoised for one prompt alone.

    The WebUI itself does so only for the result of guidance (`CFGDenoiser.apply_blend`).

    Args:
        half: denoised images `[B, C, H, W]` for the prompt, or for the negative prompt; None is returned
            unchanged.
        denoised: the result of guidance, whose dtype and device the result gets."""
    mask = getattr(denoiser, "mask", None)
    if half is None or mask is None or getattr(denoiser, "mask_before_denoising", False):
        return None if half is None else half.to(denoised)
    return (half * denoiser.nmask + denoiser.init_latent * mask).to(denoised)
