"""What the pack does where the host lacks something.

Each case takes something of the real host away, asks the feature that wants it, samples twice, and puts it
back. What is to come of it stands in test_without.py."""

import json
import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import folder_paths
import torch

from .shared import PROMPTS, pack

MLP = "test_mlp.safetensors"
GONE = object()


class Without:
    """An object of the host's, lacking some attributes."""

    def __init__(self, whole: Any, *names: str):
        self.__dict__.update(_whole=whole, _lacks=names)

    def __getattr__(self, name: str) -> Any:
        if name in self._lacks:
            raise AttributeError(name)
        return getattr(self._whole, name)


@contextmanager
def put(owner: Any, name: str, value: Any):
    """An attribute of the host's, or an entry of a dict, changed or taken away for a while."""
    if isinstance(owner, dict):
        had = owner.get(name, GONE)
        if value is GONE:
            owner.pop(name, None)
        else:
            owner[name] = value
        try:
            yield
        finally:
            if had is GONE:
                owner.pop(name, None)
            else:
                owner[name] = had
        return
    own, had = name in vars(owner), vars(owner).get(name)
    delattr(owner, name) if value is GONE else setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, had) if own else delattr(owner, name)


@contextmanager
def heard():
    """What is warned of meanwhile, once it is over."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Lines(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as others:
            warnings.simplefilter("default")  # once for each place, as it is by itself
            yield lines
        lines += [str(one.message) for one in others]
    finally:
        logging.getLogger().removeHandler(handler)


def said(call: Callable[[], Any]) -> Any:
    """What a call gives, or the error's words."""
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Case:
    """take(scene): context managers that take it away; feature(scene, report): what the user has of it, as
    JSON."""

    take: Callable[[Any], list]
    feature: Callable[[Any, Any], Any]


def module_without(name: str, lacks: str | None = None) -> Callable[[Any], list]:
    """Take a module away from who imports it from now on, or one name in it; the host keeps what it has."""

    def take(scene: Any) -> list:
        if lacks is None:
            return [put(sys.modules, name, None)]
        poorer = ModuleType(name)
        whole = sys.modules[name]
        poorer.__dict__.update({k: v for k, v in vars(whole).items() if k != lacks.split(".")[0]})
        if "." in lacks:
            kind, attribute = lacks.split(".")
            setattr(poorer, kind, Without(getattr(whole, kind), attribute))
        return [put(sys.modules, name, poorer)]

    return take


def attribute(owner: Callable[[], Any], *names: str) -> Callable[[Any], list]:
    return lambda scene: [put(owner(), name, GONE) for name in names]


def seen_by_network(name: str) -> Callable[[Any], list]:
    """The host tells its network all but one thing of a call."""

    def take(scene: Any) -> list:
        def poorer(apply: Callable, args: dict) -> torch.Tensor:
            told = {k: v for k, v in args["c"]["transformer_options"].items() if k != name}
            return apply(args["input"], args["timestep"], **{**args["c"], "transformer_options": told})

        return [put(scene.model.model_options, "model_function_wrapper", poorer)]

    return take


def no_pre_cfg(scene: Any) -> list:
    """The host calls no pre-CFG functions."""
    whole = comfy.samplers.sampling_function

    def poorer(*args: Any, model_options: dict, **more: Any) -> Any:
        told = {k: v for k, v in model_options.items() if k != "sampler_pre_cfg_function"}
        return whole(*args, model_options=told, **more)

    return [put(comfy.samplers, "sampling_function", poorer)]


def nothing(scene: Any) -> list:
    return []


def passes(scene: Any, report: Any) -> Any:
    return report.passes


def remarks(scene: Any, report: Any) -> Any:
    return report.remarks


def listed(scene: Any, report: Any) -> Any:
    """What registering into these lists says, and what is in them then."""
    register, mine = pack("host.register"), pack("host.sampling").SCHEDULER
    with ExitStack() as lists:
        if hasattr(comfy.samplers, "SCHEDULER_HANDLERS"):
            lists.enter_context(put(comfy.samplers.SCHEDULER_HANDLERS, mine, GONE))
        problems = register.register()
        names = comfy.samplers.KSampler
        return {
            "problems": problems,
            "sampler": "amed" in getattr(names, "SAMPLERS", ()),
            "schedule": mine in getattr(comfy.samplers, "SCHEDULER_HANDLERS", ()),
            "predictors": len(pack("host.folders").library().names()) > 10,
            "saved to": pack("host.folders").user_folder().name,
        }


