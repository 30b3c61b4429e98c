"""How a WebUI's denoiser is asked (amed.loop.Evaluate): evaluations and network rows counted, and where they
are wanted the conditional rows of the U-Net's middle block, and guidance's halves.

A denoiser call of a WebUI is one or several calls of its network, with the rows of prompt and negative prompt
in an order of the host's own:

- A1111 (modules/sd_samplers_cfg_denoiser.py, 1.10.1): all prompt rows first, image by image, several for an
  image whose prompt has AND; then the negative ones; together or cut into calls in that order; without the
  negative ones where `s_min_uncond` or `skip_early_cond` leaves them out. All of them go through
  `CFGDenoiser.inner_model`, whose outputs are the halves; the one evaluation in which a refiner takes over
  has none.
- Forge (backend/sampling/sampling_function.py) and reForge (ldm_patched/modules/samplers.py): one chunk of
  all images for each prompt of AND and for the negative one, in reversed order,
  `transformer_options["cond_or_uncond"]` with 0 for prompts; without the negative one at CFG scale 1. The
  functions in `model_options["sampler_post_cfg_function"]` of the U-Net's patcher are given the halves.

All is listened to by hooks and options of that one evaluation; no pass is run for it, and nothing stays."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from amed.loop import Denoiser, Evaluation

Half = Tensor | None


@dataclass
class Call:
    """One call of the network: its rows, what its chunks are (0 a prompt, 1 the negative one) if the host
    says so, and its middle block's output `[R, C, H, W]` if that was listened to."""

    rows: int
    chunks: list[int] | None = None
    output: Tensor | None = None


@dataclass
class Heard:
    """What was listened to in one evaluation: the network's calls, and denoised rows as the host has them."""

    calls: list[Call] = field(default_factory=list)
    denoised: list[Any] = field(default_factory=list)


class Order(Protocol):
    """In what order, and where, a host's rows are to be had. count: images; extra_args: the host's."""

    def bottleneck(self, calls: list[Call], count: int, extra_args: dict[str, Any]) -> Tensor | None:
        """Of each image the row of its first prompt, `[count, C, H, W]`; None if they cannot be told
        apart."""

    def listening(self, denoiser: Any, heard: Heard) -> AbstractContextManager[None]:
        """While it lasts, `heard.denoised` gets what `halves` needs."""

    def halves(self, heard: Heard, count: int, extra_args: dict[str, Any]) -> tuple[Half, Half]:
        """What the prompts (of several by AND the weighted mean) and the negative prompt denoise to, `[count,
        ...]`; None for what did not run or cannot be told apart."""


def prompts_of(extra_args: dict[str, Any], count: int) -> list[list[Any]] | None:
    """Each image's prompts (prompt_parser.MulticondLearnedConditioning); None if there are not as many."""
    prompts = getattr(extra_args.get("cond"), "batch", None)
    prompts = [[None]] * count if prompts is None else prompts
    return prompts if len(prompts) == count else None


class PromptsFirst:
    """A1111's Order."""

    def bottleneck(self, calls: list[Call], count: int, extra_args: dict[str, Any]) -> Tensor | None:
        prompts = prompts_of(extra_args, count)
        if prompts is None or len({call.output.shape[1:] for call in calls}) != 1:
            return None
        rows = [sum(map(len, prompts[:i])) for i in range(count)]
        outputs = torch.cat([call.output for call in calls])
        return outputs[rows] if len(outputs) > rows[-1] else None

    @contextmanager
    def listening(self, denoiser: Any, heard: Heard) -> Iterator[None]:
        inner = getattr(denoiser, "inner_model", None)  # k-diffusion's wrapper; a refiner may replace it
        if not isinstance(inner, nn.Module):
            yield
            return
        handle = inner.register_forward_hook(lambda _module, _args, output: heard.denoised.append(output))
        try:
            yield
        finally:
            handle.remove()

    def halves(self, heard: Heard, count: int, extra_args: dict[str, Any]) -> tuple[Half, Half]:
        prompts = prompts_of(extra_args, count)
        if prompts is None or not heard.denoised:
            return None, None
        rows = torch.cat(heard.denoised)
        ends = [sum(map(len, prompts[: i + 1])) for i in range(count)]
        if len(rows) not in (ends[-1], ends[-1] + count):  # an image-editing checkpoint's third row
            return None, None
        means = [
            weighted(rows[end - len(image) : end], [getattr(one, "weight", 1.0) for one in image])
            for end, image in zip(ends, prompts)
        ]
        guided = len(rows) > ends[-1] and extra_args.get("cond_scale") != 1  # which runs, but is left out
        return torch.stack(means), rows[ends[-1] :] if guided else None


def weighted(rows: Tensor, weights: list[float]) -> Tensor:
    """The weighted mean of rows `[n, ...]`; of one it is the row itself."""
    if len(rows) == 1:
        return rows[0]
    return sum(weight * row for weight, row in zip(weights, rows)) / sum(weights)


