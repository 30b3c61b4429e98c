"""The only file that touches a WebUI's insides (`modules.*`): AUTOMATIC1111 1.10, Forge and reForge.

What differs between them is asked for, never their names: a model with `forge_objects` is Forge's or
reForge's. Nothing of the host is replaced, only added to.
"""

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
from .evaluate import Chunks, Order, PromptsFirst

FOLDER = "AMED"  # in the host's models folder
BUNDLED = Path(__file__).resolve().parent.parent / "predictors"
FAMILIES = {"is_sdxl": "sdxl", "is_sd3": "sd3", "is_sd2": "sd20", "is_sd1": "sd15"}
Interrupted = sd_samplers_common.InterruptedException  # a BaseException
AlwaysVisible = scripts.AlwaysVisible

_library = Library([])
_identities: dict[tuple, Identity] = {}


def warn(text: str) -> None:
    """A line in the console."""
    print(f"AMED: {text}")


def register(run: Callable, times: Callable, listed: list[str] | None) -> None:
    """Our samplers and schedule into the host's lists."""
    samplers.add_samplers(
        sd_samplers, sd_samplers_common, sd_samplers_kdiffusion, run, times, schedule_of, listed
    )
    samplers.add_schedule(sd_schedulers, schedule)


def sampler_functions() -> dict[str, tuple[str, Callable]]:
    """The host's own samplers over a list of noise levels, by label: a name that other hosts know too
    (k-diffusion's), and the function. Not those that say they draw noise."""
    found = {}
    library = getattr(sd_samplers_kdiffusion, "k_diffusion", sd_samplers_kdiffusion)
    sampling = getattr(library, "sampling", None)  # in reForge its own name in that module
    for label, named, _aliases, options in getattr(sd_samplers_kdiffusion, "samplers_k_diffusion", ()):
        function = named if callable(named) else getattr(sampling, named, None)
        noisy = options.get("brownian_noise") or options.get("uses_ensd")
        if function is not None and not noisy and "sigmas" in inspect.signature(function).parameters:
            found[label] = getattr(function, "__name__", label).removeprefix("sample_"), function
    return found


# --- folders and settings ----------------------------------------------------------------------------------


def user_folder() -> Path:
    """Where new predictors are saved."""
    return Path(paths.models_path) / FOLDER


def library() -> Library:
    """The user's predictors (models/AMED), then the bundled."""
    _library.folders = [user_folder(), BUNDLED]
    return _library


def offered() -> list[str]:
    """Names of the user's predictors and of the bundled for models that a WebUI has: not the demo model's."""
    ours, families = Library([user_folder()]).names(), ("", *FAMILIES.values())
    named = library().named().items()
    return [name for name, fitted in named if name in ours or fitted.spec.model_family in families]


def setting(name: str, default: Any) -> Any:
    """A value of the settings page, `default` as long as there is none."""
    return shared.opts.data.get(name, default)


def add_settings(section: tuple[str, str], options: dict[str, tuple]) -> None:
    """name -> (default, label, component, its arguments), as the host's OptionInfo has it."""
    for name, (default, label, component, arguments) in options.items():
        info = shared.OptionInfo(default, label, component, arguments, section=section)
        shared.opts.add_option(name, info)


# --- the model ---------------------------------------------------------------------------------------------


def loaded_model() -> Any:
    """The checkpoint in memory, None before one is loaded: asking must not load it."""
    return sd_models.model_data.sd_model


def checkpoint() -> Any:
    """The chosen checkpoint, loaded if it is not."""
    if hasattr(sd_models, "forge_model_reload"):
        sd_models.forge_model_reload()
    return shared.sd_model


def network(model: Any) -> nn.Module | None:
    """A checkpoint's denoising network: a U-Net, or a transformer in Forge."""
    if hasattr(model, "forge_objects"):
        return getattr(getattr(model.forge_objects.unet, "model", None), "diffusion_model", None)
    return getattr(getattr(model, "model", None), "diffusion_model", None)


def current_network() -> nn.Module | None:
    """The network in use now: a refiner may have replaced the one a run began with."""
    return network(loaded_model())


