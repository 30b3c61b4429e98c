"""Take each optional feature away from a real ComfyUI once: at most one warning, that feature off, the rest
working.

test_nodes/missing_features.py takes the features away, inside the host."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from optional_names import optional_names_in

PASSES = "too old to count the network's passes"
ZEROS = "no bottleneck could be captured"
OWN = 12  # passes of six evaluations with guidance


@dataclass(frozen=True)
class Want:
    """What is expected without a feature of the host."""

    now: Any  # result without the feature, or words of it
    was: Any = None  # result with the feature; None: not checked
    warning: str = ""  # words of the single warning; "": no warning, because the result is still correct
    same: bool = True  # whether the image stays the same
    covers: tuple[str, ...] = ()  # names by which the adapters ask the host for the feature


def lists(problem: str, **other: Any) -> dict:
    return {"problems": problem, "sampler": True, "schedule": True, "predictors": True} | other


COUNT, AROUND = "too old to count evaluations", "too old to put an AMED predictor around"
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

# names that the adapters ask of other objects than the host (our own, or those in an option), and names that
# only some versions and packs have, whose tests run there
OURS = {"offset", "parts", "__dict__", "__slots__", "__qualname__", "__file__", "model", "patches", "weights",
        "INPUT_IS_LIST", "OUTPUT_IS_LIST", "_orig_mod"}  # fmt: skip
VERSIONS = {"current_patcher", "backup_buffers", "_qdata", "_layout_params", "tensor_type", "quant_state",
            "is_nested"}  # fmt: skip


def test_every_optional_name_is_covered():
    names = optional_names_in("nodes")
    covered = {name for want in WANTED.values() for name in want.covers}
    assert len(names) > 15 and names - OURS - VERSIONS == covered


def fits(result: Any, want: Any) -> bool:
    """Return whether a result matches: a text by its words, a dict by the given keys, a type by its
    values."""
    if isinstance(want, type):
        return isinstance(result, want) and bool(result)
    if isinstance(want, dict) and want:
        return all(fits(result[k], v) for k, v in want.items())
    if isinstance(result, list) and not isinstance(want, list):
        return fits(result[0], want) if result else want == ""
    return want in result if isinstance(result, str) and isinstance(want, str) else result == want


@pytest.mark.parametrize("case", WANTED)
def test_the_pack_works_without_the_feature(server, graph, case):
    g, want = graph(width=16, height=16), WANTED[case]
    node = g.add("TestWithout", case=case, **g.around())
    g.show([node, 0])
    outcome = json.loads(server.run(g.nodes).text(node))
    if case == "Schema.search_aliases":
        assert outcome["now"][0] == outcome["was"][0] > 5 and outcome["now"][1] == 0
    else:
        assert fits(outcome["now"], want.now), outcome["now"]
    if want.was is not None:
        assert fits(outcome["was"], want.was), outcome["was"]
    problems = outcome["now"]["problems"] if isinstance(outcome["now"], dict) and outcome["now"] else []
    assert len(outcome["warnings"]) == (1 if want.warning else 0), outcome["warnings"]
    assert len(problems) <= 1 and all(want.warning in line for line in outcome["warnings"])
    assert outcome["sane"] and outcome["same image"] == want.same
