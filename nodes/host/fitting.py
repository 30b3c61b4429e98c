"""Fitting by the host's own sampling: its MODEL as amed.fit wants it, and a copy that gradients go
through."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ...amed import Evaluation
from ...amed.fit import CachedError, Rival, Target
from .evaluate import evaluate
from .hooks import has_context_windows
from .model import (
    base_times,
    identity,
    is_flow,
    noise_scale,
    prediction_type,
    sampling_of,
    sigma_range,
    stop_if_asked,
    unload_all,
)
from .nested import blank_of, packed_shape, repeated
from .register import as_sampler, guider_for, shipped
from .watching import Watch, functions

AGAIN = 0.005  # how far two equal evaluations may differ, as a share of the change that denoising makes


@dataclass(frozen=True)
class Prompts:
    """What a MODEL is fitted on: positive CONDITIONINGs, the negative one, and a LATENT for its size."""

    positives: list
    negative: list
    latent: dict


class Prompted:
    """The denoiser of a fit, for samples of several prompts: `prompted(x, sigma, prompt=)`, `prompt` `[B]`
    the number of each sample's positive conditioning. Stoppable before every evaluation.

    Each evaluation is a sampling of the host of its own, of a run that begins at this noise level: what other
    packs keep for one sampling (step caches, keyframes, context windows) begins and ends with it. `wants`,
    `seen`: as `evaluate_prompted` gives them, through whatever is wrapped around this.

    steps: of the runs that it is fitted for, whose noise levels the context windows are shown. Raises
    CachedError where the network did not answer, and where the MODEL answers the same question differently
    when it is asked again."""

    def __init__(self, model: Any, prompts: Prompts, guidance: float, seed: int, steps: int, watch: Watch):
        self.one, self.seed, self.watch = blank_of(model, prompts.latent), seed, watch
        self.guiders = [
            guider_for(model, {"positive": positive, "negative": prompts.negative}, guidance)
            for positive in prompts.positives
        ]
        self.times = base_times(sampling_of(model), max(steps, 1) + 1)
        self.windows = has_context_windows(model.model_options)
        self.model, self.asked_twice = model, False

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        prompt: Tensor,
        wants: frozenset[str] = frozenset(),
        seen: list[Evaluation] | None = None,
    ) -> Tensor:
        if not self.asked_twice:
            self.asked_twice = True
            self.ask_twice(x[:1], sigma[:1], int(prompt[0]))
        parts = []
        for rows in self.together(prompt):
            stop_if_asked()
            asked = partial(self.asked, x[rows], sigma[rows], wants)
            number = int(prompt[rows][0])
            parts.append((rows, self.inside(asked, len(x[rows]), self.levels(sigma[rows][0]), number)))
        whole = Evaluation(*(of_all(parts, len(x), n) for n in ("denoised", "bottleneck", "cond", "uncond")))
        if seen is not None:
            seen.append(whole)
        return whole.denoised

    def ask_twice(self, x: Tensor, sigma: Tensor, number: int) -> None:
        """Raise CachedError if one sample `[1, ...]` is denoised differently after another one was: some
        function on the MODEL (e.g. APG with momentum) remembers evaluations beyond the end of a sampling."""
        seen = []
        with torch.no_grad(), torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            for state in (x, -x, x):
                torch.manual_seed(self.seed)  # what draws noise (ToMe) draws the same
                work = partial(self.asked, state, sigma, frozenset())
                seen.append(self.inside(work, 1, self.levels(sigma[0]), number).denoised.float())
        first, second = seen[0], seen[2]
        if float((second - first).norm()) > AGAIN * float((first - x.float()).norm()):
            raise CachedError(
                "the MODEL denoises the same image differently the second time: what is on it "
                f"({', '.join(functions(self.model)) or 'of another pack'}) remembers earlier evaluations. "
                "Connect the MODEL from before that node, and put the node on after"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, as a sampler is given it."""
        return packed_shape(self.one)

    def together(self, prompt: Tensor) -> list[Tensor]:
        """The numbers of the samples that are asked for in one sampling: those of a prompt; each alone under
        context windows, which the host has for one sample only."""
        rows = [(prompt == number).nonzero()[:, 0] for number in prompt.unique().tolist()]
        return [one for of_prompt in rows for one in of_prompt.split(1 if self.windows else len(of_prompt))]

    def levels(self, level: Tensor) -> Tensor:
        """The noise levels of the run of an evaluation: its own and those below, then 0. Context windows are
        shown the whole run, in which the level takes the place of the one above it: they go by its number."""
        times = self.times.to(level)
        below, above = times[times < level * (1 - 1e-4)], times[times > level * (1 + 1e-4)]
        before = above[:-1] if self.windows and len(above) + len(below) >= len(times) else above
        return torch.cat([*([before] if self.windows else []), level[None], below, level.new_zeros(1)])

    def asked(
        self, x: Tensor, sigma: Tensor, wants: frozenset[str], denoiser: Any, extra_args: dict[str, Any]
    ) -> Evaluation:
        """One evaluation, inside its sampling."""
        self.watch.begin(extra_args["model_options"])
        result = evaluate(denoiser, x, sigma, extra_args, wants)
        self.watch.end()
        return result

    def inside(self, work: Callable[[Any, dict[str, Any]], Any], count: int, sigmas: Tensor,
             number: int = 0) -> Any:  # fmt: skip
        """What `work(denoiser, extra_args)` gives where a sampler of the host would run over `sigmas`, for so
        many samples of a prompt. Raises CachedError where the host never comes to it."""
        results = []

        def run(denoiser, x, sigmas, extra_args=None, callback=None, disable=None, **_options):
            results.append(work(denoiser, extra_args or {"model_options": {}}))
            return x

        start = repeated(self.one, count)
        guider = copy.copy(self.guiders[number])  # one sampling may be inside another
        guider.original_conds = with_own_hooks(guider.original_conds)
        guider.sample(start, start, as_sampler(run), sigmas, disable_pbar=True, seed=self.seed)
        if not results:
            self.watch.end()
        return results[-1]