class Chunks:
    """Forge's and reForge's Order."""

    def bottleneck(self, calls: list[Call], count: int, extra_args: dict[str, Any]) -> Tensor | None:
        """The last prompt chunk, which is the first prompt's, as they run in reversed order."""
        for call in reversed(calls):
            chunks = call.chunks or []
            if len(call.output) != count * len(chunks):
                continue
            prompts = [i for i, kind in enumerate(chunks) if kind == 0]
            if prompts:
                return call.output[prompts[-1] * count :][:count]
        return None

    @contextmanager
    def listening(self, denoiser: Any, heard: Heard) -> Iterator[None]:
        checkpoint = getattr(getattr(denoiser, "inner_model", None), "inner_model", None)
        patcher = getattr(getattr(checkpoint, "forge_objects", None), "unet", None)
        if patcher is None:
            yield
            return

        def listen(args: dict[str, Any]) -> Tensor:
            heard.denoised.append((args["cond_denoised"], args["uncond_denoised"]))
            return args["denoised"]

        own, name = patcher.model_options, "sampler_post_cfg_function"
        ours = patcher.model_options = {**own, name: [listen, *own.get(name, [])]}
        try:
            yield
        finally:
            if patcher.model_options is ours:
                patcher.model_options = own

    def halves(self, heard: Heard, count: int, extra_args: dict[str, Any]) -> tuple[Half, Half]:
        if not heard.denoised:
            return None, None
        cond, uncond = heard.denoised[0]
        ran = any(1 in (call.chunks or []) for call in heard.calls)  # else Forge's are zeros
        return cond, uncond if ran else None


class HostEvaluate:
    """amed.loop.Evaluate on a host's CFGDenoiser.

    network: the module now in use (a refiner may have replaced it), None for a model that has none. Counted
    are `evaluations`, `rows` through the network (None: it cannot be seen), and `failed`: the evaluations
    whose bottleneck was wanted and not to be had. These get None, which a predictor takes as zeros."""

    def __init__(self, network: Callable[[], nn.Module | None], order: Order):
        self.network, self.order = network, order
        self.evaluations, self.failed = 0, 0
        self.rows: int | None = None

    def __call__(
        self, model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
    ) -> Evaluation:
        if "cond" in wants:  # Forge leaves the negative prompt out at scale 1, A1111 runs it in vain
            extra_args = {**extra_args, "cond_scale": 1.0}
        return self.listened(lambda: model(x, sigma, **extra_args), model, len(x), extra_args, wants)

    def listened(
        self,
        ask: Callable[[], Tensor],
        denoiser: Any,
        count: int,
        extra_args: dict[str, Any],
        wants: frozenset[str],
    ) -> Evaluation:
        """What `ask` gives, a call of `denoiser` for `count` images with the host's `extra_args`."""
        self.evaluations += 1
        heard, network = Heard(), self.network()
        middle = getattr(network, "middle_block", None) if "bottleneck" in wants else None
        with ExitStack() as hooks:  # an interruption is a BaseException
            if network is not None:
                enter = network.register_forward_pre_hook(self.entered(heard), with_kwargs=True)
                hooks.callback(enter.remove)
            if middle is not None:
                hooks.callback(middle[-1].register_forward_hook(middle_left(heard)).remove)
            if "halves" in wants:
                hooks.enter_context(self.order.listening(denoiser, heard))
            denoised = ask()
        bottleneck, halves = None, (None, None)
        if "bottleneck" in wants:
            calls = [call for call in heard.calls if call.output is not None]
            bottleneck = self.order.bottleneck(calls, count, extra_args) if calls else None
            self.failed += bottleneck is None
        if "halves" in wants:
            halves = self.order.halves(heard, count, extra_args)
        return Evaluation(denoised, bottleneck, *(blended(denoiser, half, denoised) for half in halves))

    def entered(self, heard: Heard) -> Callable[..., None]:
        """A hook before the network's forward: its rows, counted."""

        def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs.get("x")
            rows = len(x) if isinstance(x, Tensor) else 0
            options = kwargs.get("transformer_options") or {}
            heard.calls.append(Call(rows, options.get("cond_or_uncond")))
            self.rows = (self.rows or 0) + rows

        return hook


def middle_left(heard: Heard) -> Callable[..., None]:
    """A hook after the middle block's last module."""

    def hook(_module: nn.Module, _args: tuple, output: Tensor) -> None:
        if not heard.calls:
            heard.calls.append(Call(len(output)))
        heard.calls[-1].output = output.detach()

    return hook


def blended(denoiser: Any, half: Half, denoised: Tensor) -> Half:
    """A half as the host returns the whole: inpainting puts the kept part back (CFGDenoiser's
    `apply_blend`)."""
    mask = getattr(denoiser, "mask", None)
    if half is None or mask is None or getattr(denoiser, "mask_before_denoising", False):
        return None if half is None else half.to(denoised)
    return (half * denoiser.nmask + denoiser.init_latent * mask).to(denoised)
