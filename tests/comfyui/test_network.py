"""The pack in a real ComfyUI reaches for no address but this machine's: the host runs from its start with a
hook that refuses and writes down every other (tests/trust/loopback.py)."""

import pytest
from trust import supply

from demo import comfyui

EXAMPLE = comfyui.WORKFLOWS / "01 Start here.json"


def of_ours(files: str) -> bool:
    """Whether a file of the pack is among those that led somewhere."""
    return f"custom_nodes/{comfyui.PACK}/" in files


def test_start_and_an_example_reach_for_nothing(tmp_path, monkeypatch):
    if comfyui.find() is None:
        pytest.skip("no ComfyUI: run `make test`, or set COMFYUI_PATH")
    for name, value in supply.watched(tmp_path).items():
        monkeypatch.setenv(name, value)
    with comfyui.Server(tmp_path / "base") as server:
        monkeypatch.undo()  # this process's own children are not the host
        assert "AMEDKSampler" in server.object_info()
        assert server.run_workflow(EXAMPLE).images()
    sought = supply.asked(tmp_path)
    assert [line for line in sought if of_ours(line[2])] == []
    assert [line for line in sought if line[0] == "address"] == []  # nor does the host
