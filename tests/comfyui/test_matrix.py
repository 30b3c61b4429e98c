"""Run the matrix (matrix_rows.py) in a real ComfyUI; it makes the page docs/COMPATIBILITY.md.

Each cell runs with all its assertions, or is refused with an asserted message, or its node does not exist in
this host. AMED_WRITE=1 writes the page and also runs slow rows; without it the page must agree with the
results."""

import os
import re

import pytest
import torch
from comfyui.matrix_rows import ROWS, Bench, Row
from comfyui.predictor_kinds import KINDS, Kind, write_files
from safetensors.torch import save_file
from trust import page as trust

from demo.comfyui import ROOT, GraphError, RunError

WRITE = bool(os.environ.get("AMED_WRITE"))
PAGE = ROOT / "docs" / "COMPATIBILITY.md"
HEAD = """# What runs with what

Written by the tests (`tests/comfyui/test_matrix.py`) in ComfyUI {version}, with small networks of its own
classes and random weights. Every cell was run. *runs*: a finite image of the right shape, with the expected
numbers of evaluations and passes; where a comparison is possible, the images are equal (a disabled patch
changes nothing, a batch equals its single images, a MODEL samples afterwards as before). *refused*: an
error, whose message is below. *not here*: this version has no such node. Empty: this combination does not
exist.

The columns are predictors. In SamplerCustom with AMED Sampler: constants (*AMED-Solver*; *AMED-Plugin* on
iPNDM), a table with *bands* and an offset, a table of *halves* that spares two of eight passes, and the
paper's *network*, which reads the bottleneck. *KSampler*: Apply AMED Predictor with the ordinary KSampler.
*around*: a predictor around a sampler of ComfyUI's own, in both ways.
"""


@pytest.fixture(scope="module")
def bench(server):
    write_files(server.base / "models" / "amed_predictors")
    write_lora(server.base / "models" / "loras")
    return Bench(server)


def write_lora(folder):
    """Write a LoRA of rank 2 on two layers of the U-Net of small_models.py."""
    folder.mkdir(exist_ok=True)
    drawn, tensors = torch.Generator().manual_seed(5), {}
    for name in ("attn1_to_q", "attn2_to_v"):
        key, width = f"lora_unet_middle_block_1_transformer_blocks_0_{name}", 64 if "attn2" in name else 128
        tensors[f"{key}.lora_down.weight"] = torch.randn(2, width, generator=drawn)
        tensors[f"{key}.lora_up.weight"] = torch.randn(128, 2, generator=drawn)
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, folder / "small.safetensors")


def outcome(bench: Bench, row: Row, kind: Kind, nodes: dict) -> str:
    """Return the result of a cell. Raises AssertionError if a cell does what it should not."""
    if missing := [node for node in row.needs if node not in nodes]:
        return f"not here: this ComfyUI has no {', '.join(missing)}"
    if numbers(bench.version) < numbers(row.since):
        return f"not here: this ComfyUI's own {row.name} fails, mended in {row.since}"
    expected = row.refused.get(kind.name)
    try:
        row.check(bench, kind)
    except RunError as error:
        assert expected is not None, f"{error.node}: {error}"
        assert re.search(expected, str(error)), str(error)
        return f"refused: {error}"
    assert expected is None, f"the cell ran, but should be refused: {expected}"
    return "runs"


def numbers(version: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", version)]


RESULTS: dict[str, dict[str, str]] = {}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_of_the_matrix(bench, row):
    if row.slow and not WRITE:
        pytest.skip("minutes: make matrix runs it")
    nodes, wrong, cells = bench.server.object_info(), {}, {}
    for kind in KINDS:
        if row.concerns(kind):
            try:
                cells[kind.name] = outcome(bench, row, kind, nodes)
            except (AssertionError, GraphError) as error:
                wrong[kind.name] = str(error)[:600]
    assert not wrong, "\n".join(f"[{name}] {text}" for name, text in wrong.items())
    RESULTS[row.name] = cells


def test_the_page_agrees_with_the_results(bench):
    """Compared on the host version that the page names; in other versions only the rows must pass."""
    slow = {row.name for row in ROWS if row.slow and row.name not in RESULTS}
    if {*RESULTS, *slow} != {row.name for row in ROWS}:
        pytest.skip("not every row was run, or passed")
    version = bench.version
    text = page(version, RESULTS)
    if WRITE:
        PAGE.write_text(text)
        trust.put(part(version))
        return
    assert PAGE.is_file(), f"{PAGE.name} does not exist: run python -m trust.matrix"
    written = PAGE.read_text()
    if f"ComfyUI {version}" not in written:
        pytest.skip(f"{PAGE.name} is of another version of ComfyUI than {version}")
    rows = [line for line in written.splitlines(True) if line.split(" | ")[0][2:] not in slow]
    assert "".join(rows) == text, f"{PAGE.name} is outdated: run python -m trust.matrix"


def page(version: str, results: dict[str, dict[str, str]]) -> str:
    """Return the page with the table; each refusal's message stands once below the table, by number."""
    messages: list[str] = []

    def cell(text: str) -> str:
        if not text.startswith("refused: "):
            return text
        message = " ".join(text.removeprefix("refused: ").split())
        if message not in messages:
            messages.append(message)
        return f"refused [{messages.index(message) + 1}]"

    names = [kind.name for kind in KINDS]
    lines = [HEAD.format(version=version), f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    lines += [
        f"| {row} | {' | '.join(cell(cells.get(n, '')) for n in names)} |" for row, cells in results.items()
    ]
    lines += [
        "",
        "Messages of the refusals:",
        "",
        *(f"{i}. {text}" for i, text in enumerate(messages, 1)),
        "",
    ]
    return "\n".join(lines)


def part(version: str) -> trust.Part:
    """Return the matrix's part of docs/TRUST.md."""
    cells = [text.split(":")[0] for row in RESULTS.values() for text in row.values()]
    about = (
        "The effects of a real ComfyUI on models, latents and runs, each with every kind of "
        "predictor; docs/COMPATIBILITY.md has the table."
    )
    counts = [(f"cells: {state}", str(cells.count(state))) for state in ("runs", "refused", "not here")]
    rows = [("host", f"ComfyUI {version}"), *counts, ("cells that fail", "0")]
    return trust.Part("matrix", "ComfyUI's features, one by one", "make matrix", about, rows)
