"""Bottleneck and halves against the hosts' row orders, reimplemented here from their denoisers.

Each row's value identifies it: image number + 10 * prompt number, 90 for the negative prompt."""

from types import SimpleNamespace

import pytest
import torch
from amed_webui.evaluate import Chunks, HostEvaluate, PromptsFirst
from torch import nn

NEGATIVE = 90


class UNet(nn.Module):
    """A middle block that returns each row's identifying value."""

    def __init__(self):
        super().__init__()
        self.middle_block = nn.Sequential(nn.Identity(), nn.Identity())

    def forward(self, bottleneck_rows, transformer_options=None):
        return self.middle_block(bottleneck_rows.view(-1, 1, 1, 1).float())


class Wrapper(nn.Module):
    """k-diffusion's wrapper: a row denoises to its identifying value plus 1000."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, bottleneck_rows):
        return self.unet(bottleneck_rows) + 1000


class A1111:
    """sd_samplers_cfg_denoiser.CFGDenoiser.forward: which rows the U-Net gets, call by call."""

    def __init__(self, unet, batched=True, same_length=True, skip_uncond=False):
        self.unet, self.batched, self.same_length, self.skip = unet, batched, same_length, skip_uncond
        self.inner_model = Wrapper(unet)

    def __call__(self, x, sigma, cond, uncond, cond_scale=2.0):
        prompts = [i + 10 * n for i, image in enumerate(cond.batch) for n in range(len(image))]
        negative = [] if self.skip else [NEGATIVE] * len(x)
        rows, batch = prompts + negative, len(x)
        if self.same_length or self.skip:
            size = len(rows) if self.batched else batch
            calls = [rows[a : a + size] for a in range(0, len(rows), size)]
        else:
            size = batch * 2 if self.batched else batch
            calls = [prompts[a : a + size] for a in range(0, len(prompts), size)] + (
                [negative] if negative else []
            )
        out = torch.cat([self.inner_model(torch.tensor(call)) for call in calls])
        whole, each = out[len(prompts) :], out[: len(prompts)].view(batch, -1, 1, 1).mean(1, keepdim=True)
        return whole + cond_scale * (each - whole) if len(whole) else each


class Forge:
    """backend.sampling.sampling_function: chunks in reversed order, `at_once` of them per call.

    It passes on the halves; without guidance the negative half is zeros."""

    def __init__(self, unet, at_once=9, guided=True):
        self.unet, self.at_once, self.guided = unet, at_once, guided
        others = [lambda args: -args["input"]]
        self.patcher = SimpleNamespace(model_options={"sampler_post_cfg_function": others})
        objects = SimpleNamespace(forge_objects=SimpleNamespace(unet=self.patcher))
        self.inner_model = SimpleNamespace(inner_model=objects)

    def __call__(self, x, sigma, cond, uncond, cond_scale=2.0):
        guided = self.guided and cond_scale != 1
        prompts = max(len(image) for image in cond.batch)
        to_run = [(n, 0) for n in range(prompts)] + ([(9, 1)] if guided else [])
        while to_run:
            last_first = list(range(len(to_run)))[::-1]
            parts = next(i for i in range(1, len(to_run) + 1) if len(to_run) // i <= self.at_once)
            chosen = [to_run.pop(i) for i in last_first[: len(last_first) // parts]]
            bottleneck_rows = torch.cat([torch.arange(len(x)) * (kind == 0) + 10 * n for n, kind in chosen])
            options = {"cond_or_uncond": [kind for _, kind in chosen]}
            self.unet(bottleneck_rows, transformer_options=options)
        images = torch.arange(len(x)).view(-1, 1, 1, 1).float()
        mine, scale = images + 5 * (prompts - 1) + 1000, cond_scale if guided else 1.0
        negative = torch.full_like(images, NEGATIVE + 1000.0 if guided else 0.0)
        args = {"cond_denoised": mine, "uncond_denoised": negative, "input": x}
        args["denoised"] = negative + scale * (mine - negative)
        for function in self.patcher.model_options["sampler_post_cfg_function"]:
            args["denoised"] = function(args)
        return args["denoised"]


def evaluation_of(evaluate, host, images, prompts=1, wants=("bottleneck",), **more):
    extra_args = {"cond": SimpleNamespace(batch=[[None] * prompts] * images), "uncond": [None] * images}
    extra_args |= more
    x = torch.zeros(images, 4, 8, 8)
    return evaluate(host, x, torch.ones(images), extra_args, frozenset(wants))


def bottleneck_rows(evaluate, host, images, prompts=1):
    return flat(evaluation_of(evaluate, host, images, prompts).bottleneck)


def flat(rows):
    return None if rows is None else rows.flatten().tolist()


def a1111_ways(test):
    """Return every way in which A1111 runs its rows."""
    for name, values in {
        "skip_uncond": [True, False],
        "same_length": [True, False],
        "batched": [True, False],
        "prompts": [1, 2, 3],
    }.items():
        test = pytest.mark.parametrize(name, values)(test)
    return test


@pytest.mark.parametrize("images", [1, 2, 5])
@a1111_ways
def test_the_bottleneck_in_a1111(images, prompts, batched, same_length, skip_uncond):
    unet = UNet()
    host = A1111(unet, batched, same_length, skip_uncond)
    assert bottleneck_rows(HostEvaluate(lambda: unet, PromptsFirst()), host, images, prompts) == list(
        range(images)
    )


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("prompts", [1, 2, 3])
@pytest.mark.parametrize("at_once", [1, 2, 9])
@pytest.mark.parametrize("guided", [True, False])
def test_the_bottleneck_in_forge(images, prompts, at_once, guided):
    unet = UNet()
    host = Forge(unet, at_once, guided)
    assert bottleneck_rows(HostEvaluate(lambda: unet, Chunks()), host, images, prompts) == list(range(images))


def test_the_wrong_row_order_would_be_detected():
    unet = UNet()
    assert bottleneck_rows(HostEvaluate(lambda: unet, PromptsFirst()), Forge(unet), 2) != [0, 1]


class Interrupted(BaseException):
    pass


def test_hooks_are_gone_after_an_interruption():
    unet = UNet()

    def interrupted(x, sigma, cond, uncond):
        unet(torch.arange(len(x)))
        raise Interrupted

    with pytest.raises(Interrupted):
        bottleneck_rows(HostEvaluate(lambda: unet, PromptsFirst()), interrupted, 2)
    assert not unet._forward_pre_hooks and not unet.middle_block[-1]._forward_hooks


def test_an_unknown_bottleneck_is_none_and_counted():
    unet = UNet()
    evaluate = HostEvaluate(lambda: unet, Chunks())
    assert bottleneck_rows(evaluate, A1111(unet), 2) is None and evaluate.failed == 1
    none = HostEvaluate(lambda: None, PromptsFirst())
    assert bottleneck_rows(none, A1111(unet), 2) is None and none.failed == 1
    swapped = HostEvaluate(UNet, PromptsFirst())  # a refiner swaps the model during the call
    assert bottleneck_rows(swapped, A1111(unet), 2) is None and swapped.failed == 1


# --- guidance's halves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 3])
@a1111_ways
def test_halves_in_a1111(images, prompts, batched, same_length, skip_uncond):
    """From the rows that run anyway: the mean for AND; None for a negative prompt that was left out."""
    unet = UNet()
    host = A1111(unet, batched, same_length, skip_uncond)
    evaluate = HostEvaluate(lambda: unet, PromptsFirst())
    evaluation = evaluation_of(evaluate, host, images, prompts, ("halves",))
    assert flat(evaluation.cond) == [1000 + i + 10 * (prompts - 1) / 2 for i in range(images)]
    assert flat(evaluation.uncond) == (None if skip_uncond else [1000 + NEGATIVE] * images)
    assert evaluate.rows == images * (prompts + (not skip_uncond)) and evaluate.evaluations == 1
    assert evaluation.bottleneck is None and evaluate.failed == 0 and not host.inner_model._forward_hooks


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("at_once", [1, 9])
@pytest.mark.parametrize("guided", [True, False])
def test_halves_in_forge(images, at_once, guided):
    """The halves before other extensions' functions, which run as usual; the options are restored."""
    unet = UNet()
    host = Forge(unet, at_once, guided)
    before, evaluate = dict(host.patcher.model_options), HostEvaluate(lambda: unet, Chunks())
    evaluation = evaluation_of(evaluate, host, images, 1, ("halves", "bottleneck"))
    assert flat(evaluation.cond) == [1000 + i for i in range(images)]
    assert flat(evaluation.uncond) == ([1000 + NEGATIVE] * images if guided else None)
    assert flat(evaluation.bottleneck) == list(range(images))
    assert torch.equal(evaluation.denoised, -torch.zeros(images, 4, 8, 8))
    assert host.patcher.model_options == before and len(before["sampler_post_cfg_function"]) == 1
    assert evaluate.rows == images * (1 + guided)


