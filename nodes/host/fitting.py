"""A MODEL with prompts as amed.fit needs it: a denoiser that is evaluated inside ComfyUI's own sampling."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

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
    stop_if_interrupted,
)
from .nested import blank_sample, packed_shape, repeated
from .register import as_sampler, guider_for, host_rivals
from .watching import Watch, changing_features

TOLERANCE = 0.005  # between two equal evaluations, as a share of the change that denoising makes


@dataclass(frozen=True)
class Prompts:
    """The prompts and the latent size with which a predictor is fitted to a MODEL."""

    positives: list  # CONDITIONINGs, of which each sample uses one
    negative: list  # a CONDITIONING
    latent: dict  # a LATENT of the size of the samples


class PromptedDenoiser:
    """A MODEL as the denoiser that a predictor is fitted to: `denoiser(x, sigma, prompt=)`.

    `prompt` says which positive prompt each sample of the batch uses. Each evaluation is a ComfyUI sampling
    of its own, so that other packs' patches, e.g. step caches, keep nothing from an earlier evaluation. The
    user can interrupt before every evaluation.

    Args:
        model: the MODEL.
        prompts: the prompts and the latent size.
        guidance: guidance scale (cfg).
        seed: seed of ComfyUI's samplings.
        steps: number of steps of the runs that the predictor is fitted to.
        watch: detects evaluations that a cache answered in place of the network.

    Raises:
        CachedError: when called, if a cache answered an evaluation, or if the MODEL gives different results
            for the same evaluation."""

    def __init__(self, model: Any, prompts: Prompts, guidance: float, seed: int, steps: int, watch: Watch):
        self.blank, self.seed, self.watch = blank_sample(model, prompts.latent), seed, watch
        self.guiders = [
            guider_for(model, {"positive": positive, "negative": prompts.negative}, guidance)
            for positive in prompts.positives
        ]
        self.times = base_times(sampling_of(model), max(steps, 1) + 1)
        self.windows = has_context_windows(model.model_options)
        self.model, self.checked = model, False

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        prompt: Tensor,
        wants: frozenset[str] = frozenset(),
        evaluations: list[Evaluation] | None = None,
    ) -> Tensor:
        """Return the denoised samples.

        Args:
            x: states `[B, ...]`.
            sigma: noise levels `[B]`.
            prompt: `[B]`, the index of each sample's prompt in the list of positive prompts.
            wants: names of additional outputs, e.g. `bottleneck`.
            evaluations: a list to which an Evaluation, the denoised samples with these outputs, is
                appended."""
        if not self.checked:
            self.checked = True
            self.check_repeatable(x[:1], sigma[:1], int(prompt[0]))
        parts = []
        for rows in self.groups(prompt):
            stop_if_interrupted()
            work = partial(self.evaluate, x[rows], sigma[rows], wants)
            number = int(prompt[rows][0])
            evaluation = self.within_sampling(work, len(x[rows]), self.levels(sigma[rows][0]), number)
            parts.append((rows, evaluation))
        whole = Evaluation(*(joined(parts, len(x), n) for n in ("denoised", "bottleneck", "cond", "uncond")))
        if evaluations is not None:
            evaluations.append(whole)
        return whole.denoised

    def check_repeatable(self, x: Tensor, sigma: Tensor, number: int) -> None:
        """Raise CachedError if the same sample is denoised differently the second time.

        A function on the MODEL (e.g. APG with momentum) then depends on earlier evaluations.

        Args:
            x: the sample `[1, ...]`.
            sigma: its noise level `[1]`.
            number: index of the prompt in the list of positive prompts."""
        results = []
        with torch.no_grad(), torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            for state in (x, -x, x):
                torch.manual_seed(self.seed)  # functions that draw noise (ToMe) draw the same
                work = partial(self.evaluate, state, sigma, frozenset())
                results.append(self.within_sampling(work, 1, self.levels(sigma[0]), number).denoised.float())
        first, second = results[0], results[2]
        if float((second - first).norm()) > TOLERANCE * float((first - x.float()).norm()):
            raise CachedError(
                "the MODEL denoises the same image differently the second time, because a patch on it "
                f"({', '.join(changing_features(self.model)) or 'of another pack'}) remembers earlier "
                "evaluations. Connect this node to the MODEL from before that patch, and patch it later"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample (a latent) as ComfyUI gives it to samplers, without the batch dimension."""
        return packed_shape(self.blank)

    def groups(self, prompt: Tensor) -> list[Tensor]:
        """Divide a batch into groups of samples with the same prompt, and return the indices of each group.

        With context windows, which ComfyUI supports for one sample only, each group is one sample.

        prompt: `[B]`, the index of each sample's prompt in the list of positive prompts."""
        rows = [(prompt == number).nonzero()[:, 0] for number in prompt.unique().tolist()]
        return [
            group for of_prompt in rows for group in of_prompt.split(1 if self.windows else len(of_prompt))
        ]

    def levels(self, level: Tensor) -> Tensor:
        """Return SIGMAS for the ComfyUI sampling in which a single evaluation at noise level `level` is made.

        They are `level`, the lower levels of the `amed` schedule, then 0. With context windows, which depend
        on a step's index in the schedule, the schedule's higher levels come first; a `level` between two of
        the schedule then replaces the higher one."""
        times = self.times.to(level)
        below, above = times[times < level * (1 - 1e-4)], times[times > level * (1 + 1e-4)]
        before = above[:-1] if self.windows and len(above) + len(below) >= len(times) else above
        return torch.cat([*([before] if self.windows else []), level[None], below, level.new_zeros(1)])

    def evaluate(
        self, x: Tensor, sigma: Tensor, wants: frozenset[str], denoiser: Any, extra_args: dict[str, Any]
    ) -> Evaluation:
        """Evaluate ComfyUI's denoiser in a running sampling.

        `wants` names additional outputs, e.g. `bottleneck`; `extra_args` are the denoiser's other arguments.
        Raises CachedError if another pack's cache answered in place of the network."""
        self.watch.begin(extra_args["model_options"])
        result = evaluate(denoiser, x, sigma, extra_args, wants)
        self.watch.end()
        return result

    def within_sampling(self, work: Callable[[Any, dict[str, Any]], Any], count: int, sigmas: Tensor,
                        number: int = 0) -> Any:  # fmt: skip
        """Start a ComfyUI sampling in which a function runs in place of a sampler, and return its result.

        Args:
            work: the function `work(denoiser, extra_args)`, with ComfyUI's denoiser and the arguments for it.
            count: number of samples.
            sigmas: noise levels of the sampling.
            number: index of the prompt in the list of positive prompts.

        Raises:
            CachedError: ComfyUI did not call the sampler, because another pack's cache answered for it."""
        results = []

        def run(denoiser, x, sigmas, extra_args=None, callback=None, disable=None, **_options):
            results.append(work(denoiser, extra_args or {"model_options": {}}))
            return x

        start = repeated(self.blank, count)
        guider = copy.copy(self.guiders[number])  # samplings may be nested
        guider.original_conds = with_copied_hooks(guider.original_conds)
        guider.sample(start, start, as_sampler(run), sigmas, disable_pbar=True, seed=self.seed)
        if not results:
            self.watch.end()
        return results[-1]


