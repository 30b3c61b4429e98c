"""The pack in a real ComfyUI connects to no address but this machine's.

The host runs with a hook that refuses and logs every other address (tests/trust/loopback.py)."""

import pytest
from trust import supply

from demo import comfyui

EXAMPLE = comfyui.WORKFLOWS / "01 Start here.json"


def involves_the_pack(files: str) -> bool:
    """Return whether a file of the pack is among those on the call stack."""
    return f"custom_nodes/{comfyui.PACK}/" in files


def test_starting_and_running_an_example_needs_no_network(tmp_path, monkeypatch):
    if comfyui.find() is None:
        pytest.skip("no ComfyUI: run `make test`, or set COMFYUI_PATH")
    for name, value in supply.offline_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    with comfyui.Server(tmp_path / "base") as server:
        monkeypatch.undo()  # child processes of this test are not the host's
        assert "AMEDKSampler" in server.object_info()
        assert server.run_workflow(EXAMPLE).images()
    sought = supply.requested(tmp_path)
    assert [line for line in sought if involves_the_pack(line[2])] == []
    assert [line for line in sought if line[0] == "address"] == []  # the host does not either
