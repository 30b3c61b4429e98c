"""A run of the host's own sampling, and what its page shows meanwhile. Host: comfy/sample.py, comfy/utils.py,
comfy_execution/utils.py, latent_preview.py, server.py."""

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
from .model import stop_if_asked

TAGS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # in the order of the host's parameters
EVERY = 0.2  # seconds between two things that are sent to the page


def start_of(model: Any, latent: dict) -> Tensor:
    """A LATENT's samples `[B, C, ...]`; an empty one in the MODEL's own shape, as the host's KSampler has
    it."""
    told = {name: latent[tag] for name, tag in shape_tags().items() if latent.get(tag) is not None}
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], **told)


def shape_tags() -> dict[str, str]:
    """The entries of a LATENT that say for which shape an empty one was made, by the parameter of this host's
    function that takes each: none in older hosts."""
    parameters = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):  # another pack's, around the host's
        return dict(zip(TAGS, TAGS))
    names = [p.name for p in parameters][2:]
    return {name: name if name in TAGS else tag for name, tag in zip(names, (*TAGS, *names[2:]))}


def noise_of(start: Tensor, seed: int) -> Tensor:
    """The noise that the host's KSampler draws for a LATENT's samples."""
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
    """Sample as the host's own KSampler does: noise from the seed, previews, progress, mask. A LATENT
    back. quiet: without previews and progress, where the caller shows its own."""
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
    """A bar on the node; call it with what is done, as often as you like, and perhaps a picture (PIL) to show
    under it. Raises, too, when the user stops the run."""
    bar = comfy.utils.ProgressBar(total, node_id=node_id) if node_id else comfy.utils.ProgressBar(total)
    sent = -math.inf

    def show(done: int, picture: Any = None) -> None:
        nonlocal sent
        now = time.monotonic()
        if picture is None and done < total and now - sent < EVERY:
            stop_if_asked()
            return
        sent = now
        bar.update_absolute(min(done, total), total, picture and ("JPEG", picture, 1024))

    return show


def face(node_id: str | None, text: str) -> Any:
    """Text on a node: at once, and for its `ui`."""
    if node_id:
        show_text(node_id, text)
    return ui.PreviewText(text)


class Executing(NamedTuple):
    """What the host runs at this moment, or asks for its fingerprint."""

    run: str  # of the queue: another for every prompt, also where a client gives two the same id
    node: str
    item: int  # place in a list of inputs


def executing() -> Executing | None:
    """What the host runs at this moment; None outside of a run, and where this host does not say."""
    try:
        from comfy_execution.utils import get_executing_context

        context = get_executing_context()
    except Exception:  # only ever an extra
        warn_once("this ComfyUI does not say which node runs: its own nodes show no report of AMED's")
        return None
    if context is None:
        return None
    number = next((item[0] for item in queued() if item[1] == context.prompt_id), 0)
    return Executing(f"{number}:{context.prompt_id}", str(context.node_id), context.list_index or 0)


def executing_node() -> str | None:
    """The node that the host runs at this moment, where this host says so."""
    now = executing()
    return None if now is None else now.node


def queued() -> list[tuple]:
    """What the host's queue has taken out to run: number, prompt id, graph, extra data; copies of its own,
    which no node writes to."""
    try:
        from server import PromptServer

        return [item[:4] for item in list(PromptServer.instance.prompt_queue.currently_running.values())]
    except Exception:  # a host that runs graphs without a queue
        return []


def running_prompt() -> tuple[dict[str, dict], Any]:
    """The graph that runs, in API format by node id, and its EXTRA_PNGINFO as it was sent; ({}, None) where
    this host does not show them."""
    now = executing()
    for number, prompt_id, graph, extra in queued():
        if now is not None and now.run == f"{number}:{prompt_id}":
            return graph, (extra or {}).get("extra_pnginfo")
    return {}, None


def show_text(node_id: str, text: str) -> None:
    """Text on the node itself, where this host's page can show it."""
    try:
        from server import PromptServer

        PromptServer.instance.send_progress_text(text, node_id)
    except Exception:  # only ever an extra: the text is also an output and in the log
        warn_once("this ComfyUI shows no text on nodes: it is in the log and the nodes' outputs")
