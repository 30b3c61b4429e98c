"""Bottleneck capture against the hosts' row orders, restated here from their denoisers.

Every row carries who it is: image number + 10 * prompt number, 90 for the negative prompt."""

from types import SimpleNamespace

import pytest
import torch
from amed_webui.capture import RowCapture, by_chunks, in_order
from torch import nn

NEGATIVE = 90


class UNet(nn.Module):
    """A middle block that gives back who each row is."""

    def __init__(self):
        super().__init__()
        self.middle_block = nn.Sequential(nn.Identity(), nn.Identity())

    def forward(self, who, transformer_options=None):
        return self.middle_block(who.view(-1, 1, 1, 1).float())


class A1111:
    """sd_samplers_cfg_denoiser.CFGDenoiser.forward: which rows the U-Net gets, call by call."""

    def __init__(self, unet, batched=True, same_length=True, skip_uncond=False):
        self.unet, self.batched, self.same_length, self.skip = unet, batched, same_length, skip_uncond

    def __call__(self, x, sigma, cond, uncond):
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
        for call in calls:
            self.unet(torch.tensor(call))
        return x


class Forge:
    """backend.sampling.sampling_function.calc_cond_uncond_batch: chunks in reversed order, `at_once` of
    them a call."""

    def __init__(self, unet, at_once=9, guided=True):
        self.unet, self.at_once, self.guided = unet, at_once, guided

    def __call__(self, x, sigma, cond, uncond):
        prompts = max(len(image) for image in cond.batch)
        to_run = [(n, 0) for n in range(prompts)] + ([(9, 1)] if self.guided else [])
        while to_run:
            last_first = list(range(len(to_run)))[::-1]
            parts = next(i for i in range(1, len(to_run) + 1) if len(to_run) // i <= self.at_once)
            chosen = [to_run.pop(i) for i in last_first[: len(last_first) // parts]]
            who = torch.cat([torch.arange(len(x)) * (kind == 0) + 10 * n for n, kind in chosen])
            options = {"cond_or_uncond": [kind for _, kind in chosen]}
            self.unet(who, transformer_options=options)
        return x


def told(images, prompts=1):
    return {"cond": SimpleNamespace(batch=[[None] * prompts] * images), "uncond": [None] * images}


def who(capture, host, images, prompts=1):
    x = torch.zeros(images, 4, 8, 8)
    _, found = capture(host, x, torch.ones(images), told(images, prompts))
    return None if found is None else found.flatten().tolist()


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("prompts", [1, 2, 3])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("same_length", [True, False])
@pytest.mark.parametrize("skip_uncond", [True, False])
def test_a1111(images, prompts, batched, same_length, skip_uncond):
    unet = UNet()
    host = A1111(unet, batched, same_length, skip_uncond)
    assert who(RowCapture(lambda: unet, in_order), host, images, prompts) == list(range(images))


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("prompts", [1, 2, 3])
@pytest.mark.parametrize("at_once", [1, 2, 9])
@pytest.mark.parametrize("guided", [True, False])
def test_forge(images, prompts, at_once, guided):
    unet = UNet()
    host = Forge(unet, at_once, guided)
    assert who(RowCapture(lambda: unet, by_chunks), host, images, prompts) == list(range(images))


def test_the_wrong_rule_would_be_seen():
    unet = UNet()
    assert who(RowCapture(lambda: unet, in_order), Forge(unet), 2) != [0, 1]


class Interrupted(BaseException):
    pass


def test_hooks_are_gone_after_an_interruption():
    unet = UNet()

    def interrupted(x, sigma, cond, uncond):
        unet(torch.arange(len(x)))
        raise Interrupted

    with pytest.raises(Interrupted):
        who(RowCapture(lambda: unet, in_order), interrupted, 2)
    assert not unet._forward_pre_hooks and not unet.middle_block[-1]._forward_hooks


def test_what_cannot_be_told_is_none_and_counted():
    unet = UNet()
    capture = RowCapture(lambda: unet, by_chunks)
    assert who(capture, A1111(unet), 2) is None and capture.failed == 1
    none = RowCapture(lambda: None, in_order)
    assert who(none, A1111(unet), 2) is None and none.failed == 1
    swapped = RowCapture(UNet, in_order)  # a refiner swaps the model inside the call
    assert who(swapped, A1111(unet), 2) is None and swapped.failed == 1
