"""Each thing of the host that an adapter can do without, taken from a real ComfyUI once: one warning, that
feature off, the rest working (without.py takes it away, inside the host)."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from asked import asked_in

PASSES = "too old to count the network's passes"
ZEROS = "no bottleneck could be captured"
OWN = 12  # passes of six evaluations with guidance


@dataclass(frozen=True)
class Want:
    """now: the feature without it, or words of it; was: with it, None for not asked. warning: words of the
    one warning, "" for none, where what is left is right as it is. same: whether the image stays. covers:
    the names by which the adapters ask the host for it."""

    now: Any
    was: Any = None
    warning: str = ""
    same: bool = True
    covers: tuple[str, ...] = ()


def lists(problem: str, **other: Any) -> dict:
    return {"problems": problem, "sampler": True, "schedule": True, "predictors": True} | other


COUNT, AROUND = "too old to count evaluations", "too old to put a predictor around"
WANTED = {
    "patcher_extension": Want(None, OWN, PASSES, covers=("comfy.patcher_extension",)),
    "patcher_extension.add_wrapper_with_key": Want(None, OWN, PASSES),
    "WrappersMP.APPLY_MODEL": Want(None, OWN, PASSES),
    "patcher_extension, to count": Want(COUNT, True, PASSES),
    "WrappersMP.PREDICT_NOISE": Want(COUNT, True),
    "ModelPatcher.add_wrapper_with_key, to count": Want(COUNT, True),
    "ModelPatcher.add_wrapper_with_key": Want(AROUND),
    "WrappersMP.SAMPLER_SAMPLE": Want(AROUND),
    "get_executing_context": Want(
        None, str, "does not tell which node runs", covers=("comfy_execution.utils",)
    ),
    "PromptServer.send_progress_text": Want(str, str, "shows no text on nodes", covers=("server",)),
    "SAMPLER_NAMES": Want(lists("does not accept AMED's samplers"), lists("")),
    "KSampler.SAMPLERS": Want(lists("does not accept AMED's samplers", sampler=False), lists("")),
    "SchedulerHandler": Want(lists("does not accept AMED's schedule", schedule=False), lists("")),
    "SCHEDULER_NAMES": Want(lists("does not accept AMED's schedule"), lists("")),
    "SCHEDULER_HANDLERS": Want(lists("does not accept AMED's schedule", schedule=False), lists("")),
    "add_model_folder_path": Want(lists("does not accept AMED's predictor folder"), lists("")),
    "KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS": Want(
        False, True, covers=("DISCARD_PENULTIMATE_SIGMA_SAMPLERS",)
    ),
    "Schema.search_aliases": Want(0),
    "transformer_options.patches": Want(ZEROS, [], ZEROS, same=False),
    "transformer_options.cond_or_uncond": Want(ZEROS, [], ZEROS, same=False),
    "transformer_options.uuids": Want([], []),
    "sampler_pre_cfg_function": Want(False, True, "halves of guidance could not be captured"),
    "guider.conds": Want([], covers=("conds",)),
    "guider.predict_noise": Want(False, covers=("predict_noise", "__func__", "__module__")),
    "guider.cfg": Want(1.0, covers=("cfg",)),
    "base.model_config": Want(["nonetype", True], covers=("model_config", "amed_family")),
    "base.diffusion_model": Want(["emoji32", False], None, "cannot tell this checkpoint from others"),
    "model.backup": Want(["emoji32", True], covers=("backup",)),
    "model.patches_uuid": Want(["emoji32", True], covers=("patches_uuid",)),
    "model.is_dynamic": Want([True, True], covers=("is_dynamic",)),
    "model_sampling.V_PREDICTION": Want("eps", "v"),
    "model_sampling.X0": Want("eps", "x0"),
    "latent_rgb_factors": Want("gray", covers=("latent_rgb_factors",)),
    "latent_rgb_factors_reshape": Want("color", covers=("latent_rgb_factors_reshape",)),
    "latent_rgb_factors_bias": Want("color", covers=("latent_rgb_factors_bias",)),
    "SAMPLER.sampler_function": Want("has no sampler function", covers=("sampler_function",)),
    "SAMPLER.sampler_function, its name": Want("Without", covers=("__name__",)),
    "SAMPLER.extra_options": Want({}, covers=("extra_options",)),
    "SAMPLER.inpaint_options": Want({}, covers=("inpaint_options",)),
}

# asked for by the same words, but not of the host: our own objects, or any that an option holds; and what
# only some versions and packs have, whose tests are run in them
OURS = {"offset", "parts", "__dict__", "__slots__", "__qualname__", "__file__", "model", "patches", "weights",
        "INPUT_IS_LIST", "OUTPUT_IS_LIST", "_orig_mod"}  # fmt: skip
VERSIONS = {"current_patcher", "backup_buffers", "_qdata", "_layout_params", "tensor_type", "quant_state",
            "is_nested"}  # fmt: skip


def test_nothing_that_is_asked_for_is_left_out():
    found = asked_in("nodes")
    covered = {name for want in WANTED.values() for name in want.covers}
    assert len(found) > 15 and found - OURS - VERSIONS == covered


def fits(found: Any, want: Any) -> bool:
    """Equal; a text by its words, a dict by those it has, a type by its values."""
    if isinstance(want, type):
        return isinstance(found, want) and bool(found)
    if isinstance(want, dict) and want:
        return all(fits(found[k], v) for k, v in want.items())
    if isinstance(found, list) and not isinstance(want, list):
        return fits(found[0], want) if found else want == ""
    return want in found if isinstance(found, str) and isinstance(want, str) else found == want


@pytest.mark.parametrize("case", WANTED)
def test_without_it(server, graph, case):
    g, want = graph(width=16, height=16), WANTED[case]
    node = g.add("TestWithout", case=case, **g.around())
    g.show([node, 0])
    told = json.loads(server.run(g.nodes).text(node))
    if case == "Schema.search_aliases":
        assert told["now"][0] == told["was"][0] > 5 and told["now"][1] == 0
    else:
        assert fits(told["now"], want.now), told["now"]
    if want.was is not None:
        assert fits(told["was"], want.was), told["was"]
    problems = told["now"]["problems"] if isinstance(told["now"], dict) and told["now"] else []
    assert len(told["warnings"]) == (1 if want.warning else 0), told["warnings"]
    assert len(problems) <= 1 and all(want.warning in line for line in told["warnings"])
    assert told["sane"] and told["same image"] == want.same