def whole_guidance(model: Any) -> bool:
    """Whether something works on guidance's result or its halves together, as Forge's patches can (a latent
    modifier, PAG, SAG): with it the halves are not to be taken apart."""
    options = getattr(getattr(getattr(model, "forge_objects", None), "unet", None), "model_options", {})
    names = ("sampler_cfg_function", "sampler_post_cfg_function", "sampler_pre_cfg_function",
             "sampler_calc_cond_batch_function")  # fmt: skip
    return any(options.get(name) for name in names)


def is_forge() -> bool:
    """Whether the loaded checkpoint is Forge's or reForge's."""
    return hasattr(loaded_model(), "forge_objects")


def row_order() -> Order:
    """In what order the network's rows come (evaluate.py)."""
    return Chunks() if is_forge() else PromptsFirst()


def identity(model: Any) -> Identity:
    """Of a checkpoint; read once for each file, when it is loaded and no LoRA has changed its weights yet."""
    info = getattr(model, "sd_checkpoint_info", None)
    file = getattr(info, "filename", None)
    stamp = os.path.getmtime(file) if file and os.path.isfile(file) else id(model)
    key = (file, stamp)
    if key not in _identities:
        _identities[key] = read_identity(model)
    return _identities[key]


def read_identity(model: Any) -> Identity:
    family = next((name for flag, name in FAMILIES.items() if getattr(model, flag, False)), None)
    family = family or type(model).__name__.lower()
    try:
        return identity_of(family, network(model).named_parameters())
    except Exception as error:  # quantised weights of a kind we do not know
        warn(f"cannot tell this checkpoint from others ({error})")
        return Identity(family, "")


def checkpoint_name(model: Any) -> str:
    info = getattr(model, "sd_checkpoint_info", None)
    return getattr(info, "model_name", "") or getattr(info, "name", "") or "checkpoint"


def prediction_type(model: Any) -> str:
    """As amed.files.spec.PREDICTION_TYPES has it."""
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
    """sigma_min and sigma_max of a denoiser."""
    return float(model_wrap.sigmas[0]), float(model_wrap.sigmas[-1])


def base_times(model_wrap: Any, count: int, low: float, high: float) -> Tensor:
    """The `AMED` schedule, float64 `[count]`: uniform in the model's own time."""
    if count < 2:
        return torch.tensor([high], dtype=torch.float64)
    return schedules.make("discrete", count, low, high, table=model_wrap.sigmas)


def schedule(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any) -> Tensor:
    """The AMED entry of the schedule list, for samplers that are not ours: n noise levels and 0."""
    times = base_times(inner_model, n, float(sigma_min), float(sigma_max))
    return torch.cat([times.float(), torch.zeros(1)]).to(device)


def schedules_of(model_wrap: Any, steps: int) -> dict[str, Tensor]:
    """The host's schedules, other extensions' among them, of so many steps, by label: those that can be had
    for this model."""
    low, high = sigma_range(model_wrap)
    found = {}
    for one in sd_schedulers.schedulers:
        told = {"inner_model": model_wrap} if one.need_inner_model else {}
        with suppress(Exception):  # some are for other models, or for more steps
            if one.function is not None and one.name != samplers.SCHEDULE:
                found[one.label] = one.function(
                    n=steps, sigma_min=low, sigma_max=high, device=torch.device("cpu"), **told
                )
    return found


def schedule_of(p: Any) -> str:
    """The chosen schedule's label or name; "" where another extension gives the noise levels itself."""
    if getattr(p, "sampler_noise_scheduler_override", None):
        return ""
    return (p.hr_scheduler if is_hires(p) else getattr(p, "scheduler", None)) or "Automatic"


def tell_schedule(p: Any, label: str) -> None:
    """The schedule in the infotext, as the host writes its own."""
    infotext = p.extra_generation_params
    if not is_hires(p):
        infotext["Schedule type"] = label
    elif infotext.get("Schedule type") != label:
        infotext["Hires schedule type"] = label


def is_hires(p: Any) -> bool:
    """Whether this is the second pass of hires fix."""
    return bool(getattr(p, "is_hr_pass", False))


def passes_each(scale: float) -> int:
    """Network passes of an evaluation, for planning: A1111 runs the negative prompt even at CFG 1."""
    return 1 if scale == 1 and is_forge() else 2


