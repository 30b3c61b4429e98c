"""ComfyUI's registry installs neither tests nor training data, and the installed files work."""

import shutil
import subprocess
import sys

import pytest

from demo.comfyui import ROOT, Server

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")


def git(*arguments):
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.fixture(scope="module")
def installed():
    """Return the paths of the repository that .comfyignore does not exclude."""
    if not (ROOT / ".git").exists():
        pytest.skip("this copy of the pack is no git repository")
    return sorted(set(git("ls-files")) - set(git("ls-files", "-ci", "--exclude-from=.comfyignore")))


def test_which_files_are_left_out(installed):
    folders = {name.split("/")[0] for name in installed}
    assert not folders & {"tests", "bench", ".ci", "Makefile"}
    assert {name for name in installed if name.startswith("demo/")} == {
        "demo/__init__.py", "demo/data.py", "demo/model.py", "demo/emoji32.safetensors",
        "demo/avatars/__init__.py", "demo/avatars/attributes.py", "demo/avatars/model.py",
        "demo/avatars/avatars32.safetensors",
    }  # fmt: skip
    for wanted in ("README.md", "LICENSE", "requirements.txt", "install.py", "docs/icon.png", "__init__.py"):
        assert wanted in installed
    assert sum((ROOT / name).stat().st_size for name in installed) < 20e6


def test_the_installed_files_run(installed, tmp_path, graph):
    pack = tmp_path / "pack"
    for name in installed:
        (pack / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, pack / name)
    with Server(tmp_path / "base", pack=pack) as server:
        g = graph()
        shown = g.show(g.amed(nfe=5, sampler="auto"))
        (image,) = server.run(g.nodes).images(shown)
        assert image.std() > 10
        assert set(server.get("/workflow_templates")["comfyui-amed"]) == {
            name.split("/")[1].removesuffix(".json")
            for name in installed
            if name.startswith("example_workflows/") and name.endswith(".json")
        }


def test_pyproject_is_complete():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    comfy = project["tool"]["comfy"]
    assert comfy["DisplayName"] and comfy["PublisherId"] and comfy["requires-comfyui"].startswith(">=0.3.")
    assert comfy["Icon"].endswith("/docs/icon.png") and (ROOT / "docs" / "icon.png").is_file()
    assert project["project"]["urls"]["Repository"].startswith("https://")
