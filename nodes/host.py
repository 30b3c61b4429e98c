"""The only file that touches ComfyUI's insides: dropdowns, folders, MODELs, and what happens during sampling.

Nothing of the host is replaced, only added to, and a MODEL is never altered: what one run needs is put on a
copy of that run's options.
"""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.k_diffusion.sampling
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.supported_models_base
import comfy.utils
import folder_paths
import latent_preview
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ..amed import SAMPLERS, Fitted, Library, PredictorError, choice, plain, schedules
from ..amed.choice import Identity, Report, find_for_times, mismatches, on_grid, untrained
from ..amed.fingerprint import fingerprint
from ..amed.sampling import sample as engine_sample
from ..amed.sampling import sampler_of

FOLDER = "amed_predictors"
SCHEDULER = "amed"
ATTACHED = "amed_predictor"  # the key in model_options, and the attribute of a model_sampling
COUNT = "amed_evaluations"  # the key of a counting MODEL's Count
ADVICE = (
    f"Choose one of these, load a file with Load AMED Predictor, put one into models/{FOLDER}, or set "
    "if_missing to untrained."
)
BUNDLED = Path(__file__).resolve().parent.parent / "predictors"


# --- dropdowns and folders ---------------------------------------------------------------------------------


def register() -> list[str]:
    """Add our samplers, schedule and model folder to the host; idempotent. Returns what could not be
    added."""
    problems = []
    for what, add in (
        ("samplers", add_samplers),
        ("schedule", add_schedule),
        ("predictor folder", add_folder),
    ):
        try:
            add()
        except Exception as error:  # whatever this host's version lacks must not stop its start
            problems.append(f"this ComfyUI does not take our {what} ({type(error).__name__}: {error})")
    return problems


def add_samplers() -> None:
    for name in SAMPLERS:
        if not hasattr(comfy.k_diffusion.sampling, f"sample_{name}"):
            setattr(comfy.k_diffusion.sampling, f"sample_{name}", sampler_function(name))
        for names in (comfy.samplers.SAMPLER_NAMES, comfy.samplers.KSampler.SAMPLERS):
            if name not in names:  # usually one list under two names
                names.append(name)


def add_schedule() -> None:
    handler = comfy.samplers.SchedulerHandler(host_sigmas)
    comfy.samplers.SCHEDULER_HANDLERS.setdefault(SCHEDULER, handler)
    for names in (comfy.samplers.SCHEDULER_NAMES, comfy.samplers.KSampler.SCHEDULERS):
        if SCHEDULER not in names:
            names.append(SCHEDULER)


def add_folder() -> None:
    folder = Path(folder_paths.models_dir) / FOLDER
    folder_paths.add_model_folder_path(FOLDER, str(folder))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


_library = Library([])


def library() -> Library:
    """The user's predictors (models/amed_predictors, and wherever extra_model_paths says), then the
    bundled."""
    _library.folders = [*(Path(p) for p in folder_paths.get_folder_paths(FOLDER)), BUNDLED]
    return _library


def library_state() -> list[tuple[str, float]]:
    """Names and times of the files: what a node's cached result depends on."""
    return [(name, path.stat().st_mtime) for name, path in sorted(library().paths().items())]


# --- what a MODEL is ---------------------------------------------------------------------------------------


def identity(model: Any) -> Identity:
    """Of a MODEL (ModelPatcher). Weights that LoRAs have changed in place are read from the host's backup."""
    base = model.model
    config = getattr(base, "model_config", None)
    # newer hosts' configurations answer None to any name they do not know
    family = getattr(config, "amed_family", None) or type(config).__name__.lower()
    backup, prefix = getattr(model, "backup", {}), "diffusion_model."

    def original(name: str, weight: Tensor) -> Tensor:
        saved = backup.get(prefix + name)
        return weight if saved is None else getattr(saved, "weight", saved)

    try:
        named = base.diffusion_model.named_parameters()
        return Identity(family, fingerprint((n, original(n, w)) for n, w in named))
    except Exception as error:  # quantised or offloaded weights of a kind we do not know
        logging.warning("AMED: cannot tell this checkpoint from others (%s)", error)
        return Identity(family, "")


