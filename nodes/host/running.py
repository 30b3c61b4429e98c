"""Sampling by ComfyUI's own function, what its page shows meanwhile, and what it is executing.

Host: comfy/sample.py, comfy/utils.py, comfy_execution/utils.py, latent_preview.py, server.py."""

import inspect
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.sample
import comfy.utils
import latent_preview
from comfy_api.latest import ui
from torch import Tensor

from .log import warn_once
from .model import stop_if_interrupted

TAGS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # in the order of ComfyUI's parameters
INTERVAL = 0.2  # seconds between two updates of the page


def start_of(model: Any, latent: dict) -> Tensor:
    """Return a LATENT's samples `[B, C, ...]`, with the number of channels that the MODEL needs.

    As in KSampler, the number of channels is only changed in an empty LATENT (all 0)."""
    tags = {name: latent[tag] for name, tag in shape_tags().items() if latent.get(tag) is not None}
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], **tags)


def shape_tags() -> dict[str, str]:
    """Return which entries of a LATENT, e.g. its downscale ratio, `fix_empty_latent_channels` takes.

    The dict maps the name of each parameter of this ComfyUI function to the name of the LATENT's entry. It
    is empty in older versions of ComfyUI."""
    parameters = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):  # another pack's function around ComfyUI's
        return dict(zip(TAGS, TAGS))
    names = [p.name for p in parameters][2:]
    return {name: name if name in TAGS else tag for name, tag in zip(names, (*TAGS, *names[2:]))}


def noise_of(start: Tensor, seed: int) -> Tensor:
    """Draw the noise that KSampler draws for a LATENT's samples."""
    return comfy.sample.prepare_noise(start, seed)


def run(
    model: Any,
    sampler: Any,
    sigmas: Tensor,
    seed: int,
    guidance: float,
    positive: list,
    negative: list,
    latent: dict,
    quiet: bool = False,
) -> dict:
    """Sample as KSampler does, with noise from the seed, previews, progress and the noise mask.

    Args:
        quiet: show no previews and no progress.

    Returns:
        The sampled LATENT."""
    start = start_of(model, latent)
    noise = comfy.sample.prepare_noise(start, seed, latent.get("batch_index"))
    callback = None if quiet else latent_preview.prepare_callback(model, len(sigmas) - 1)
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
        disable_pbar=quiet or not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    tags = shape_tags().values()
    return {**{name: value for name, value in latent.items() if name not in tags}, "samples": samples}


def progress_bar(node_id: str | None, total: int) -> Callable[..., None]:
    """Return a function `show(done, picture=None)` that moves a node's progress bar to `done` of `total`.

    It shows the picture (PIL), if given, on the node, and raises ComfyUI's InterruptProcessingException if
    the user has interrupted the run."""
    bar = comfy.utils.ProgressBar(total, node_id=node_id) if node_id else comfy.utils.ProgressBar(total)
    sent = -math.inf

    def show(done: int, picture: Any = None) -> None:
        nonlocal sent
        now = time.monotonic()
        if picture is None and done < total and now - sent < INTERVAL:
            stop_if_interrupted()
            return
        sent = now
        bar.update_absolute(min(done, total), total, picture and ("JPEG", picture, 1024))

    return show


def text_ui(node_id: str | None, text: str) -> Any:
    """Show text on a node at once, and return it for the node's `ui` output."""
    if node_id:
        show_text(node_id, text)
    return ui.PreviewText(text)


class Executing(NamedTuple):
    """The node that ComfyUI is executing, or whose `fingerprint_inputs` (IS_CHANGED) it is calling."""

    run: str  # of the queue; unique even where a client gives two prompts the same id
    node: str  # node id
    item: int  # index in a list of inputs, 0 without one


def executing() -> Executing | None:
    """Return which node ComfyUI is executing, in which run, and for which item of a list input.

    None outside a run, or if this version of ComfyUI does not tell."""
    try:
        from comfy_execution.utils import get_executing_context

        context = get_executing_context()
    except Exception:  # reports are optional
        warn_once(
            "this ComfyUI does not tell which node runs, so KSampler and other nodes show no AMED report"
        )
        return None
    if context is None:
        return None
    number = next((item[0] for item in running_jobs() if item[1] == context.prompt_id), 0)
    return Executing(f"{number}:{context.prompt_id}", str(context.node_id), context.list_index or 0)


def executing_node() -> str | None:
    """Return the id of the node that ComfyUI is executing, or None if it does not tell."""
    now = executing()
    return None if now is None else now.node


def running_jobs() -> list[tuple]:
    """Return (number, prompt id, graph, extra data) of each job that ComfyUI's queue is running."""
    try:
        from server import PromptServer

        return [item[:4] for item in list(PromptServer.instance.prompt_queue.currently_running.values())]
    except Exception:  # graphs run without a queue
        return []


def running_prompt() -> tuple[dict[str, dict], Any]:
    """Return the running graph in API format and its EXTRA_PNGINFO as it was sent; ({}, None) if unknown."""
    now = executing()
    for number, prompt_id, graph, extra in running_jobs():
        if now is not None and now.run == f"{number}:{prompt_id}":
            return graph, (extra or {}).get("extra_pnginfo")
    return {}, None


def show_text(node_id: str, text: str) -> None:
    """Show text on a node, if ComfyUI's page supports it."""
    try:
        from server import PromptServer

        PromptServer.instance.send_progress_text(text, node_id)
    except Exception:  # optional: the text is also an output and in the log
        warn_once("this ComfyUI shows no text on nodes: read reports in the log and the nodes' outputs")
