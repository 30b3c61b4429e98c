"""amed.fingerprint identifies a checkpoint in any precision, and tells different weights apart."""

import random

import numpy as np
import pytest
import torch
from quantisers import BLOCKS, pack, unpack

from amed.fingerprint import Identity, alike, distance, fingerprint, identity_of, signature, signs_of
from demo.model import UNet

PLAIN = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64,
         "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}  # fmt: skip


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet()


def weights(seed=1, heavy=False, count=36, shape=(96, 512)):
    """Return (name, weight) pairs; `heavy` gives them the long tails of trained weights."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(*shape, generator=generator)

    return [(f"block.{i}", 0.04 * normal() * ((0.7 * normal()).exp() if heavy else 1)) for i in range(count)]


def tuned(named, drift, seed=9):
    generator = torch.Generator().manual_seed(seed)
    return [(n, w + drift * w.std() * torch.randn(w.shape, generator=generator)) for n, w in named]


class Quantised(torch.Tensor):
    """A tensor of codes, as hosts and packs store them: only `dequantize()` returns its values."""

    @staticmethod
    def of(kind, weight):
        codes = torch.from_numpy(pack(kind, weight.numpy())).as_subclass(Quantised)
        codes.kind, codes.logical = kind, weight.shape
        return codes

    @property
    def shape(self):
        return self.logical

    def detach(self):
        return self

    def dequantize(self):
        return torch.from_numpy(unpack(self.kind, self.as_subclass(torch.Tensor).numpy())).reshape(
            self.logical
        )


def stored(form, named):
    """Return the weights as a file in this precision or GGUF format stores them."""
    if form == "scaled fp8":
        scales = [w.abs().max() / 448 for _, w in named]
        return [(n, (w / s).to(torch.float8_e4m3fn).float() * s) for (n, w), s in zip(named, scales)]
    if form.endswith(" as fp16"):
        return [(n, w.dequantize().half()) for n, w in stored(form.removesuffix(" as fp16"), named)]
    if form in BLOCKS:
        return [(n, Quantised.of(form, w)) for n, w in named]
    return [(n, w.to(PLAIN[form])) for n, w in named]


FORMS = (*PLAIN, "scaled fp8", *BLOCKS, "Q4_1 as fp16", "Q4_K as fp16")


@pytest.fixture(scope="module", params=[False, True], ids=["normal", "heavy"])
def checkpoint(request):
    """Return (the weights, {form: signature})."""
    named = weights(heavy=request.param)
    return named, {form: signature(stored(form, named)) for form in FORMS}


def test_dtype_and_name_prefix_do_not_matter(unet):
    expected = fingerprint(unet.named_parameters())
    assert len(expected) == 16
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert fingerprint((f"model.{n}", w.to(dtype)) for n, w in unet.named_parameters()) == expected
        assert signature((f"model.{n}", w.to(dtype)) for n, w in unet.named_parameters()) == signature(
            unet.named_parameters()
        )


def test_saved_fingerprints_stay_valid(unet):
    """The expected value was written by commit 8f1c09c."""
    assert fingerprint(unet.named_parameters()) == "e33de11eed301648"


def test_every_precision_is_the_same_checkpoint(checkpoint):
    _, signatures = checkpoint
    for form in FORMS:
        for other in FORMS:
            opposite, shared = distance(signatures[form], signatures[other])
            assert opposite == 0 and shared > 512, (form, other)
            assert alike(signatures[form], signatures[other])


@pytest.mark.parametrize("form", FORMS)
def test_another_checkpoint_differs_in_every_precision(checkpoint, form):
    named, signatures = checkpoint
    other = signature(stored(form, weights(2)))
    assert not [other_form for other_form in FORMS if alike(signatures[other_form], other)]


def test_shared_layers_do_not_hide_differing_matrices(checkpoint):
    """A GGUF file of another model with the same convolutions: every third matrix differs."""
    named, signatures = checkpoint
    theirs = [w if i % 3 else o for i, (w, o) in enumerate(zip(named, weights(2)))]
    assert not alike(signatures["fp16"], signature(stored("Q4_K", theirs)))
    assert not alike(signatures["Q4_K"], signature(stored("Q4_K", theirs)))


@pytest.mark.parametrize(("drift", "forms"), [
    (0.01, ("fp32", "fp16", "bf16", "scaled fp8", "fp8_e5m2")),
    (0.02, ("fp32", "fp16", "bf16", "scaled fp8", "fp8_e5m2", "Q8_0")),
    (0.1, ("fp32", "fp16", "bf16", "scaled fp8", "fp8_e5m2", "fp8_e4m3fn", "Q8_0", "Q4_0", "IQ4_NL")),
])  # fmt: skip
def test_slightly_trained_weights_are_another_checkpoint(checkpoint, drift, forms):
    """The drift is relative to the weights' own size, and is compared with the checkpoint in fp16.

    A drift that 4-bit rounding hides cannot be detected."""
    named, signatures = checkpoint
    after = tuned(named, drift)
    assert not [form for form in forms if alike(signatures["fp16"], signature(stored(form, after)))]


def test_fingerprint_and_signature_detect_slight_training(unet):
    original = fingerprint(unet.named_parameters())
    torch.manual_seed(1)
    after = [(n, w + 0.01 * w.std().nan_to_num() * torch.randn_like(w)) for n, w in unet.named_parameters()]
    assert fingerprint(after) != original
    assert not alike(signature(after), signature(unet.named_parameters()))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_merge_matches_neither_parent(share):
    first, other = weights(1), weights(2)
    merge = signature([(n, (1 - share) * a + share * b) for (n, a), (_, b) in zip(first, other)])
    assert not alike(merge, signature(first)) and not alike(merge, signature(other))


@pytest.mark.parametrize("shape", [(320, 512), (64, 3, 3, 3), (7, 5), (1, 33), (100, 4, 1, 1)])
@pytest.mark.parametrize("count", [1, 3, 31, 32, 33, 200])
def test_networks_of_any_size_have_a_signature(count, shape):
    named = weights(1, count=count, shape=shape)
    text = signature(named)
    opposite, shared = distance(text, signature([(f"a.{n}", w.half()) for n, w in named]))
    assert opposite == 0 and 0 < shared <= 4096 and len(text) < 800
    identity = identity_of("toy", named)
    assert identity.same(identity_of("toy", [(n, w.half()) for n, w in named]))  # by fingerprint or signature
    assert not identity.same(identity_of("toy", weights(2, count=count, shape=shape)))


def test_another_architecture_does_not_match():
    assert alike(signature(weights(1, count=40)), signature(weights(1, count=7))) is False


def test_constant_and_nan_weights_are_ignored():
    zeros = [(f"w{i}", torch.zeros(64, 64)) for i in range(40)]
    ones = [(f"w{i}", torch.ones(64, 64)) for i in range(40)]
    nans = [(f"w{i}", torch.full((64, 64), float("nan"))) for i in range(40)]
    assert [signs_of(signature(named))[2] for named in (zeros, ones, nans)] == [0, 0, 0]
    assert alike(signature(zeros), signature(weights())) is None


def test_codes_of_an_unknown_format_distinguish_checkpoints():
    def packed(seed):
        return [(n, torch.from_numpy(pack("Q8_0", w.numpy()))) for n, w in weights(seed)]

    assert alike(signature(packed(1)), signature(packed(1)))
    assert not alike(signature(packed(1)), signature(packed(2)))


def test_a_network_without_weight_matrices_is_an_error():
    for of in (fingerprint, signature):
        with pytest.raises(ValueError, match="no weight matrix"):
            of([("bias", torch.zeros(3))])


def test_an_invalid_signature_counts_as_missing():
    valid = signature(weights())
    dice = random.Random(0)
    broken = ["", "1.", "x", "2." + valid[2:], valid[:40], valid + "A", "1.!!!", "1." + "A" * 400, "\ud800"]
    broken += [
        valid[:i] + dice.choice("Aa0_") + valid[i + 1 :] for i in dice.sample(range(2, len(valid)), 50)
    ]
    for text in broken:
        assert alike(valid, text) in (None, True, False)
    assert [alike(valid, text) for text in broken[:4]] == [None] * 4


A, B = signature(weights(1)), signature(weights(2))


@pytest.mark.parametrize(("first", "other", "same"), [
    (("f", A), ("f", A), True),
    (("fp16's", A), ("Q4_K's", signature(stored("Q4_K", weights(1)))), True),
    (("f", A), ("f", B), False),
    (("f", ""), ("f", A), True),  # a file of an older version
    (("f", ""), ("f", ""), True),
    (("f", ""), ("g", A), False),
    (("", A), ("", A), True),
    (("", ""), ("", ""), False),  # neither is known
    (("", A), ("f", ""), False),
    (("f", "broken"), ("f", A), True),
])  # fmt: skip
def test_identities_match_by_fingerprint_or_signature(first, other, same):
    """Compare two identities, each (fingerprint, signature), in both orders."""
    first, other = Identity("sd15", *first), Identity("sd15", *other)
    assert first.same(other) is same and other.same(first) is same


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_quantisers_are_accurate_to_a_step(kind):
    """Each value is within about one step of its block."""
    x = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    steps = {"Q8_0": 0.02, "Q4_0": 0.5, "Q4_1": 0.35, "IQ4_NL": 0.6, "Q4_K": 0.35, "Q2_K": 1.0}
    assert np.abs(unpack(kind, pack(kind, x)).reshape(x.shape) - x).max() < steps[kind]
