"""The test harness itself: its errors where ComfyUI cannot run."""

import pytest

from demo.comfyui import Server, ServerError


def test_a_taken_port_is_named(server, tmp_path):
    with pytest.raises(ServerError, match=f"port {server.port} is in use"):
        Server(tmp_path, server.port).start()


def test_a_death_at_start_shows_the_log(server, tmp_path):
    with pytest.raises(ServerError, match=r"exit code 2[\s\S]*unrecognized arguments: --no-such-flag"):
        Server(tmp_path, arguments=("--no-such-flag",)).start()


def test_no_comfyui_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("demo.install.LOCAL", tmp_path)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(ServerError, match="python -m demo.comfyui install"):
        Server(tmp_path).start()