@pytest.mark.parametrize("order", [PromptsFirst(), Chunks()])
def test_halves_of_weighted_prompts_are_captured_only_on_request(order):
    """A1111 gives each prompt of AND its weight; outputs that nobody requested are not captured."""
    unet = UNet()
    host = A1111(unet) if isinstance(order, PromptsFirst) else Forge(unet)
    evaluation = evaluation_of(HostEvaluate(lambda: unet, order), host, 2, 1, ())
    assert evaluation.bottleneck is None and evaluation.cond is None and evaluation.uncond is None
    if isinstance(order, PromptsFirst):
        batch = [[SimpleNamespace(weight=1.0), SimpleNamespace(weight=3.0)]]
        extra_args = {"cond": SimpleNamespace(batch=batch), "uncond": [None]}
        arguments = torch.zeros(1, 4, 8, 8), torch.ones(1), extra_args, frozenset({"halves"})
        evaluation = HostEvaluate(lambda: unet, order)(host, *arguments)
        assert flat(evaluation.cond) == [1000 + 7.5]


def test_without_guidance_there_is_no_negative_half():
    """A1111 runs the negative prompt even at CFG scale 1."""
    unet = UNet()
    extra_args = {"cond": SimpleNamespace(batch=[[None]]), "uncond": [None], "cond_scale": 1}

    class Scaled(A1111):
        def __call__(self, x, sigma, cond, uncond, cond_scale):
            return super().__call__(x, sigma, cond, uncond)

    arguments = torch.zeros(1, 4, 8, 8), torch.ones(1), extra_args, frozenset({"halves"})
    evaluation = HostEvaluate(lambda: unet, PromptsFirst())(Scaled(unet), *arguments)
    assert flat(evaluation.cond) == [1000] and evaluation.uncond is None


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kind", ["a1111", "a1111, halves apart", "forge", "forge, halves apart"])
def test_the_prompts_half_alone(kind, images):
    """Only the prompt's half is returned, at any CFG scale: Forge skips the negative prompt, A1111 runs it in
    vain.

    Neither half of guidance is mistaken for the other."""
    unet, forge, apart = UNet(), kind.startswith("forge"), kind.endswith("apart")
    host = Forge(unet, 1 if apart else 9) if forge else A1111(unet, not apart)
    if forge:
        host.patcher.model_options["sampler_post_cfg_function"].clear()
    evaluate = HostEvaluate(lambda: unet, Chunks() if forge else PromptsFirst())
    both_halves = evaluation_of(evaluate, host, images, wants=("halves",), cond_scale=7.0)
    rows = evaluate.rows
    alone = evaluation_of(evaluate, host, images, wants=("halves", "cond"), cond_scale=7.0)
    assert flat(alone.denoised) == flat(both_halves.cond) == [1000 + i for i in range(images)]
    assert flat(both_halves.denoised) == [1090 + 7 * (i - 90) for i in range(images)]
    assert alone.uncond is None and flat(alone.cond) == flat(both_halves.cond)
    assert (rows, evaluate.rows - rows) == (2 * images, images if forge else 2 * images)
    assert evaluate.evaluations == 2