def with_own_hooks(conds: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """A guider's conditionings with hooks of their own, at the beginning of their keyframes: the host sets
    those of an earlier sampling back, but for the noise level they were last asked at."""
    copies: dict[int, Any] = {}

    def copied(hooks: Any) -> Any:
        if id(hooks) not in copies:
            copies[id(hooks)] = hooks.clone()
            for hook in copies[id(hooks)].hooks:
                hook.hook_keyframe = hook.hook_keyframe.clone()
        return copies[id(hooks)]

    def own(cond: dict) -> dict:
        return {**cond, "hooks": copied(cond["hooks"])} if cond.get("hooks") is not None else cond

    return {name: [own(cond) for cond in listed] for name, listed in conds.items()}


def of_all(parts: list[tuple[Tensor, Evaluation]], count: int, name: str) -> Tensor | None:
    """One field of evaluations of some rows each, as that of all rows; None where one of them lacks it."""
    values = [getattr(evaluation, name) for _, evaluation in parts]
    if any(value is None for value in values):
        return None
    if len(parts) == 1:
        return values[0]
    whole = values[0].new_empty(count, *values[0].shape[1:])
    for (rows, _), value in zip(parts, values):
        whole[rows] = value
    return whole


def evaluate_prompted(
    model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
) -> Evaluation:
    """amed.loop.Evaluate for a Prompted, and for what passes its arguments on to one (a Counter)."""
    if not wants:
        return Evaluation(model(x, sigma, **extra_args))
    seen: list[Evaluation] = []
    model(x, sigma, **extra_args, wants=wants, seen=seen)
    return seen[0]


def target_of(model: Any, denoiser: Prompted) -> Target:
    """What amed.fit fits to: a MODEL with its prompts, of which each draw takes one."""
    model_sampling, who = sampling_of(model), identity(model)
    low, high = sigma_range(model_sampling)
    scale = noise_scale(model_sampling)
    prompts, shape, device = len(denoiser.guiders), denoiser.shape, model.load_device

    def draw(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, Any]]:
        noise = torch.randn(count, *shape, generator=generator) * scale
        number = int(torch.randint(prompts, (1,), generator=generator)) if prompts > 1 else 0
        return noise.to(device), {"prompt": torch.full((count,), number, device=device)}

    def rivals(nfe: int) -> dict[str, Rival]:
        return shipped(
            model_sampling, "simple" if is_flow(model_sampling) else "karras", nfe, denoiser.inside
        )

    return Target(
        denoiser,
        draw,
        low,
        high,
        prediction_type=prediction_type(model_sampling),
        family=who.family,
        fingerprint=who.fingerprint,
        name=f"{who.family} {who.fingerprint[:8]}".strip(),
        evaluate=evaluate_prompted,
        rivals=rivals,
        signature=who.signature,
    )


