"""The quick form of supply.py, and that its checks can fail."""

import re
import subprocess

import pytest
from trust import supply


def test_the_table_of_dependencies_is_the_files():
    assert supply.stated() == supply.requirements()


def test_what_runs_in_a_host_imports_what_is_required_there():
    assert supply.unstated() == {}


def test_nothing_that_runs_in_a_host_imports_what_fetches():
    assert supply.reaching() == {}


def test_python_3_10_parses_every_file():
    assert supply.too_new() == {}
    promised = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (supply.ROOT / "pyproject.toml").read_text())
    assert tuple(map(int, promised.groups())) == supply.OLDEST


def test_ci_runs_the_oldest_python_and_a_newer_one():
    text = (supply.ROOT / ".github" / "workflows" / "ci.yml").read_text()
    versions = re.findall(r'"(\d\.\d+)"', text)
    assert versions[0] == "3.10" and len(versions) == 2 and "bash .ci/run" in text
    assert all(action.startswith("actions/") for action in re.findall(r"uses: (\S+)", text))


def test_every_licence_is_stated():
    """Of code, data and model; and the licence of the code is the one that is there."""
    text = (supply.ROOT / "SECURITY.md").read_text()
    assert "Apache License" in (supply.ROOT / "LICENSE").read_text()[:200]
    weights = list(supply.ROOT.glob("demo/*.safetensors"))
    assert weights and all(f"demo/{file.name}" in text for file in weights)
    stems = {file.stem for file in supply.ROOT.glob("predictors/*.safetensors")}
    assert all(stem.startswith("emoji32-") or f"predictors/{stem}" in text for stem in stems)
    assert "Apache License 2.0" in (supply.ROOT / "demo" / "README.md").read_text()


def test_a_run_reaches_for_nothing(tmp_path):
    """Every module, files, sampling, a fit, a converted pickle; and no program is started."""
    said, sought = supply.alone(tmp_path)
    assert said.startswith("done 43 11 ") and sought == []


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), 1)",
        "import socket; socket.socket().connect(('192.0.2.1', 80))",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "import urllib.request; urllib.request.urlopen('http://example.org/')",
    ],
)
def test_it_would_be_seen(tmp_path, code):
    with pytest.raises(subprocess.CalledProcessError) as failed:
        supply.alone(tmp_path, code)
    assert "only this machine is allowed" in failed.value.stderr
    assert [kind for kind, *_ in supply.asked(tmp_path)] == ["address"]


def test_loopback_and_this_machines_sockets_are_allowed(tmp_path):
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    )
    assert supply.alone(tmp_path, code)[1] == []
