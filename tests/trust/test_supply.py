"""The quick form of supply.py, and a check that it can fail."""

import re
import subprocess

import pytest
from trust import supply


def test_the_table_of_dependencies_agrees_with_the_files():
    assert supply.stated_requirements() == supply.requirements()


def test_host_code_imports_only_stated_requirements():
    assert supply.unstated_imports() == {}


def test_host_code_imports_no_network_modules():
    assert supply.network_imports() == {}


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
    """Licences of code, data and model; the code's is that of the LICENSE file."""
    text = (supply.ROOT / "SECURITY.md").read_text()
    assert "Apache License" in (supply.ROOT / "LICENSE").read_text()[:200]
    weights = [
        file for folder in ("demo", "demo/avatars") for file in supply.ROOT.glob(f"{folder}/*.safetensors")
    ]
    assert len(weights) == 4
    assert all(file.relative_to(supply.ROOT).as_posix() in text for file in weights)
    stems = {file.stem for file in supply.ROOT.glob("predictors/*.safetensors")}
    ours = {stem for stem in stems if stem.startswith(("emoji32-", "avatars32-"))}
    assert all(f"predictors/{stem}" in text for stem in stems - ours)
    assert "predictors/emoji32-*" in text and "predictors/avatars32-*" in text
    assert "Apache License 2.0" in (supply.ROOT / "demo" / "README.md").read_text()


def test_a_run_accesses_no_network(tmp_path):
    """Every module, files, sampling, a fit, a converted pickle; and no program is started."""
    output, sought = supply.run_offline(tmp_path)
    assert output.startswith("done 53 14 ") and sought == []


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), 1)",
        "import socket; socket.socket().connect(('192.0.2.1', 80))",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "import urllib.request; urllib.request.urlopen('http://example.org/')",
    ],
)
def test_network_access_would_be_detected(tmp_path, code):
    with pytest.raises(subprocess.CalledProcessError) as failed:
        supply.run_offline(tmp_path, code)
    assert "only this machine is allowed" in failed.value.stderr
    assert [kind for kind, *_ in supply.requested(tmp_path)] == ["address"]


def test_loopback_and_local_sockets_are_allowed(tmp_path):
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    )
    assert supply.run_offline(tmp_path, code)[1] == []
