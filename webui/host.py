"""Access to the WebUI: the only file that imports its `modules`.

Written for AUTOMATIC1111 1.10, Forge and reForge, which are told apart by their features, not by their
names: a checkpoint with `forge_objects` is Forge's or reForge's. Nothing of the WebUI is replaced."""

import inspect
import os
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import modules.processing as processing
import modules.scripts as scripts
import modules.sd_models as sd_models
import modules.sd_samplers as sd_samplers
import modules.sd_samplers_common as sd_samplers_common
import modules.sd_samplers_kdiffusion as sd_samplers_kdiffusion
import modules.sd_schedulers as sd_schedulers
import modules.shared as shared
import torch
from modules import call_queue, paths
from torch import Tensor, nn

from amed import Library, schedules
from amed.choose import Identity
from amed.fingerprint import identity_of

from . import samplers
from .evaluate import Chunks, PromptsFirst, RowOrder

FOLDER = "AMED"  # name of the folder for predictors, in the WebUI's models folder
BUNDLED = Path(__file__).resolve().parent.parent / "predictors"
FAMILIES = {"is_sdxl": "sdxl", "is_sd3": "sd3", "is_sd2": "sd20", "is_sd1": "sd15"}  # flag -> model family
Interrupted = sd_samplers_common.InterruptedException  # a BaseException
AlwaysVisible = scripts.AlwaysVisible

_library = Library([])
_identities: dict[tuple, Identity] = {}  # (checkpoint file, its modification time) -> identity


def warn(text: str) -> None:
    """Print a line to the console."""
    print(f"AMED: {text}")


def register(sample: Callable, sigmas: Callable, listed: list[str] | None) -> None:
    """Add AMED's samplers and schedule to the WebUI's lists (see samplers.add_samplers)."""
    samplers.add_samplers(
        sd_samplers, sd_samplers_common, sd_samplers_kdiffusion, sample, sigmas, schedule_of, listed
    )
    samplers.add_schedule(sd_schedulers, schedule_sigmas)


def sampler_functions() -> dict[str, tuple[str, Callable]]:
    """Return the WebUI's own samplers that run over a list of noise levels and add no noise.

    Returns:
        label -> (the sampler's name in k-diffusion, its sampling function)."""
    functions = {}
    library = getattr(sd_samplers_kdiffusion, "k_diffusion", sd_samplers_kdiffusion)
    sampling = getattr(library, "sampling", None)  # reForge has it in sd_samplers_kdiffusion itself
    entries = getattr(sd_samplers_kdiffusion, "samplers_k_diffusion", ())
    for label, function_or_name, _aliases, options in entries:
        by_name = not callable(function_or_name)
        function = getattr(sampling, function_or_name, None) if by_name else function_or_name
        noisy = options.get("brownian_noise") or options.get("uses_ensd")
        if function is not None and not noisy and "sigmas" in inspect.signature(function).parameters:
            name = getattr(function, "__name__", label).removeprefix("sample_")
            functions[label] = name, function
    return functions


# --- folders and settings ----------------------------------------------------------------------------------


def user_folder() -> Path:
    """Return the folder in which new predictors are saved."""
    return Path(paths.models_path) / FOLDER


def library() -> Library:
    """Return the library of predictors: the user's folder (models/AMED), then the bundled files."""
    _library.folders = [user_folder(), BUNDLED]
    return _library


def listed_predictors() -> list[str]:
    """Return the names of the user's predictors and of the bundled ones, except those for the demo model."""
    of_user, families = Library([user_folder()]).names(), ("", *FAMILIES.values())
    named = library().named().items()
    return [name for name, fitted in named if name in of_user or fitted.spec.model_family in families]


def setting(name: str, default: Any) -> Any:
    """Return a value of the settings page, or `default` if it was never set."""
    return shared.opts.data.get(name, default)