def sampling_of(model: Any) -> Any:
    """A MODEL's model_sampling: its noise levels."""
    return model.get_model_object("model_sampling")


def sigma_range(model_sampling: Any) -> tuple[float, float]:
    """sigma_min and sigma_max."""
    return float(model_sampling.sigma_min), float(model_sampling.sigma_max)


def is_flow(model_sampling: Any) -> bool:
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def start_sigma(model_sampling: Any, denoise: float) -> float:
    """The noise level at which `denoise` of the model's own time is left, as the host counts it."""
    return min(float(model_sampling.percent_to_sigma(1.0 - denoise)), float(model_sampling.sigma_max))


def base_times(model_sampling: Any, count: int) -> Tensor:
    """The `amed` schedule, float64 `[count]`, from the model's sigma_max to its sigma_min: uniform in the
    model's own time, or in the VP process's for models without one (EDM)."""
    low, high = sigma_range(model_sampling)
    if isinstance(model_sampling, comfy.model_sampling.ModelSamplingContinuousEDM):
        return schedules.make("time_uniform", count, low, high)
    if isinstance(model_sampling, comfy.model_sampling.ModelSamplingDiscrete):
        return schedules.make("discrete", count, low, high, table=model_sampling.sigmas.cpu())
    ends = [float(model_sampling.timestep(model_sampling.sigmas[i])) for i in (-1, 0)]
    times = torch.linspace(*ends, count, dtype=torch.float64)
    return torch.stack([torch.as_tensor(model_sampling.sigma(t), dtype=torch.float64) for t in times])


def host_sigmas(model_sampling: Any, steps: int) -> Tensor:
    """What the `amed` entry of a scheduler dropdown gives: `steps` noise levels, then 0.

    Where a predictor is applied to the MODEL and `steps` is its number of intervals, its own times without
    the 0: that run takes exactly the evaluations it was fitted for."""
    attached = getattr(model_sampling, ATTACHED, None)
    if attached is not None and steps == len(attached.fitted.sigmas()) - 1:
        return attached.fitted.sigmas().float()
    if attached is not None and steps == len(attached.fitted.sigmas()):
        times = attached.fitted.sigmas()
    else:
        times = (
            base_times(model_sampling, steps)
            if steps > 1
            else torch.tensor([float(model_sampling.sigma_max)])
        )
    return torch.cat([times.float(), torch.zeros(1)])


class Attached:
    """A predictor on a MODEL. The host deep-copies a MODEL's options often; this stays one object."""

    def __init__(self, fitted: Fitted):
        self.fitted = fitted

    def __deepcopy__(self, memo: dict) -> "Attached":
        return self


def attach(model: Any, fitted: Fitted) -> Any:
    """A clone of a MODEL that carries a predictor; the MODEL itself is left as it is."""
    clone = model.clone()
    clone.model_options[ATTACHED] = Attached(fitted)
    marked = copy.copy(sampling_of(model))
    setattr(marked, ATTACHED, Attached(fitted))
    clone.add_object_patch("model_sampling", marked)
    return clone


def attached(model: Any) -> Fitted | None:
    """The predictor a MODEL carries."""
    found = model.model_options.get(ATTACHED)
    return None if found is None else found.fitted


def find(
    model: Identity, solver: str | None, nfe: int, guidance: float, max_order: int | None = None
) -> Fitted:
    """The library's predictor for this model, as amed.choice.find tells."""
    return choice.find(library(), model, solver, nfe, guidance, max_order, ADVICE)


# --- during sampling ---------------------------------------------------------------------------------------


