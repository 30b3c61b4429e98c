"""Parity with the method authors' code, and the command that shows it."""

import shutil
import subprocess
import sys
from pathlib import Path

import golden
import pytest
import torch
from safetensors.torch import load_file, save_file

from amed.evaluate import FromModule

DATA = Path(golden.__file__).parent / "golden_data"
CASES = list(golden.cases(DATA))


def test_all_cases_exist():
    assert len([n for n, _ in CASES if n.startswith("sampling")]) == 20
    assert {n.split()[0] for n, _ in CASES} == {"sampling", "training", "sd15"}


@pytest.mark.parametrize("name, error", CASES, ids=[name for name, _ in CASES])
def test_a_case_is_reproduced(name, error):
    assert error <= 1e-5


def golden_command(folder) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, golden.__file__, str(folder)], capture_output=True, text=True)


def test_the_command_fails_on_one_wrong_number(tmp_path):
    for file in DATA.iterdir():
        shutil.copy(file, tmp_path)
    tensors = load_file(tmp_path / "sampling.safetensors")
    tensors["3.states"] = tensors["3.states"].clone()
    tensors["3.states"][-1] *= 1 + 1e-4
    save_file(tensors, tmp_path / "sampling.safetensors")
    process = golden_command(tmp_path)
    assert process.returncode == 1
    failed = [line for line in process.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1 and "sampling 3" in failed[0]


def test_the_command_accepts_any_folder_and_names_an_empty_one(tmp_path):
    shutil.copy(DATA / "sd15_table.safetensors", tmp_path)
    assert golden_command(tmp_path).returncode == 0
    empty = tmp_path / "empty"
    empty.mkdir()
    process = golden_command(empty)
    assert process.returncode == 1 and "empty" in process.stderr


def test_the_predictor_gets_the_toys_bottleneck():
    toy = golden.Toy(torch.zeros(4, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    evaluation = FromModule(toy.middle_block)(toy, x, torch.tensor([2.0, 2.0]), {})
    assert torch.allclose(evaluation.bottleneck, x / 5**0.5)
    assert not toy.middle_block._forward_hooks