def add_settings(section: tuple[str, str], options: dict[str, tuple]) -> None:
    """Add a section to the settings page.

    Args:
        section: id and title.
        options: name -> (default, label, component, component arguments), as in the WebUI's OptionInfo."""
    for name, (default, label, component, arguments) in options.items():
        info = shared.OptionInfo(default, label, component, arguments, section=section)
        shared.opts.add_option(name, info)


# --- the model ---------------------------------------------------------------------------------------------


def loaded_model() -> Any:
    """Return the checkpoint in memory; None before one is loaded. Never loads a checkpoint."""
    return sd_models.model_data.sd_model


def checkpoint() -> Any:
    """Return the selected checkpoint; load it if necessary."""
    if hasattr(sd_models, "forge_model_reload"):
        sd_models.forge_model_reload()
    return shared.sd_model


def network(model: Any) -> nn.Module | None:
    """Return a checkpoint's denoising network: a U-Net, or in Forge perhaps a transformer."""
    if hasattr(model, "forge_objects"):
        return getattr(getattr(model.forge_objects.unet, "model", None), "diffusion_model", None)
    return getattr(getattr(model, "model", None), "diffusion_model", None)


def current_network() -> nn.Module | None:
    """Return the network in use now; a refiner may have replaced the one with which the run began."""
    return network(loaded_model())


def guidance_is_patched(model: Any) -> bool:
    """Return whether a patch of Forge (e.g. a latent modifier, PAG or SAG) changes the result of guidance.

    If so, AMED cannot weight the results of the prompt and of the negative prompt separately."""
    options = getattr(getattr(getattr(model, "forge_objects", None), "unet", None), "model_options", {})
    names = ("sampler_cfg_function", "sampler_post_cfg_function", "sampler_pre_cfg_function",
             "sampler_calc_cond_batch_function")  # fmt: skip
    return any(options.get(name) for name in names)


def is_forge() -> bool:
    """Return whether the WebUI is Forge or reForge, judging by the loaded checkpoint."""
    return hasattr(loaded_model(), "forge_objects")


def row_order() -> RowOrder:
    """Return the order in which the WebUI passes prompts and negative prompts through the network."""
    return Chunks() if is_forge() else PromptsFirst()


def identity(model: Any) -> Identity:
    """Return what identifies a checkpoint: its model family, and two fingerprints of its weights.

    One fingerprint is a hash; the other also recognises the weights after quantisation.
    Computed once per file, when the checkpoint is loaded and no LoRA has changed its weights yet."""
    info = getattr(model, "sd_checkpoint_info", None)
    file = getattr(info, "filename", None)
    stamp = os.path.getmtime(file) if file and os.path.isfile(file) else id(model)
    key = (file, stamp)
    if key not in _identities:
        _identities[key] = read_identity(model)
    return _identities[key]


def read_identity(model: Any) -> Identity:
    """Return a checkpoint's model family, and fingerprints of its weights if they can be read."""
    family = next((name for flag, name in FAMILIES.items() if getattr(model, flag, False)), None)
    family = family or type(model).__name__.lower()
    try:
        return identity_of(family, network(model).named_parameters())
    except Exception as error:  # e.g. an unknown kind of quantised weights
        warn(f"cannot tell this checkpoint from others ({error})")
        return Identity(family, "")


def checkpoint_name(model: Any) -> str:
    """Return the name of a checkpoint's file; "checkpoint" if it is not known."""
    info = getattr(model, "sd_checkpoint_info", None)
    return getattr(info, "model_name", "") or getattr(info, "name", "") or "checkpoint"


def prediction_type(model: Any) -> str:
    """Return what a checkpoint's network predicts: one of amed.files.spec.PREDICTION_TYPES."""
    objects = getattr(model, "forge_objects", None)
    predictor = getattr(getattr(getattr(objects, "unet", None), "model", None), "predictor", None)
    kinds = {"v_prediction": "v", "const": "flow", "edm": "edm"}
    if predictor is not None:
        return kinds.get(getattr(predictor, "prediction_type", ""), "eps")
    if getattr(model, "is_sd3", False):
        return "flow"
    return "v" if getattr(model, "parameterization", "eps") == "v" else "eps"


