"""The matrix (matrix_rows.py) in a real ComfyUI, and the page it makes: docs/COMPATIBILITY.md.

A cell runs, with everything asserted that can be, or is refused in words that are asserted, or its node is
not in this host. AMED_WRITE=1 writes the page and runs slow rows too; without it the page must say what was
just found."""

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

Made by the tests (`tests/comfyui/test_matrix.py`) in ComfyUI {version}, on networks of its own classes, small
and with random weights. Each cell was run: *runs* means a finite image of the right shape, evaluations and
passes counted as they should be, and where something can be compared (a patch turned off is no patch, a batch
is its images, a MODEL samples as before) that it is equal. *refused* is an error in words, below; *not here*:
this version has no such node. An empty cell cannot be put together.

Columns: AMED Sampler in SamplerCustom with constants (*AMED-Solver*, *AMED-Plugin* on iPNDM), with a table of
*bands* and offset, of *halves* that spares two of eight passes, with the paper's *network* on the bottleneck;
Apply AMED Predictor and the ordinary *KSampler*; and a predictor *around* a sampler of ComfyUI's own, by both
ways.
"""


@pytest.fixture(scope="module")
def bench(server):
    write_files(server.base / "models" / "amed_predictors")
    write_lora(server.base / "models" / "loras")
    return Bench(server)


def write_lora(folder):
    """Of rank 2, on two layers of small_models.py's U-Net."""
    folder.mkdir(exist_ok=True)
    drawn, made = torch.Generator().manual_seed(5), {}
    for name in ("attn1_to_q", "attn2_to_v"):
        key, width = f"lora_unet_middle_block_1_transformer_blocks_0_{name}", 64 if "attn2" in name else 128
        made[f"{key}.lora_down.weight"] = torch.randn(2, width, generator=drawn)
        made[f"{key}.lora_up.weight"] = torch.randn(128, 2, generator=drawn)
        made[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(made, folder / "small.safetensors")


def outcome(bench: Bench, row: Row, kind: Kind, nodes: dict) -> str:
    """Of a cell. Raises AssertionError for one that does what it should not."""
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
    assert expected is None, f"it ran, but should be refused: {expected}"
    return "runs"


def numbers(version: str) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", version)]


FOUND: dict[str, dict[str, str]] = {}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(bench, row):
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
    FOUND[row.name] = cells


def test_the_page_says_what_was_found(bench):
    """On the host version that it names; on another one every row above must pass all the same."""
    slow = {row.name for row in ROWS if row.slow and row.name not in FOUND}
    if {*FOUND, *slow} != {row.name for row in ROWS}:
        pytest.skip("not every row was run, or passed")
    version = bench.version
    text = page(version, FOUND)
    if WRITE:
        PAGE.write_text(text)
        trust.put(part(version))
        return
    assert PAGE.is_file(), f"there is no {PAGE.name} yet: python -m trust.matrix writes it"
    written = PAGE.read_text()
    if f"ComfyUI {version}" not in written:
        pytest.skip(f"{PAGE.name} is of another version of ComfyUI than {version}")
    rows = [line for line in written.splitlines(True) if line.split(" | ")[0][2:] not in slow]
    assert "".join(rows) == text, "AMED_WRITE=1 writes it anew"


def page(version: str, found: dict[str, dict[str, str]]) -> str:
    """The table; what a refusal says stands once, below it, by a number."""
    said: list[str] = []

    def cell(text: str) -> str:
        if not text.startswith("refused: "):
            return text
        message = " ".join(text.removeprefix("refused: ").split())
        if message not in said:
            said.append(message)
        return f"refused [{said.index(message) + 1}]"

    names = [kind.name for kind in KINDS]
    lines = [HEAD.format(version=version), f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    lines += [
        f"| {row} | {' | '.join(cell(cells.get(n, '')) for n in names)} |" for row, cells in found.items()
    ]
    lines += ["", "What a refusal says:", "", *(f"{i}. {text}" for i, text in enumerate(said, 1)), ""]
    return "\n".join(lines)


def part(version: str) -> trust.Part:
    """Of docs/TRUST.md."""
    cells = [text.split(":")[0] for row in FOUND.values() for text in row.values()]
    about = (
        "What a real ComfyUI does to models, latents and runs, each with every kind of thing offered here: "
    )
    about += "docs/COMPATIBILITY.md has the table."
    counts = [(f"cells: {what}", str(cells.count(what))) for what in ("runs", "refused", "not here")]
    rows = [("host", f"ComfyUI {version}"), *counts, ("cells that fail", "0")]
    return trust.Part("matrix", "ComfyUI's features, one by one", "make matrix", about, rows)