def with_copied_hooks(conds: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Return a guider's conditionings with copies of their hooks, as if no sampling had used them yet.

    A hook may have keyframes, which change its strength during a sampling. ComfyUI does not reset them
    completely before the next sampling."""
    copies: dict[int, Any] = {}

    def copied(hooks: Any) -> Any:
        if id(hooks) not in copies:
            copies[id(hooks)] = hooks.clone()
            for hook in copies[id(hooks)].hooks:
                hook.hook_keyframe = hook.hook_keyframe.clone()
        return copies[id(hooks)]

    def with_copies(cond: dict) -> dict:
        return {**cond, "hooks": copied(cond["hooks"])} if cond.get("hooks") is not None else cond

    return {name: [with_copies(cond) for cond in listed] for name, listed in conds.items()}


def joined(parts: list[tuple[Tensor, Evaluation]], count: int, name: str) -> Tensor | None:
    """Join the results of a batch that was evaluated in several groups of samples.

    Args:
        parts: for each group, the indices of its samples in the batch and its Evaluation.
        count: number of samples in the batch.
        name: the field of Evaluation to join, e.g. `denoised`.

    Returns:
        `[count, ...]`; None if the field is None in any group."""
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
    """Evaluate a PromptedDenoiser, and return the denoised images with additional outputs.

    Args:
        model: the PromptedDenoiser, or a function around it.
        x: states `[B, ...]`.
        sigma: noise levels `[B]`.
        extra_args: the other arguments of the PromptedDenoiser, e.g. `prompt`.
        wants: names of the additional outputs, e.g. `bottleneck`."""
    if not wants:
        return Evaluation(model(x, sigma, **extra_args))
    evaluations: list[Evaluation] = []
    model(x, sigma, **extra_args, wants=wants, evaluations=evaluations)
    return evaluations[0]


def target_of(model: Any, denoiser: PromptedDenoiser) -> Target:
    """Return a Target, which describes a MODEL to amed.fit, so that a predictor can be fitted to it.

    It also draws the noise for the fit; each batch of noise gets one positive prompt, chosen at random.

    Args:
        model: the MODEL.
        denoiser: the MODEL as a denoiser, with the prompts of the fit."""
    model_sampling, model_identity = sampling_of(model), identity(model)
    low, high = sigma_range(model_sampling)
    scale = noise_scale(model_sampling)
    prompts, shape, device = len(denoiser.guiders), denoiser.shape, model.load_device

    def draw(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, Any]]:
        noise = torch.randn(count, *shape, generator=generator) * scale
        number = int(torch.randint(prompts, (1,), generator=generator)) if prompts > 1 else 0
        return noise.to(device), {"prompt": torch.full((count,), number, device=device)}

    def rivals(nfe: int) -> dict[str, Rival]:
        scheduler = "simple" if is_flow(model_sampling) else "karras"
        return host_rivals(model_sampling, scheduler, nfe, denoiser.within_sampling)

    return Target(
        denoiser,
        draw,
        low,
        high,
        prediction_type=prediction_type(model_sampling),
        family=model_identity.family,
        fingerprint=model_identity.fingerprint,
        name=f"{model_identity.family} {model_identity.fingerprint[:8]}".strip(),
        evaluate=evaluate_prompted,
        rivals=rivals,
        signature=model_identity.signature,
    )


@contextmanager
def prompted_denoiser(
    model: Any, prompts: Prompts, guidance: float, seed: int, steps: int
) -> Iterator[PromptedDenoiser]:
    """Context manager that gives a MODEL as a denoiser for fitting a predictor, without gradients.

    At the end, the hooks that it sets on the network are removed. The arguments are those of
    PromptedDenoiser."""
    with torch.no_grad(), Watch(model) as watch:
        yield PromptedDenoiser(model, prompts, guidance, seed, steps, watch)
