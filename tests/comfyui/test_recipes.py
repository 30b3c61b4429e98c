"""The solvers equal those of ComfyUI (for DPM-Solver++ 3M's moves see tests/trust/test_numerics.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo import comfyui

CASES = [
    *(f"unipc {order} {variant}" for order in (1, 2, 3) for variant in ("bh1", "bh2")),
    *(f"deis {order} bh1" for order in (2, 3, 4)),
    *(f"ipndm {order} bh1" for order in (2, 3, 4)),
    *(f"{name} bh1" for name in ("euler 1", "dpm_2 1", "heun 1", "dpmpp 2")),
]
PAIRS = ("dpm_2", "heun")


@pytest.fixture(scope="module")
def rows():
    if comfyui.find() is None:
        pytest.skip("no ComfyUI: run `make test`, or set COMFYUI_PATH")
    script = Path(__file__).with_name("print_solver_ends.py")
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("case", [f"{case}{end}" for case in CASES for end in ("", " to 0")])
def test_the_images_equal_the_hosts(rows, case):
    """In float64, over several numbers of steps, to far less than 1e-4."""
    mine = [row for row in rows if row["case"] == case]
    assert [row["steps"] for row in mine] == [2, 3, 5, 8]
    for row in mine:
        assert row["difference"] < 1e-9 < 0.5 < row["size"], row
        pair, zero = case.startswith(PAIRS), case.endswith(" to 0")
        assert row["evaluations"] == [(1 + pair) * row["steps"] - (pair and zero)] * 2


def test_the_solvers_differ_from_each_other(rows):
    """The comparison can fail: no two solvers give the same image at 8 steps."""
    ends = {row["case"]: row["size"] for row in rows if row["steps"] == 8}
    assert len(set(ends.values())) == len(ends) == 2 * len(CASES)
