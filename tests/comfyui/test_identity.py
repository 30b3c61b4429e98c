"""Which checkpoint a predictor belongs to, in a real ComfyUI: any precision, merges, LoRAs, and wrapped
SAMPLERs.

    GGUF_PATH=/where/ComfyUI-GGUF .venv/bin/python -m pytest tests/comfyui/test_identity.py

adds files of the pack ComfyUI-GGUF, which needs the package gguf (on PYTHONPATH). Without the variable these
tests are skipped, with a warning."""

import json
import os
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path

import pytest
from comfyui.predictor_kinds import Small

from amed import load
from demo import comfyui

PRECISIONS = ("fp32", "fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2", "scaled fp8")
GGUF = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q2_K", "IQ4_NL", "F16")
MERGES = (
    "ratio 0 is the second", "ratio 1 is the first", "ratio 1 is no merge", "half is another",
    "a tenth is another", "either way", "blocks", "every block of the second", "one block of both",
    "a difference", "b + (a - b) is a", "a merge of a merge", "is the merge by the product",
    "the other merge of a merge", "another pack's merge", "another pack's replacement",
    "half of each weight replaced", "a merge in fp8",
    "a merge of scaled fp8", "saved and loaded",
)  # fmt: skip
LORAS = ("a LoRA alone", "a LoRA on the first", "a LoRA on the second", "a LoRA on the merge")
IN_PLACE = [f"{what}, {when}" for what in ("merge", "LoRA", "LoRA merge") for when in (
    "patched in place", "another MODEL of the same weights meanwhile", "second parent meanwhile",
    "unloaded")]  # fmt: skip
REPLACED = ("a replaced network", "a replaced block", "compiled")
SIMPLE = {"euler": "euler", "uni_pc": "uni_pc", "dpm_fast": "dpm_fast_function", "lms": "lms (order 3)"}


def identities_from(folder, *packs):
    """Return the output of print_identities.py, run as a separate process."""
    if comfyui.find() is None:
        pytest.skip("no ComfyUI: run `make test`, or set COMFYUI_PATH")
    script = Path(__file__).with_name("print_identities.py")
    run = subprocess.run([sys.executable, script, folder, *packs], capture_output=True, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(next(line for line in run.stdout.splitlines() if line.startswith("{")))


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    path = os.environ.get("GGUF_PATH")
    return identities_from(tmp_path_factory.mktemp("identity"), *([path] if path else []))


@pytest.fixture(scope="module")
def gguf(identities):
    if not os.environ.get("GGUF_PATH"):
        warning = "GGUF_PATH is not set: files of ComfyUI-GGUF were NOT tested (test_identity.py says how)"
        warnings.warn(warning, stacklevel=1)
        pytest.skip(warning)
    return identities


def test_every_precision_is_the_same_checkpoint(identities):
    assert {identities["dtypes"][name] for name in PRECISIONS[:5]} == {
        "torch.float32", "torch.float16", "torch.bfloat16", "torch.float8_e4m3fn", "torch.float8_e5m2",
    }  # fmt: skip
    assert all(identities["one checkpoint"][f"{a}, {b}"] for a, b in product(PRECISIONS, repeat=2))


@pytest.mark.parametrize("other", ["b", "b in fp8", "tuned"])
def test_other_weights_are_another_checkpoint_in_every_precision(identities, other):
    assert not [name for name in PRECISIONS if identities["another"][f"{name}, {other}"]]


@pytest.mark.parametrize("case", [*MERGES, *LORAS, *IN_PLACE, *REPLACED])
def test_merges_change_the_identity_and_loras_do_not(identities, case):
    assert identities[case] is True


def test_the_report_says_if_a_merge_runs_its_parents_predictor(identities):
    assert identities["remark"] == ["fitted for another checkpoint of this family (a), this is a merge"]
    assert identities["remark for itself"] == []


def test_gguf_files_match_their_source_checkpoint(gguf):
    assert gguf["packed"] > 10 and gguf["dtypes"]["Q8_0"] == "torch.uint8"
    assert all(gguf["one checkpoint"][f"{a}, {b}"] for a, b in product((*PRECISIONS, *GGUF), repeat=2))
    assert not [case for case, same in gguf["another"].items() if same and "tuned" not in case]
    assert not gguf["another"]["fp16, same convolutions, Q8_0"]
    assert not gguf["another"]["Q4_K, same convolutions, Q4_K"]


@pytest.mark.parametrize("case", ["a merge of GGUF", "a LoRA on GGUF", "a LoRA on GGUF, loaded"])
def test_gguf_with_loras_and_merges(gguf, case):
    assert gguf[case] is True


def test_a_samplers_name_includes_all_its_settings(identities):
    names = identities["names"]
    assert {k: names[k] for k in SIMPLE} == SIMPLE  # existing files have these names
    assert names["around euler"].startswith("outer (s 0.1, around euler, ")
    assert names["around lms 3"].startswith("outer (s 0.1, around lms (order 3), ")
    assert len(set(names.values())) == len(names)
    assert identities["names again"] == names  # the same, from new objects


# --- in a graph --------------------------------------------------------------------------------------------


class TwoCheckpoints(Small):
    """A graph with two checkpoints of Stable Diffusion 1.5's architecture: `model` and `second`."""

    def __init__(self):
        super().__init__(width=32, height=32)
        self.second = [self.add("SmallModel", which="sd15", dtype="fp16", seed=1), 0]

    def merge(self, ratio):
        return [self.add("ModelMergeSimple", model1=self.model, model2=self.second, ratio=ratio), 0]

    def calibrate(self, model, name):
        inputs = {"nfe": "2", "sampler": "amed_multistep", "guidance": 1.0, "budget": "custom",
                  "evaluations": 1800, "seed": 0, "name": name}  # fmt: skip
        return self.add("AMEDCalibrate", **self.around() | {"model": model} | inputs)

    def sample(self, model):
        node, _ = latent = self.amed(2, "auto", model=model)
        self.add("SaveLatent", samples=latent, filename_prefix="identity")
        return node


def test_a_merge_does_not_use_its_parents_predictor(server):
    """Fit on one checkpoint, then merge it with another at any ratio, including 0."""
    folder = server.base / "models" / "amed_predictors"
    g = TwoCheckpoints()
    g.calibrate(g.model, "parent")
    server.run(g.nodes)
    g = TwoCheckpoints()
    nodes = {ratio: g.sample(g.merge(ratio)) for ratio in (1.0, 0.5, 0.0)}
    result = server.run(g.nodes)
    reports = {ratio: result.text(node) for ratio, node in nodes.items()}
    assert all("predictor: parent-nfe2-cfg1.safetensors" in text for text in reports.values())
    assert "note: fitted for another" not in reports[1.0]
    for ratio in (0.5, 0.0):
        assert "note: fitted for another checkpoint of this family" in reports[ratio]
        assert "this is a merge" in reports[ratio]

    g = TwoCheckpoints()
    g.calibrate(g.merge(0.5), "merge")
    server.run(g.nodes)
    parent, merge = (load(folder / f"{name}-nfe2-cfg1.safetensors").spec for name in ("parent", "merge"))
    assert parent.model_signature and not merge.identity.same(parent.identity)
    g = TwoCheckpoints()
    nodes = [g.sample(g.merge(0.5)), g.sample(g.model)]
    result = server.run(g.nodes)
    for node, name in zip(nodes, ("merge", "parent")):
        assert f"predictor: {name}-nfe2-cfg1.safetensors" in result.text(node)
        assert "another checkpoint" not in result.text(node)