# --- noise levels ------------------------------------------------------------------------------------------


def sigma_range(model_wrap: Any) -> tuple[float, float]:
    """Return sigma_min and sigma_max of the WebUI's denoiser wrapper."""
    return float(model_wrap.sigmas[0]), float(model_wrap.sigmas[-1])


def amed_sigmas(model_wrap: Any, count: int, low: float, high: float) -> Tensor:
    """Return `count` noise levels from `high` to `low`, evenly spaced in the model's timesteps (float64)."""
    if count < 2:
        return torch.tensor([high], dtype=torch.float64)
    return schedules.make("discrete", count, low, high, table=model_wrap.sigmas)


def schedule_sigmas(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any) -> Tensor:
    """Return the noise levels `[n + 1]`, ending in 0, of AMED's schedule for the WebUI's own samplers."""
    sigmas = amed_sigmas(inner_model, n, float(sigma_min), float(sigma_max))
    return torch.cat([sigmas.float(), torch.zeros(1)]).to(device)


def host_schedules(model_wrap: Any, steps: int) -> dict[str, Tensor]:
    """Return the noise levels that each of the WebUI's schedules gives for `steps` steps, by label.

    Includes the schedules of other extensions. Those that fail for this model are left out."""
    low, high = sigma_range(model_wrap)
    sigmas = {}
    for entry in sd_schedulers.schedulers:
        model = {"inner_model": model_wrap} if entry.need_inner_model else {}
        with suppress(Exception):  # some are for other models, or for more steps
            if entry.function is not None and entry.name != samplers.SCHEDULE:
                sigmas[entry.label] = entry.function(
                    n=steps, sigma_min=low, sigma_max=high, device=torch.device("cpu"), **model
                )
    return sigmas


def schedule_of(p: Any) -> str:
    """Return the selected schedule's label or name; "" if another extension gives the noise levels."""
    if getattr(p, "sampler_noise_scheduler_override", None):
        return ""
    return (p.hr_scheduler if is_hires(p) else getattr(p, "scheduler", None)) or "Automatic"


def set_schedule_in_infotext(p: Any, label: str) -> None:
    """Write the schedule type to the infotext, under the keys that the WebUI uses."""
    infotext = p.extra_generation_params
    if not is_hires(p):
        infotext["Schedule type"] = label
    elif infotext.get("Schedule type") != label:
        infotext["Hires schedule type"] = label


def is_hires(p: Any) -> bool:
    """Return whether this is the second pass of hires fix."""
    return bool(getattr(p, "is_hr_pass", False))


def passes_per_evaluation(scale: float) -> int:
    """Return the expected network passes per evaluation: 2, but 1 at CFG scale 1 in Forge and reForge."""
    return 1 if scale == 1 and is_forge() else 2


def runs_lower_part(p: Any) -> bool:
    """Return whether a pass begins below its schedule's highest noise level: in img2img, and in the second
    pass of hires fix."""
    return is_hires(p) or bool(getattr(p, "init_images", None))


def guidance(p: Any) -> float:
    """Return the CFG scale of the current pass."""
    scale = getattr(p, "hr_cfg", None) if is_hires(p) else None
    return float(p.cfg_scale if scale is None else scale)


def noise_scale(model: Any, sigma: float) -> float:
    """Return the standard deviation of the WebUI's initial noise at noise level `sigma`, divided by it."""
    rescaled = setting("sgm_noise_multiplier", False) and prediction_type(model) != "flow"
    return (1 + sigma**-2) ** 0.5 if rescaled else 1.0


# --- during sampling ---------------------------------------------------------------------------------------