def test_halves_are_none_where_they_are_unavailable():
    """For an image-editing checkpoint's three rows, another sampler's model, and a refiner in mid-call."""
    unet = UNet()
    host = A1111(unet)

    def three(x, sigma, cond, uncond):
        host.inner_model(torch.arange(3 * len(x)))
        return x

    three.inner_model = host.inner_model
    evaluation = evaluation_of(HostEvaluate(lambda: unet, PromptsFirst()), three, 2, 1, ("halves",))
    assert (evaluation.cond, evaluation.uncond) == (None, None)

    def bare(x, sigma, cond, uncond):
        return x

    for order in (PromptsFirst(), Chunks()):
        evaluation = evaluation_of(HostEvaluate(lambda: unet, order), bare, 2, 1, ("halves",))
        assert (evaluation.cond, evaluation.uncond) == (None, None) and evaluation.denoised is not None


def test_options_are_restored_after_an_interruption():
    unet = UNet()
    host = Forge(unet)
    host_options, calls = host.patcher.model_options, []

    def interrupted(x, sigma, cond, uncond):
        calls.append(len(host.patcher.model_options["sampler_post_cfg_function"]))
        raise Interrupted

    interrupted.inner_model = host.inner_model
    with pytest.raises(Interrupted):
        evaluation_of(HostEvaluate(lambda: unet, Chunks()), interrupted, 2, 1, ("halves",))
    assert calls == [2] and host.patcher.model_options is host_options and not unet._forward_pre_hooks