def starts_below(p: Any) -> bool:
    """Whether this pass runs the lower part of its schedule only: hires fix's second, and img2img."""
    return is_hires(p) or bool(getattr(p, "init_images", None))


def guidance(p: Any) -> float:
    """The CFG scale of this pass."""
    scale = getattr(p, "hr_cfg", None) if is_hires(p) else None
    return float(p.cfg_scale if scale is None else scale)


def noise_scale(model: Any, sigma: float) -> float:
    """What the host multiplies unit noise with at the first noise level, over that level."""
    more = setting("sgm_noise_multiplier", False) and prediction_type(model) != "flow"
    return (1 + sigma**-2) ** 0.5 if more else 1.0


# --- during sampling ---------------------------------------------------------------------------------------


def of_prompts(extra_args: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    """A denoiser's arguments for samples of which each has one of the batch's prompts, by number."""
    cond, uncond, image = (extra_args.get(k) for k in ("cond", "uncond", "image_cond"))
    chosen = dict(extra_args)
    chosen["cond"] = type(cond)(shape=(len(numbers),), batch=[cond.batch[i] for i in numbers])
    if uncond is not None:
        chosen["uncond"] = [uncond[i] for i in numbers]
    if isinstance(image, Tensor) and len(image) == len(cond.batch):
        chosen["image_cond"] = image[numbers]
    return chosen


def tell_progress(done: int, total: int, text: str) -> None:
    """What the progress bar and the API show."""
    shared.state.sampling_step, shared.state.sampling_steps = done, total
    shared.state.textinfo = text


def has_queue() -> bool:
    """Whether the page can show what is not finished."""
    return not getattr(shared.cmd_opts, "no_gradio_queue", False)


def progress_text() -> str:
    return shared.state.textinfo or ""


def interrupt() -> None:
    shared.state.interrupt()


@contextmanager
def the_gpu(job: str):
    """The host's own queue: one at a time, with a job in the progress bar."""
    with call_queue.queue_lock:
        shared.state.begin(job=job)
        try:
            yield
        finally:
            shared.state.end()
            shared.state.interrupted = shared.state.skipped = False


def on_main_thread(function: Callable, *args: Any) -> Any:
    """Forge keeps its models on one thread; elsewhere any will do. An exception comes through."""
    try:
        from modules_forge import main_thread
    except ImportError:
        return function(*args)
    if not hasattr(main_thread, "run_and_wait_result"):
        return function(*args)
    end: dict[str, Any] = {}

    def work() -> None:
        try:
            end["result"] = function(*args)
        except BaseException as error:  # the host would only print it
            end["error"] = error

    main_thread.run_and_wait_result(work)
    if "error" in end:
        raise end["error"]
    return end["result"]


def generate(
    sampler: str,
    prompts: list[str],
    negative: str,
    size: tuple[int, int],
    guidance: float,
    seed: int,
    wish: Any,
) -> Any:
    """txt2img of a batch with one image a prompt, nothing saved and no other extension's scripts: `wish`
    becomes `p.amed`. The host's Processed."""
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=shared.sd_model,
        prompt=prompts,
        negative_prompt=[negative] * len(prompts),
        batch_size=len(prompts),
        n_iter=1,
        width=size[0],
        height=size[1],
        steps=2,
        cfg_scale=guidance,
        sampler_name=sampler,
        seed=seed,
        do_not_save_samples=True,
        do_not_save_grid=True,
    )
    p.scheduler = "Automatic"
    p.scripts, p.amed = scripts.ScriptRunner(), wish  # an empty one: reForge looks into it
    try:
        return processing.process_images(p)
    finally:
        p.close()


def pixels(latents: Tensor) -> Tensor:
    """Images `[n, 3, H, W]` in [-1, 1] of latents `[n, C, h, w]`, by the checkpoint's own VAE, one by one."""
    images = [sd_samplers_common.samples_to_images_tensor(one[None], 0)[0] for one in latents]
    return torch.stack([image.detach().float().cpu() for image in images])


# --- X/Y/Z plot --------------------------------------------------------------------------------------------


def xyz_module() -> Any:
    """The host's X/Y/Z plot script, None where it is missing."""
    for data in scripts.scripts_data:
        if hasattr(data.module, "AxisOption") and hasattr(data.module, "axis_options"):
            return data.module
    return None