def of(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda scene, report: said(lambda: function(scene))


def asked(scene: Any, wants: str, lacks: str) -> Any:
    """Whether an evaluation has what is wanted, by a denoiser whose guider lacks something."""
    found: dict[str, Any] = {}

    def sampler(denoiser: Any, x: Any, sigmas: Any, extra_args: Any = None, **_: Any) -> Any:
        poorer = denoiser
        if lacks:
            poorer = Without(denoiser, "")
            poorer.__dict__["inner_model"] = Without(denoiser.inner_model, lacks)
            poorer.__dict__["__call__"] = denoiser.__call__
        evaluate = pack("host.evaluate")
        if lacks == "conds":
            found["seen"] = sorted(map(str, evaluate.positive_ids(poorer)))
            return x
        if lacks == "predict_noise":
            found["seen"] = pack("host.hooks").guides_plainly(poorer.inner_model)
            return x
        level = sigmas[0].expand(len(x))
        result = evaluate.evaluate(denoiser, x, level, extra_args, frozenset({wants}))
        found["seen"] = result.cond is not None
        found["again"] = evaluate.evaluate(denoiser, x, level, extra_args, frozenset({wants})).cond is None
        return x

    scene.run(comfy.samplers.KSAMPLER(sampler))
    return found["seen"]


def of_sampler(function: Callable[[Any], Any], *lacks: str) -> Callable[[Any, Any], Any]:
    """`function` of a SAMPLER of the host's that lacks something; `lacks` empty: of the whole one."""
    own = lambda: Without(comfy.samplers.sampler_object("euler"), *lacks)  # noqa: E731
    return lambda scene, report: said(lambda: function(own()))


def of_model(function: Callable[[Any], Any], *lacks: str) -> Callable[[Any, Any], Any]:
    return lambda scene, report: said(lambda: function(Without(scene.model, *lacks)))


def of_base(function: Callable[[Any], Any], *lacks: str) -> Callable[[Any, Any], Any]:
    """`function` of a MODEL whose base model lacks something."""

    def call(scene: Any) -> Any:
        poorer = Without(scene.model, "")
        poorer.__dict__["model"] = Without(scene.model.model, *lacks)
        return function(poorer)

    return of(call)


def who(model: Any) -> Any:
    identity = pack("host.model").identity(model)
    return [identity.family, bool(identity.fingerprint)]


def preview(*lacks: str) -> Callable[[Any, Any], Any]:
    def call(scene: Any) -> Any:
        form = Without(scene.model.get_model_object("latent_format"), *lacks)
        poorer = Without(scene.model, "")
        poorer.__dict__["get_model_object"] = lambda name: form
        shown = pack("host.model").preview_pixels(poorer, torch.rand_like(scene.latent["samples"]))
        return ["gray" if bool((shown[:, :1] == shown).all()) else "color", list(shown.shape)]

    return of(call)


def copied(*lacks: str) -> Callable[[Any, Any], Any]:
    """Whether the copy that gradients go through has weights of its own, of a MODEL that lacks something."""

    def call(scene: Any) -> Any:
        with torch.inference_mode(False):
            made = pack("host.training").frozen_copy(Without(scene.model, *lacks))
        mine, theirs = (next(m.model.diffusion_model.parameters()) for m in (made, scene.model))
        return [mine.data_ptr() != theirs.data_ptr(), not mine.requires_grad]

    return of(call)


def counted(scene: Any) -> Any:
    return len(type(pack("host.counting").counting(scene.model)).__name__) > 0


def wrapped_around(scene: Any) -> Any:
    return pack("host.counting").wrap_sampling(
        scene.model.clone(), lambda executor, *a, **k: executor(*a, **k)
    )


def shown(scene: Any, report: Any) -> Any:
    """What one hears of a run by the host's own nodes: the node that runs, or None."""
    pack("host.running").show_text("1", "text")
    return pack("host.running").executing_node()


def schemas(scene: Any, report: Any) -> Any:
    """How many nodes can be defined, and how many of them have names to be searched by."""
    rooms = ("ksampler", "load_predictor", "apply_predictor", "sampler", "scheduler", "calibrate",
             "predictor_info", "save_predictor", "train_predictor", "plain_solver", "count_evaluations",
             "evaluations_used")  # fmt: skip
    nodes = (node for room in rooms for node in vars(pack(room)).values() if hasattr(node, "GET_SCHEMA"))
    made = [node.define_schema() for node in nodes if node.__module__.startswith(pack("schema").__package__)]
    return [len(made), sum(bool(getattr(one, "search_aliases", None)) for one in made)]


def poorer_schema(scene: Any) -> list:
    io = pack("schema").io
    whole = io.Schema

    def Schema(node_id, display_name=None, category="sd", inputs=(), outputs=(), hidden=(), description="",
               is_output_node=False):  # fmt: skip
        return whole(node_id=node_id, display_name=display_name, category=category, inputs=list(inputs),
                     outputs=list(outputs), hidden=list(hidden), description=description,
                     is_output_node=is_output_node)  # fmt: skip

    return [put(pack("schema"), "io", SimpleNamespace(**{**vars(io), "Schema": Schema}))]


def kind_of(name: str) -> Callable[[Any, Any], Any]:
    """The prediction type of a model_sampling of that kind."""

    def call(scene: Any) -> Any:
        class Kind(KINDS[name]):
            pass

        return pack("host.model").prediction_type(Kind())

    return of(call)


KINDS = {name: getattr(comfy.model_sampling, name) for name in ("V_PREDICTION", "X0")}
PATCHES = "comfy.patcher_extension"


def add_wrapper(scene: Any) -> list:
    return [put(type(scene.model), "add_wrapper_with_key", GONE)]


def folder(scene: Any) -> list:
    taken = put(folder_paths, "add_model_folder_path", GONE)
    return [taken, put(folder_paths.folder_names_and_paths, "amed_predictors", GONE)]


def guidance_chosen_for(scene: Any) -> Any:
    guider, options = Without(scene.guider(), "cfg"), scene.model.model_options
    return (
        pack("host.sampling")
        .choose_for_run(guider, "auto", scene.sigmas, None, "plain", options)
        .fitted.spec.guidance
    )


def ksampler() -> Any:
    return comfy.samplers.KSampler


def samplers() -> Any:
    return comfy.samplers


CASES = {
    "patcher_extension": Case(module_without(PATCHES), passes),
    "patcher_extension.add_wrapper_with_key": Case(module_without(PATCHES, "add_wrapper_with_key"), passes),
    "WrappersMP.APPLY_MODEL": Case(module_without(PATCHES, "WrappersMP.APPLY_MODEL"), passes),
    "patcher_extension, to count": Case(module_without(PATCHES), of(counted)),
    "WrappersMP.PREDICT_NOISE": Case(module_without(PATCHES, "WrappersMP.PREDICT_NOISE"), of(counted)),
    "ModelPatcher.add_wrapper_with_key, to count": Case(add_wrapper, of(counted)),
    "ModelPatcher.add_wrapper_with_key": Case(add_wrapper, of(wrapped_around)),
    "WrappersMP.SAMPLER_SAMPLE": Case(
        module_without(PATCHES, "WrappersMP.SAMPLER_SAMPLE"), of(wrapped_around)
    ),
    "get_executing_context": Case(module_without("comfy_execution.utils"), shown),
    "PromptServer.send_progress_text": Case(
        attribute(lambda: sys.modules["server"].PromptServer, "send_progress_text"), shown
    ),
    "SAMPLER_NAMES": Case(attribute(samplers, "SAMPLER_NAMES"), listed),
    "KSampler.SAMPLERS": Case(attribute(ksampler, "SAMPLERS"), listed),
    "SchedulerHandler": Case(attribute(samplers, "SchedulerHandler"), listed),
    "SCHEDULER_NAMES": Case(attribute(samplers, "SCHEDULER_NAMES"), listed),
    "SCHEDULER_HANDLERS": Case(attribute(samplers, "SCHEDULER_HANDLERS"), listed),
    "add_model_folder_path": Case(folder, listed),
    "KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS": Case(
        attribute(ksampler, "DISCARD_PENULTIMATE_SIGMA_SAMPLERS"),
        of(lambda s: pack("host.register").drops_last_level("dpm_2")),
    ),
    "Schema.search_aliases": Case(poorer_schema, schemas),
    "transformer_options.patches": Case(seen_by_network("patches"), remarks),
    "transformer_options.cond_or_uncond": Case(seen_by_network("cond_or_uncond"), remarks),
    "transformer_options.uuids": Case(seen_by_network("uuids"), remarks),
    "sampler_pre_cfg_function": Case(no_pre_cfg, of(lambda s: asked(s, "halves", ""))),
    "guider.conds": Case(nothing, of(lambda s: asked(s, "bottleneck", "conds"))),
    "guider.predict_noise": Case(nothing, of(lambda s: asked(s, "", "predict_noise"))),
    "guider.cfg": Case(nothing, of(guidance_chosen_for)),
    "base.model_config": Case(nothing, of_base(who, "model_config")),
    "base.diffusion_model": Case(nothing, of_base(who, "diffusion_model")),
    "model.backup": Case(nothing, of_model(who, "backup")),
    "model.patches_uuid": Case(nothing, of_model(who, "patches_uuid")),
    "model.is_dynamic": Case(nothing, copied("is_dynamic")),
    "model_sampling.V_PREDICTION": Case(
        attribute(lambda: comfy.model_sampling, "V_PREDICTION"), kind_of("V_PREDICTION")
    ),
    "model_sampling.X0": Case(attribute(lambda: comfy.model_sampling, "X0"), kind_of("X0")),
    "latent_rgb_factors": Case(nothing, preview("latent_rgb_factors")),
    "latent_rgb_factors_reshape": Case(nothing, preview("latent_rgb_factors_reshape")),
    "latent_rgb_factors_bias": Case(nothing, preview("latent_rgb_factors_bias")),
    "SAMPLER.sampler_function": Case(
        nothing, of_sampler(lambda s: pack("host.outside").function_and_options(s), "sampler_function")
    ),
    "SAMPLER.sampler_function, its name": Case(
        nothing, of_sampler(lambda s: pack("host.register").sampler_name(s), "sampler_function")
    ),
    "SAMPLER.extra_options": Case(
        nothing, of_sampler(lambda s: pack("host.outside").function_and_options(s)[1], "extra_options")
    ),
    "SAMPLER.inpaint_options": Case(
        nothing,
        of_sampler(
            lambda s: pack("host.outside").wrapped(s, around_euler()).inpaint_options, "inpaint_options"
        ),
    ),
}


def around_euler() -> Any:
    """A predictor for the host's Euler that changes nothing."""
    amed = next(m for name, m in list(sys.modules.items()) if name.endswith("comfyui-amed.amed"))
    levels = torch.tensor([80.0, 5.0], dtype=torch.float64)
    spec = amed.Spec("outside", 2, "time_uniform", 5.0, 80.0, of="euler", calls=2)
    return amed.Fitted(spec, pack("host.outside").Outside(levels, levels), levels)


@dataclass
class Scene:
    """What a case is tried on."""

    model: Any
    positive: list
    negative: list
    latent: dict
    sigmas: torch.Tensor

    def guider(self) -> Any:
        made = comfy.samplers.CFGGuider(self.model)
        made.set_conds(self.positive, self.negative)
        made.set_cfg(2.0)
        return made

    def run(self, sampler: Any) -> torch.Tensor:
        run = pack("host.running").run
        return run(self.model, sampler, self.sigmas, 3, 2.0, self.positive, self.negative, self.latent)[
            "samples"
        ]


class TestWithout:
    """MODEL, prompts, LATENT, the name of a case ("" for none) -> LATENT of a run with the paper's network;
    the text: JSON of the warnings, and of the feature as it was and as it is without."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = ("LATENT",), "run", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": PROMPTS | {"case": ("STRING", {})}}

    def run(self, model, positive, negative, latent_image, case):
        fitted = pack("host.folders").library().load(MLP)
        scene = Scene(model.clone(), positive, negative, latent_image, fitted.sigmas().float())

        def sampled() -> tuple[torch.Tensor, Any]:
            report = pack("host.sampling").Report()
            sampler = pack("host.register").amed_sampler(fitted.spec.sampler, predictor=fitted, report=report)
            return scene.run(sampler), report

        one = CASES[case]
        before, report = sampled()
        was = one.feature(scene, report) if one.take is not nothing else None
        pack("host.log").warn_once.cache_clear()
        with heard() as lines, ExitStack() as taken:
            for part in one.take(scene):
                taken.enter_context(part)
            after, report = sampled()
            now = one.feature(scene, report)
            again, other = sampled()
            one.feature(scene, other)
        told = {
            "warnings": [line for line in lines if "AMED" in line or "bottleneck" in line],
            "was": was,
            "now": now,
            "same image": torch.equal(before, after),
            "sane": bool(after.isfinite().all()) and torch.equal(after, again),
        }
        return {"ui": {"text": [json.dumps(told)]}, "result": ({"samples": after},)}


NODE_CLASS_MAPPINGS = {"TestWithout": TestWithout}