class Counted:
    """The host's denoiser, counted, and stoppable before every evaluation (not only once a step)."""

    def __init__(self, model: Any, report: Report):
        self.inner, self.report = model, report

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.report.evaluations += 1
        return self.inner(x, sigma, **extra_args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def count_rows(model_options: dict, report: Report) -> None:
    """Count the network's rows into the report, by a wrapper on this run's own options."""
    try:
        from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
    except ImportError:
        return

    def apply_model(executor: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        report.rows += len(x)
        return executor(x, *args, **kwargs)

    report.rows = 0
    add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "amed_count", apply_model, model_options, is_model_options=True
    )


def conditional_rows(h: Tensor, transformer_options: dict, positive: set, batch: int) -> Tensor | None:
    """Of a middle block's output `[chunks * B, C, H, W]` the rows of the positive prompt, `[B, C, H, W]`.

    By the prompt's own id where the host tells ids: guiders with more than two prompts, and attention
    guidance, use index 0 for other things. None when this call has no such rows (the halves may come in two
    calls)."""
    indices, ids = transformer_options.get("cond_or_uncond") or [0], transformer_options.get("uuids")
    if h.ndim != 4 or len(h) != batch * len(indices):
        return None
    for i, index in enumerate(indices):
        if (ids[i] in positive) if ids and positive else index == 0:
            return h[i * batch : (i + 1) * batch].detach().clone()
    return None


def options_of(model: Any, extra_args: dict[str, Any]) -> dict:
    """A copy of the options this evaluation would run with: a Prompted carries them itself."""
    own = getattr(model, "extra_args", None) or extra_args
    return comfy.model_patcher.create_model_options_clone(own.get("model_options") or {})


def capture(model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Evaluate and take the conditional bottleneck along (amed.bottleneck.Capture): by patches on a copy of
    the options, for this one evaluation. The first capture counts; None where the model has no middle
    block."""
    options = options_of(model, extra_args)
    patches = options.setdefault("transformer_options", {}).setdefault("patches", {})
    conds = getattr(model.inner_model, "conds", None) or {}
    mine = [cond for name, listed in conds.items() if name.startswith("positive") for cond in listed or []]
    positive = {cond["uuid"] for cond in mine if "uuid" in cond}  # a Prompted has several lists
    found: list[Tensor] = []

    def keep(h: Tensor, transformer_options: dict) -> None:
        rows = None if found else conditional_rows(h, transformer_options, positive, len(x))
        if rows is not None:
            found.append(rows)

    def before_first_output(h: Tensor, skip: Tensor, transformer_options: dict) -> tuple[Tensor, Tensor]:
        if transformer_options.get("block") == ("output", 0):
            keep(h, transformer_options)
        return h, skip

    def after_middle(args: dict) -> dict:
        keep(args["h"], args["transformer_options"])
        return args

    patches.setdefault("output_block_patch", []).insert(0, before_first_output)  # before FreeU and its like
    patches.setdefault("middle_block_after_patch", []).insert(0, after_middle)
    denoised = model(x, sigma, **{**extra_args, "model_options": options})
    return denoised, found[0] if found else None


_warned: set[str] = set()


def warn_once(text: str) -> None:
    """A line in the host's log, once for the same text."""
    if text not in _warned:
        _warned.add(text)
        logging.warning("AMED: %s", text)


def sampler_function(name: str) -> Callable[..., Tensor]:
    """The host's `sample_<name>`: the engine's sampler with the MODEL's predictor, or the library's, and with
    counting and capture.

    `predictor`: a Fitted, or None for what the MODEL carries, else what the library has for it. `if_missing`:
    "error" or "untrained". `report`: a Report to fill."""

    def sample(
        model,
        x,
        sigmas,
        extra_args=None,
        callback=None,
        disable=None,
        *,
        predictor=None,
        if_missing="error",
        report=None,
        **_options,
    ):
        if len(sigmas) < 2:
            return x  # nothing to do, as the host's own samplers have it
        report = Report() if report is None else report
        extra_args = dict(extra_args or {})
        options = comfy.model_patcher.create_model_options_clone(extra_args.get("model_options") or {})
        extra_args["model_options"] = options
        guider = model.inner_model
        guidance = float(getattr(guider, "cfg", 1.0))
        who = identity(guider.model_patcher)
        report.batch = len(x)

        if predictor is None and ATTACHED in options:
            predictor = options[ATTACHED].fitted
        if predictor is None:
            times = sigmas[sigmas > 0]
            try:
                if len(times) > 1:
                    predictor = find_for_times(library(), who, name, times, guidance, ADVICE)
            except PredictorError as error:
                if if_missing != "untrained":
                    raise
                report.remarks.append(f"untrained, as asked: {str(error).splitlines()[0]}")
                predictor = untrained(name, times.cpu())
        report.fitted = predictor
        if predictor is not None:
            report.remarks += mismatches(predictor, who, guidance)
            if not on_grid(predictor, sigmas) and float(sigmas[0]) > 0.99 * predictor.spec.sigma_max:
                report.remarks.append(
                    f"these noise levels are not those {predictor.name} was fitted on: choose the "
                    f"{SCHEDULER} schedule with {predictor.spec.num_steps} steps, or AMED Scheduler"
                )
            elif not on_grid(predictor, sigmas):
                report.remarks.append(
                    "started below the top of the schedule: no analytic first step, and the constants are "
                    "interpolated between the fitted noise levels where these are others"
                )
            for remark in report.remarks:
                warn_once(f"{predictor.label}: {remark}")

        count_rows(options, report)
        result = SAMPLERS[name](
            Counted(model, report),
            x,
            sigmas,
            extra_args,
            callback,
            disable,
            predictor=predictor,
            afs=None if may_start_analytically(model, extra_args) else False,
            capture=capture,
            guide=guide,
        )
        return keep_unmasked(model, extra_args, result, sigmas[-1])

    sample.__name__ = sample.__qualname__ = f"sample_{name}"
    return sample


def may_start_analytically(model: Any, extra_args: dict[str, Any]) -> bool:
    """Whether the analytic first step's assumption can hold: no inpainting mask, and not a flow model."""
    flow = is_flow(model.inner_model.inner_model.model_sampling)
    return not flow and extra_args.get("denoise_mask") is None


def keep_unmasked(model: Any, extra_args: dict[str, Any], x: Tensor, sigma: Tensor) -> Tensor:
    """An inpainting result with the kept part (mask 0) put back: the host's denoiser does so at every
    evaluation, but a run that ends above noise level 0 does not end with one. x itself without a mask."""
    mask = extra_args.get("denoise_mask")
    if mask is None:
        return x
    scaled = model.inner_model.inner_model.model_sampling.noise_scaling
    kept = scaled(sigma, torch.zeros_like(x), model.latent_image)
    return x * mask + kept * (1 - mask)


def sampler_object(name: str, **options: Any) -> Any:
    """A SAMPLER of ours; `options` as in `sampler_function`."""
    return comfy.samplers.KSAMPLER(sampler_function(name), options)


def sampler_for(fitted: Fitted) -> str:
    """The sampler name a predictor was fitted for."""
    return sampler_of(fitted.spec.solver, fitted.spec.max_order)


def plain_sampler(setting: plain.Setting) -> Any:
    """A SAMPLER that runs a plain solver; the analytic first step only where the start is pure noise."""

    def sample_plain(model, x, sigmas, extra_args=None, callback=None, disable=None, **_options):
        if len(sigmas) < 2:
            return x
        extra_args = extra_args or {}
        from_the_top = float(sigmas[0]) > 0.99 * setting.sigma_max
        afs = setting.afs and from_the_top and may_start_analytically(model, extra_args)
        result = engine_sample(
            Counted(model, Report()), x, sigmas, setting.solver, extra_args, callback, disable, afs=afs
        )
        return keep_unmasked(model, extra_args, result, sigmas[-1])

    return comfy.samplers.KSAMPLER(sample_plain)


class Count:
    """Evaluations of a MODEL and rows through its network; one object however often the host copies its
    options. Guidance makes one evaluation of two halves, in one call of the network or in two."""

    def __init__(self):
        self.evaluations = self.rows = 0

    def __deepcopy__(self, memo: dict) -> "Count":
        return self

    def evaluation(self, executor: Callable, *args: Any, **kwargs: Any) -> Tensor:
        self.evaluations += 1
        return executor(*args, **kwargs)

    def call(self, executor: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.rows += len(x)
        return executor(x, *args, **kwargs)


def counting(model: Any) -> Any:
    """A clone of a MODEL that counts. Raises RuntimeError where the host has no wrappers to count with."""
    try:
        from comfy.patcher_extension import WrappersMP
    except ImportError:
        raise RuntimeError(
            "this ComfyUI is too old to count evaluations: update it to 0.3.8 or newer"
        ) from None
    clone, count = model.clone(), Count()
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, COUNT, count.evaluation)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, COUNT, count.call)
    clone.model_options[COUNT] = count
    return clone


def read_count(model: Any) -> tuple[int, int]:
    """Evaluations and rows since the last reading. Raises ValueError for a MODEL that does not count."""
    count = model.model_options.get(COUNT)
    if count is None:
        raise ValueError(
            "this MODEL does not count: connect the one from AMED Count Evaluations, here and to the sampler"
        )
    told = count.evaluations, count.rows
    count.evaluations = count.rows = 0
    return told


def run(
    model: Any,
    sampler: Any,
    sigmas: Tensor,
    seed: int,
    guidance: float,
    positive: list,
    negative: list,
    latent: dict,
) -> dict:
    """Sample as the host's own KSampler does: noise from the seed, previews, progress, mask. A LATENT
    back."""
    start = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(start, seed, latent.get("batch_index"))
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    samples = comfy.sample.sample_custom(
        model,
        noise,
        guidance,
        sampler,
        sigmas,
        positive,
        negative,
        start,
        noise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": samples}


# --- fitting, inside the host's own sampling ---------------------------------------------------------------


class Prompted:
    """The host's denoiser with guidance, for samples of several prompts: `prompted(x, sigma, prompt=)`,
    `prompt` `[B]` the number of each sample's positive conditioning. Stoppable before every evaluation."""

    def __init__(self, model: Any, extra_args: dict[str, Any]):
        self.inner, self.extra_args = model, extra_args
        self.guider = model.inner_model

    def __call__(self, x: Tensor, sigma: Tensor, prompt: Tensor, **extra_args: Any) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        out = torch.empty_like(x)
        for number in prompt.unique().tolist():
            rows = prompt == number
            self.guider.conds["positive"] = self.guider.conds[f"positive_{number}"]
            out[rows] = self.inner(x[rows], sigma[rows], **{**self.extra_args, **extra_args})
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def inside_sampling(
    model: Any,
    positives: list[list],
    negative: list,
    guidance: float,
    latent: dict,
    seed: int,
    work: Callable[[Prompted, tuple[int, ...], torch.device], None],
) -> None:
    """Call `work(denoiser, shape of one sample, device)` where a sampler would run: the MODEL loaded, its
    patches, LoRAs and wrappers in force, the prompts prepared for the LATENT's size; everything put back
    afterwards."""
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    one = torch.zeros_like(samples[:1])

    def run(denoiser, x, sigmas, extra_args=None, callback=None, disable=None, **_options):
        with torch.no_grad():
            work(Prompted(denoiser, extra_args or {}), tuple(x.shape[1:]), x.device)
        return x

    guider = comfy.samplers.CFGGuider(model)
    named = {f"positive_{i}": cond for i, cond in enumerate(positives)}
    guider.inner_set_conds({"positive": positives[0], "negative": negative, **named})
    guider.set_cfg(guidance)
    sigma = torch.tensor([float(sampling_of(model).sigma_max), 0.0])
    guider.sample(one, one, comfy.samplers.KSAMPLER(run), sigma, disable_pbar=True, seed=seed)


def trainable(value: Any) -> Any:
    """Conditioning with every tensor cloned: those made in inference mode take no part in a gradient. What
    else it holds (ControlNets, areas) stays itself."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: trainable(v) for k, v in value.items()}
    return [trainable(v) for v in value] if isinstance(value, list) else value


def checkpoint_blocks(module: nn.Module) -> None:
    """Let every block of a network (what its lists of modules hold) keep no activations: each is run again
    in the backward pass. For a network of our own only."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            checkpoint_blocks(child)
        elif any(True for _ in child.parameters()):
            child.forward = checkpointed(child.forward)


def checkpointed(forward: Callable) -> Callable:
    def own(value: Any) -> Any:
        return dict(value) if isinstance(value, dict) else value  # the network writes where it is into these

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        args, kwargs = [own(a) for a in args], {k: own(v) for k, v in kwargs.items()}
        return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def frozen_copy(model: Any) -> Any:
    """A MODEL like this one with weights of its own, which gradients pass through but do not change, in
    blocks that keep no activations. To be called, and used, with inference mode off. All models are
    unloaded first: that takes patches off the weights, and a gradient needs the memory."""
    comfy.model_management.unload_all_models()
    if getattr(model, "is_dynamic", lambda: False)():
        clone = model.clone(disable_dynamic=True)  # the host reads the file again
    else:
        clone = model.clone()
        base = model.model  # not to be copied: its patcher, and settings whose every unknown name is None
        known = {id(getattr(base, "current_patcher", None)): None, id(base.model_config): base.model_config}
        clone.model, clone.backup, clone.object_patches_backup = copy.deepcopy(base, known), {}, {}
        if hasattr(clone, "backup_buffers"):
            clone.backup_buffers = {}
    clone.object_patches = {k: copy.deepcopy(v) for k, v in clone.object_patches.items()}
    clone.model.requires_grad_(False)
    checkpoint_blocks(clone.model.diffusion_model)
    return clone


def noise_scale(model_sampling: Any) -> float:
    """What the host multiplies unit noise with at the first noise level, over that level."""
    top = torch.as_tensor(float(model_sampling.sigma_max))
    one = torch.ones(1, 1, 1, 1)
    return float(model_sampling.noise_scaling(top, one, torch.zeros_like(one), True).flatten()[0] / top)


def prediction_type(model_sampling: Any) -> str:
    """As amed.store.PREDICTION_TYPES has it."""
    kinds = {"CONST": "flow", "V_PREDICTION": "v", "EDM": "edm", "X0": "x0"}
    for name, told in kinds.items():
        kind = getattr(comfy.model_sampling, name, None)
        if kind is not None and isinstance(model_sampling, kind):
            return told
    return "eps"


def guide(model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], factor: float) -> Tensor:
    """amed.sampling.Guide by a post-CFG function on this one evaluation's options: the difference of the
    two halves once more, `factor - 1` of the guidance scale. Without guidance nothing changes."""
    options = options_of(model, extra_args)

    def scaled(args: dict) -> Tensor:
        halves = args.get("cond_denoised"), args.get("uncond_denoised")
        if None in halves or args["cond_scale"] == 1:
            return args["denoised"]
        return args["denoised"] + (factor - 1) * args["cond_scale"] * (halves[0] - halves[1])

    comfy.model_patcher.set_model_options_post_cfg_function(options, scaled)
    return model(x, sigma, **{**extra_args, "model_options": options})


class Asking:
    """A denoiser for the host's own samplers: calls `model` with fixed arguments, has the attributes of
    `real`."""

    def __init__(self, model: Any, args: dict[str, Any], real: Any):
        self.model, self.args, self.real = model, args, real

    def __call__(self, x: Tensor, sigma: Tensor, **_extra_args: Any) -> Tensor:
        return self.model(x, sigma, **self.args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def shipped(model_sampling: Any, nfe: int, real: Any) -> dict[str, Callable[..., Tensor]]:
    """DPM++ 2M, UniPC and iPNDM of the host, each on the schedule one would pick, at `nfe` steps, as
    amed.calibration wants rivals."""
    scheduler = "simple" if is_flow(model_sampling) else "karras"

    def rival(name: str) -> Callable[..., Tensor]:
        sigmas = comfy.samplers.calculate_sigmas(model_sampling, scheduler, nfe)
        function = comfy.samplers.sampler_object(name).sampler_function

        def run(model: Any, noise: Tensor, args: dict[str, Any]) -> Tensor:
            x = noise * sigmas[0].to(noise)
            return function(
                Asking(model, args, real), x, sigmas.to(noise), extra_args={}, callback=None, disable=True
            )

        return run

    names = {"DPM++ 2M": "dpmpp_2m", "UniPC": "uni_pc", "iPNDM": "ipndm"}
    offered = {k: v for k, v in names.items() if v in comfy.samplers.KSampler.SAMPLERS}
    return {f"{told}, {scheduler}": rival(name) for told, name in offered.items()}


def progress_bar(node_id: str | None, total: int) -> Callable[[int], None]:
    """A bar on the node; call it with what is done."""
    bar = comfy.utils.ProgressBar(total, node_id=node_id) if node_id else comfy.utils.ProgressBar(total)
    return lambda done: bar.update_absolute(min(done, total), total)


def preview_pixels(model: Any, samples: Tensor) -> Tensor:
    """A LATENT `[n, C, H, W]` in the model's own space as rough RGB `[n, 3, H, W]` in [-1, 1], by the
    latent format's factors as the host's quick previews are."""
    form = model.get_model_object("latent_format")
    factors = getattr(form, "latent_rgb_factors", None)
    if samples.ndim != 4 or factors is None:
        flat = samples.flatten(2, -3) if samples.ndim > 4 else samples
        gray = flat.float().mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return (gray / gray.abs().amax().clamp(min=1e-6)).clamp(-1, 1)
    bias = torch.as_tensor(getattr(form, "latent_rgb_factors_bias", None) or [0.0, 0.0, 0.0])
    scaled = form.process_out(samples.float().cpu())
    return (torch.einsum("nchw,cr->nrhw", scaled, torch.tensor(factors)) + bias.view(1, 3, 1, 1)).clamp(-1, 1)


def user_folder() -> Path:
    """Where new predictors are saved: the first folder of models/amed_predictors."""
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


# --- a MODEL of our own ------------------------------------------------------------------------------------


def pixel_model(network: nn.Module, family: str, settings: dict[str, float]) -> Any:
    """A MODEL around an EDM network of RGB pixels in [-1, 1].

    `network(x, c_noise, context=, transformer_options=, ...)` with a `dtype`; `settings`: sigma_min,
    sigma_max, sigma_data."""

    class Pixels(comfy.latent_formats.LatentFormat):
        latent_channels = 3
        latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    class Config(comfy.supported_models_base.BASE):
        unet_config = {"disable_unet_model_creation": True}
        sampling_settings = settings
        latent_format = Pixels
        memory_usage_factor = 1.0
        amed_family = family

    base = comfy.model_base.BaseModel(Config(Config.unet_config), comfy.model_base.ModelType.EDM)
    base.diffusion_model = network
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(base, load_device=load, offload_device=offload)


def show_text(node_id: str, text: str) -> None:
    """Text on the node itself, where this host's page can show it."""
    try:
        from server import PromptServer

        PromptServer.instance.send_progress_text(text, node_id)
    except Exception:  # only ever an extra: the text is also an output and in the log
        logging.debug("AMED: this ComfyUI shows no text on nodes")
