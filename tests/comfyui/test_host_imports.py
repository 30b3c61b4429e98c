"""Each module of ComfyUI's internals is imported in one file of nodes/, so that a change of the host affects
one file."""

import ast

import pytest

from demo.comfyui import ROOT

INSIDES = (
    "comfy",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
)  # comfy_api is the host's stable interface for packs
FILES = sorted((ROOT / "nodes").glob("*.py"))


def parsed(file):
    return list(ast.walk(ast.parse(file.read_text())))


def imported(file):
    """Return the modules of the host's internals that a file imports anywhere."""
    names = set()
    for node in parsed(file):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] in INSIDES}


def test_each_module_of_the_host_is_imported_in_one_file():
    owners = {}
    for file in FILES:
        for module in imported(file):
            owners.setdefault(module, []).append(file.name)
    assert len(owners) >= 10
    assert not {module: files for module, files in owners.items() if len(files) > 1}
    assert {name for files in owners.values() for name in files} == {
        "counting.py", "folders.py", "model.py", "register.py", "running.py", "weights.py",
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_file_imports_what_it_uses(file):
    """`import comfy.utils` makes every imported comfy module reachable, so each file must import what it
    uses."""
    used = {ast.unparse(node) for node in parsed(file) if isinstance(node, ast.Attribute)}
    used = {name for name in used if name.startswith("comfy.")}
    assert not [name for name in used if not any(f"{name}.".startswith(f"{m}.") for m in imported(file))
                and not any(m.startswith(f"{name}.") for m in imported(file))]  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_are_small(file):
    assert len(file.read_text().splitlines()) <= 300
