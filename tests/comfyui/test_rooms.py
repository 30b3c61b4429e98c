"""Only nodes/host/ uses ComfyUI's internals, and each module and hook of them stands in one file there.

So a change of ComfyUI is handled in one file."""

import ast

import pytest

from demo.comfyui import ROOT

INTERNALS = (
    "comfy",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
)  # not comfy_api, which is ComfyUI's public interface
HOOKS = {
    # options of a MODEL or of a run
    "context_handler", "denoise_mask_function", "disable_cfg1_optimization", "model_function_wrapper",
    "sampler_calc_cond_batch_function", "sampler_cfg_function", "sampler_post_cfg_function",
    "sampler_pre_cfg_function",
    # of its transformer_options
    "block", "cond_or_uncond", "middle_block_after_patch", "output_block_patch", "patches_replace",
    "sample_sigmas", "transformer_options", "uuids", "wrappers",
    # wrapper types, by their names and by those of WrappersMP
    "APPLY_MODEL", "CALC_COND_BATCH", "DIFFUSION_MODEL", "OUTER_SAMPLE", "PREDICT_NOISE", "SAMPLER_SAMPLE",
    "apply_model", "calc_cond_batch", "outer_sample", "predict_noise",
    "sampler_sample",
    # arguments of hooks
    "cond_denoised", "conds_out", "hook_keyframe", "uncond_denoised",
    # fields of a SAMPLER
    "extra_options", "inpaint_options", "sampler_function",
}  # fmt: skip
NODES = ROOT / "nodes"
FILES = sorted(NODES.rglob("*.py"))


def parsed(file):
    return list(ast.walk(ast.parse(file.read_text())))


def name_of(file):
    return str(file.relative_to(NODES))


def imported(file):
    """Return the modules of ComfyUI's internals that a file imports, anywhere in it."""
    names = set()
    for node in parsed(file):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] in INTERNALS}


def hooks_in(file):
    """Return the hooks that a file names: as a string, an attribute, a parameter or an argument."""
    names = set()
    for node in parsed(file):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.arg | ast.keyword):
            names.add(node.arg)
    return names & HOOKS


def users_of(names_in):
    """Return the files in which each module or hook is used; names_in: returns those of a file."""
    files = {}
    for file in FILES:
        for name in names_in(file):
            files.setdefault(name, []).append(name_of(file))
    return files


def test_each_module_of_the_host_is_imported_in_one_file():
    files = users_of(imported)
    assert len(files) >= 10
    assert not {module: names for module, names in files.items() if len(names) > 1}
    assert {name for names in files.values() for name in names} == {
        "host/counting.py", "host/folders.py", "host/hooks.py", "host/model.py", "host/register.py",
        "host/running.py", "host/weights.py",
    }  # fmt: skip


def test_each_hook_of_the_host_is_named_in_one_file():
    files = users_of(hooks_in)
    assert len(files) >= 20
    assert not {hook: names for hook, names in files.items() if len(names) > 1}
    assert all(name.startswith("host/") for names in files.values() for name in names)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_used_modules_are_imported_in_the_file(file):
    """A file that uses e.g. comfy.utils imports it, although any comfy import makes it reachable."""
    used = {ast.unparse(node) for node in parsed(file) if isinstance(node, ast.Attribute)}
    used = {name for name in used if name.startswith("comfy.")}
    assert not [name for name in used if not any(f"{name}.".startswith(f"{m}.") for m in imported(file))
                and not any(m.startswith(f"{name}.") for m in imported(file))]  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_are_small(file):
    assert len(file.read_text().splitlines()) <= 300