def args_for_prompts(extra_args: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    """Return the denoiser's arguments for a batch of samples that each use one of several prompts.

    Args:
        extra_args: the arguments for a batch with one sample per prompt.
        numbers: for each sample, the index of its prompt in that batch."""
    cond, uncond, image = (extra_args.get(k) for k in ("cond", "uncond", "image_cond"))
    chosen = dict(extra_args)
    chosen["cond"] = type(cond)(shape=(len(numbers),), batch=[cond.batch[i] for i in numbers])
    if uncond is not None:
        chosen["uncond"] = [uncond[i] for i in numbers]
    if isinstance(image, Tensor) and len(image) == len(cond.batch):
        chosen["image_cond"] = image[numbers]
    return chosen


def set_progress(done: int, total: int, text: str) -> None:
    """Set the steps done, their total and the text that the progress bar and the API show."""
    shared.state.sampling_step, shared.state.sampling_steps = done, total
    shared.state.textinfo = text


def has_gradio_queue() -> bool:
    """Return whether the page can show partial results, which needs Gradio's queue."""
    return not getattr(shared.cmd_opts, "no_gradio_queue", False)


def progress_text() -> str:
    """Return the text beside the progress bar."""
    return shared.state.textinfo or ""


def interrupt() -> None:
    """Interrupt the running job, as the WebUI's Interrupt button does."""
    shared.state.interrupt()


@contextmanager
def gpu_queue(job: str):
    """Wait for the WebUI's queue, then show `job` in the progress bar until the context ends."""
    with call_queue.queue_lock:
        shared.state.begin(job=job)
        try:
            yield
        finally:
            shared.state.end()
            shared.state.interrupted = shared.state.skipped = False


def on_main_thread(function: Callable, *args: Any) -> Any:
    """Call a function on the thread on which Forge keeps its models; in other WebUIs, on the current thread.

    Returns the function's result and raises its exceptions."""
    try:
        from modules_forge import main_thread
    except ImportError:
        return function(*args)
    if not hasattr(main_thread, "run_and_wait_result"):
        return function(*args)
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["result"] = function(*args)
        except BaseException as error:  # Forge would only print it
            outcome["error"] = error

    main_thread.run_and_wait_result(work)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def generate(sampler: str, prompts: list[str], negative: str, size: tuple[int, int], guidance: float,
             seed: int, settings: Any) -> Any:  # fmt: skip
    """Run txt2img with one image per prompt, without other extensions' scripts; no image is saved.

    Args:
        sampler: label of the sampler.
        size: width and height in pixels.
        settings: AMED's settings (run.GenerationSettings), stored as `p.amed`.

    Returns:
        The WebUI's Processed object."""
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=shared.sd_model, sampler_name=sampler, steps=2, cfg_scale=guidance, seed=seed,
        prompt=prompts, negative_prompt=[negative] * len(prompts), batch_size=len(prompts), n_iter=1,
        width=size[0], height=size[1], do_not_save_samples=True, do_not_save_grid=True,
    )  # fmt: skip
    p.scheduler = "Automatic"
    p.scripts, p.amed = scripts.ScriptRunner(), settings  # an empty runner: reForge reads its attributes
    try:
        return processing.process_images(p)
    finally:
        p.close()


def decode(latents: Tensor) -> Tensor:
    """Decode latents `[n, C, h, w]` one by one with the VAE; returns images `[n, 3, H, W]` in [-1, 1]."""
    images = [sd_samplers_common.samples_to_images_tensor(latent[None], 0)[0] for latent in latents]
    return torch.stack([image.detach().float().cpu() for image in images])


# --- X/Y/Z plot --------------------------------------------------------------------------------------------


def xyz_module() -> Any:
    """Return the module of the WebUI's X/Y/Z plot script; None if it is missing."""
    for data in scripts.scripts_data:
        if hasattr(data.module, "AxisOption") and hasattr(data.module, "axis_options"):
            return data.module
    return None