@contextmanager
def fitted_on(model: Any, prompts: Prompts, guidance: float, seed: int, steps: int) -> Iterator[Prompted]:
    """A MODEL as amed.fit wants it, as Prompted has it; without gradients but where they are asked for.
    Nothing stays on the MODEL."""
    with torch.no_grad(), Watch(model) as watch:
        yield Prompted(model, prompts, guidance, seed, steps, watch)


# --- a copy that gradients go through ----------------------------------------------------------------------


def changes_weights(conditioning: list) -> bool:
    """Whether a CONDITIONING has hooks that put LoRAs and their like on the network while it samples: the
    backward pass would find other weights than the forward pass."""
    groups = [options["hooks"] for _, options in conditioning if options.get("hooks") is not None]
    return any(getattr(hook, "weights", None) is not None for group in groups for hook in group.hooks)


def trainable(value: Any) -> Any:
    """Conditioning with every tensor cloned: those made in inference mode take no part in a gradient. What
    else it holds (ControlNets, areas) stays itself."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: trainable(v) for k, v in value.items()}
    return [trainable(v) for v in value] if isinstance(value, list) else value


def checkpoint_blocks(module: nn.Module) -> None:
    """Let every block of a network (what its lists of modules hold) keep no activations: each is run again
    in the backward pass. For a network of our own only."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            checkpoint_blocks(child)
        elif any(True for _ in child.parameters()):
            child.forward = checkpointed(child.forward)


def checkpointed(forward: Callable) -> Callable:
    def own(value: Any) -> Any:
        return dict(value) if isinstance(value, dict) else value  # the network writes where it is into these

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        args, kwargs = [own(a) for a in args], {k: own(v) for k, v in kwargs.items()}
        return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def frozen_copy(model: Any) -> Any:
    """A MODEL like this one with weights of its own, which gradients pass through but do not change, in
    blocks that keep no activations. To be called, and used, with inference mode off. All models are
    unloaded first: that takes patches off the weights, and a gradient needs the memory.

    Contract: comfy/model_patcher.py, ModelPatcher's attributes model, backup, object_patches."""
    unload_all()
    if getattr(model, "is_dynamic", lambda: False)():
        clone = model.clone(disable_dynamic=True)  # the host reads the file again
    else:
        clone = model.clone()
        base = model.model  # not to be copied: its patcher, and settings whose every unknown name is None
        known = {id(getattr(base, "current_patcher", None)): None, id(base.model_config): base.model_config}
        clone.model, clone.backup, clone.object_patches_backup = copy.deepcopy(base, known), {}, {}
        if hasattr(clone, "backup_buffers"):
            clone.backup_buffers = {}
    clone.object_patches = {k: copy.deepcopy(v) for k, v in clone.object_patches.items()}
    clone.model.requires_grad_(False)
    checkpoint_blocks(clone.model.diffusion_model)
    return clone
