"""Nodes of the host around a sampling, each with inputs drawn at random."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from .scene import Scene

ALL = ("sd15", "demo", "wan", "flux", "file")
UNET = ("sd15", "file")
Drawn = dict[str, Any]


@dataclass(frozen=True)
class Ingredient:
    name: str
    group: str
    """The part of a Scene that it changes: "model", "prompt" or "latent"."""
    put: Callable[..., None]
    """put(scene, **inputs) adds it to the graph."""
    draw: Callable[[Random, Any], Drawn]
    """Draws its inputs, given the recipe so far."""
    bases: tuple[str, ...] = ALL
    kind: str = ""
    """A graph has at most one ingredient of each kind."""
    often: int = 2
    joint: bool = False
    """Whether its effect depends on the whole batch."""
    single: bool = False
    """Whether the host supports it only for a batch of one."""


INGREDIENTS: dict[str, Ingredient] = {}


def nothing(rng: Random, recipe: Any) -> Drawn:
    return {}


def share(name: str, *values: float) -> Callable[[Random, Any], Drawn]:
    return lambda rng, recipe: {name: rng.choice(values)}


def add(
    name: str,
    group: str,
    put: Callable[..., None],
    draw: Callable[[Random, Any], Drawn] = nothing,
    **more: Any,
) -> None:
    INGREDIENTS[name] = Ingredient(name, group, put, draw, **{"kind": name} | more)


def on_model(node: str, draw: Callable[[Random, Any], Drawn] = nothing, **more: Any) -> None:
    """Return an ingredient for a node of the host from MODEL to MODEL."""
    add(node, "model", lambda scene, **inputs: scene.patch(node, **inputs), draw, **more)


# --- models ------------------------------------------------------------------------------------------------


def merged(node: str) -> Callable[..., None]:
    def put(scene: Scene, **inputs: Any) -> None:
        scene.model = [scene.add(node, model1=scene.model, model2=scene.checkpoint(1), **inputs), 0]

    return put


def difference(scene: Scene, multiplier: float) -> None:
    """A + m (B - C), known as an add-difference merge."""
    apart = [
        scene.add(
            "ModelMergeSubtract",
            model1=scene.checkpoint(1),
            model2=scene.checkpoint(2),
            multiplier=multiplier,
        ),
        0,
    ]
    scene.model = [scene.add("ModelMergeAdd", model1=scene.model, model2=apart), 0]


def lora(scene: Scene, strength: float) -> None:
    scene.patch("LoraLoaderModelOnly", lora_name=f"graphs-{scene.base}.safetensors", strength_model=strength)


def cache(rng: Random, recipe: Any) -> Drawn:
    return {
        "reuse_threshold": rng.choice((0.2, 0.2, 3.0)),
        "start_percent": rng.choice((0.0, 0.15)),
        "end_percent": rng.choice((0.95, 1.0)),
        "verbose": False,
    }


def freeu(rng: Random, recipe: Any) -> Drawn:
    return {"b1": 1.3, "b2": 1.4, "s1": rng.choice((0.9, 0.5)), "s2": 0.2}


def windows(rng: Random, recipe: Any) -> Drawn:
    schedule = rng.choice(("standard_static", "standard_uniform", "looped_uniform", "batched"))
    return {
        "context_length": rng.choice((2, 4)),
        "context_overlap": 1,
        "context_schedule": schedule,
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": rng.choice(("pyramid", "flat", "relative")),
        "dim": 2,
    }


def wan_windows(rng: Random, recipe: Any) -> Drawn:
    """Context windows counted in video frames, of which four are one latent frame."""
    inputs = windows(rng, recipe)
    del inputs["dim"]
    return inputs | {"context_length": rng.choice((5, 9)), "context_overlap": 4}


add("LoRA", "model", lora, share("strength", 1.0, 0.5), bases=UNET)
add(
    "ModelMergeSimple",
    "model",
    merged("ModelMergeSimple"),
    share("ratio", 0.0, 0.3, 0.7),
    kind="merge",
    bases=("sd15", "wan", "flux"),
)
add(
    "ModelMergeBlocks",
    "model",
    merged("ModelMergeBlocks"),
    lambda rng, recipe: {k: rng.choice((0.0, 0.5, 1.0)) for k in ("input", "middle", "out")},
    kind="merge",
    bases=("sd15",),
)
add("add difference", "model", difference, share("multiplier", 1.0, 0.4), kind="merge", bases=("sd15",))
on_model(
    "ModelSamplingDiscrete",
    lambda rng, recipe: {
        "sampling": rng.choice(("eps", "v_prediction", "lcm", "x0")),
        "zsnr": rng.random() < 0.3,
    },
    kind="sampling",
    bases=UNET,
    often=1,
)
on_model(
    "ModelSamplingContinuousEDM",
    lambda rng, recipe: {
        "sampling": rng.choice(("eps", "v_prediction", "edm")),
        "sigma_max": rng.choice((80.0, 14.0)),
        "sigma_min": 0.002,
    },
    kind="sampling",
    bases=("sd15", "demo"),
    often=1,
)
on_model("ModelSamplingSD3", share("shift", 3.0, 8.0), kind="sampling", bases=("wan",))
on_model(
    "ModelSamplingFlux",
    lambda rng, recipe: {
        "max_shift": 1.15,
        "base_shift": 0.5,
        "width": 512,
        "height": rng.choice((512, 1024)),
    },
    kind="sampling",
    bases=("flux",),
)
on_model("RescaleCFG", share("multiplier", 0.7, 0.2), bases=("sd15", "file", "demo"))
on_model("CFGZeroStar")
on_model(
    "APG",
    lambda rng, recipe: {"eta": 1.0, "norm_threshold": 5.0, "momentum": rng.choice((0.0, 0.5))},
    often=1,
    joint=True,  # with momentum it remembers the previous sampling, if that had one step
)
on_model("TCFG", often=1)
on_model("Mahiro", often=1, joint=True)
on_model("FreeU", freeu, kind="freeu", bases=UNET)
on_model("FreeU_V2", freeu, kind="freeu", bases=UNET)
on_model(
    "HyperTile",
    lambda rng, recipe: {"tile_size": 32, "swap_size": 2, "max_depth": 0, "scale_depth": False},
    bases=UNET,
    often=1,
    joint=True,
)
on_model("TomePatchModel", share("ratio", 0.3), bases=UNET, often=1, joint=True)
on_model("PerturbedAttentionGuidance", share("scale", 3.0, 0.5), bases=UNET)
on_model("SelfAttentionGuidance", lambda rng, recipe: {"scale": 0.5, "blur_sigma": 2.0}, bases=UNET)
on_model("EasyCache", cache, kind="cache", joint=True, often=3)
on_model("LazyCache", cache, kind="cache", joint=True, often=3)
on_model("ContextWindowsManual", windows, kind="windows", bases=("wan",), often=8, single=True)
on_model("WanContextWindowsManual", wan_windows, kind="windows", bases=("wan",), often=8, single=True)
on_model("DifferentialDiffusion", often=1)
on_model("SmallMemory", often=1)


# --- prompts -----------------------------------------------------------------------------------------------


def hooked(scene: Scene, keyframes: bool, strength: float) -> None:
    """A LoRA on the positive prompt alone, possibly with another strength in later steps."""
    hook = [
        scene.add(
            "CreateHookLoraModelOnly", lora_name=f"graphs-{scene.base}.safetensors", strength_model=strength
        ),
        0,
    ]
    if keyframes:
        first = [scene.add("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0), 0]
        later = [scene.add("CreateHookKeyframe", strength_mult=0.3, start_percent=0.4, prev_hook_kf=first), 0]
        hook = [scene.add("SetHookKeyframes", hooks=hook, hook_kf=later), 0]
    scene.positive = [
        scene.add(
            "ConditioningSetProperties",
            cond_NEW=scene.positive,
            hooks=hook,
            strength=1.0,
            set_cond_area="default",
        ),
        0,
    ]


def control(scene: Scene, strength: float, start: float, end: float) -> None:
    image = [scene.add("EmptyImage", width=scene.width, height=scene.height, batch_size=1, color=0x4080C0), 0]
    net = [scene.add("SmallControl"), 0]
    node = scene.add(
        "ControlNetApplyAdvanced",
        positive=scene.positive,
        negative=scene.negative,
        control_net=net,
        image=image,
        strength=strength,
        start_percent=start,
        end_percent=end,
    )
    scene.positive, scene.negative = [node, 0], [node, 1]


def combined(scene: Scene, first: Any, second: Any) -> None:
    scene.positive = [scene.add("ConditioningCombine", conditioning_1=first, conditioning_2=second), 0]


def areas(scene: Scene, share: float) -> None:
    """Two prompts, each for a part of the width."""

    def area(prompt: Any, x: float, width: float) -> list:
        return [
            scene.add(
                "ConditioningSetAreaPercentage",
                conditioning=prompt,
                width=width,
                height=1.0,
                x=x,
                y=0.0,
                strength=1.0,
            ),
            0,
        ]

    combined(scene, area(scene.positive, 0.0, share), area(scene.other(), 1 - share, share))


def masked_prompts(scene: Scene, bounds: str) -> None:
    def side(prompt: Any, is_left: bool) -> list:
        mask = scene.half_mask(is_left)
        return [
            scene.add(
                "ConditioningSetMask", conditioning=prompt, mask=mask, strength=1.0, set_cond_area=bounds
            ),
            0,
        ]

    combined(scene, side(scene.positive, True), side(scene.other(), False))


def spans(scene: Scene, at: float) -> None:
    """Two prompts, one after the other."""

    def span(prompt: Any, start: float, end: float) -> list:
        return [scene.add("ConditioningSetTimestepRange", conditioning=prompt, start=start, end=end), 0]

    combined(scene, span(scene.positive, 0.0, at), span(scene.other(), at, 1.0))


def mixed(node: str) -> Callable[..., None]:
    def put(scene: Scene, **inputs: Any) -> None:
        scene.positive = [
            scene.add(node, conditioning_to=scene.positive, conditioning_from=scene.other(), **inputs),
            0,
        ]

    return put


def both(scene: Scene) -> None:
    combined(scene, scene.positive, scene.other())


def longer(scene: Scene) -> None:
    """A negative prompt of so many more tokens that the host evaluates it in a separate call."""
    if scene.base != "demo":
        scene.negative = scene.prompt(2, 7)


add(
    "hooks",
    "prompt",
    hooked,
    lambda rng, recipe: {"keyframes": rng.random() < 0.5, "strength": 1.0},
    bases=UNET,
    often=4,
)
add(
    "ControlNet",
    "prompt",
    control,
    lambda rng, recipe: {
        "strength": rng.choice((1.0, 0.5)),
        "start": rng.choice((0.0, 0.2)),
        "end": rng.choice((1.0, 0.6)),
    },
    bases=("sd15",),
    often=3,
)
add("areas", "prompt", areas, share("share", 0.5, 0.75), kind="regions", bases=("sd15", "file", "flux"))
add(
    "masked prompts",
    "prompt",
    masked_prompts,
    lambda rng, recipe: {"bounds": rng.choice(("default", "mask bounds"))},
    kind="regions",
    bases=("sd15", "file", "flux", "demo"),
)
add("spans", "prompt", spans, share("at", 0.2, 0.6))
add(
    "ConditioningAverage",
    "prompt",
    mixed("ConditioningAverage"),
    share("conditioning_to_strength", 0.5, 0.9),
    bases=("sd15", "file", "wan", "flux"),
)
add("ConditioningConcat", "prompt", mixed("ConditioningConcat"), bases=("sd15", "file", "flux"))
add("ConditioningCombine", "prompt", both)
add("longer negative", "prompt", longer, bases=("sd15", "file"))


# --- LATENTs -----------------------------------------------------------------------------------------------


def noise_mask(scene: Scene, kind: str) -> None:
    """hard: the right half. grey: half strength everywhere. other: another size than the image's."""
    if kind == "grey":
        mask = [scene.add("SolidMask", value=0.5, width=scene.width, height=scene.height), 0]
    else:
        mask = scene.half_mask(False, 1 if kind == "hard" else 3)
    scene.latent = [scene.add("SetLatentNoiseMask", samples=scene.latent, mask=mask), 0]


def started(scene: Scene) -> None:
    """Start from an image instead of an empty LATENT."""
    scene.latent = scene.euler(2)


def from_batch(scene: Scene, index: int) -> None:
    scene.latent = [scene.add("LatentFromBatch", samples=scene.latent, batch_index=index, length=2), 0]


def joined(scene: Scene) -> None:
    scene.latent = [scene.add("LatentBatch", samples1=scene.latent, samples2=scene.latent), 0]


def on_latent(node: str, draw: Callable[[Random, Any], Drawn] = nothing, **more: Any) -> None:
    def put(scene: Scene, **inputs: Any) -> None:
        scene.latent = [scene.add(node, samples=scene.latent, **inputs), 0]

    add(node, "latent", put, draw, **more)


add(
    "noise mask",
    "latent",
    noise_mask,
    lambda rng, recipe: {"kind": rng.choice(("hard", "grey", "other"))},
    kind="mask",
    bases=("sd15", "demo", "flux", "file", "wan"),
    often=5,
)
add("from an image", "latent", started, kind="image", often=3)
add(
    "LatentFromBatch",
    "latent",
    from_batch,
    lambda rng, recipe: {"index": rng.randrange(max(recipe["batch"] - 1, 1))},
    kind="batch",
)
add("LatentBatch", "latent", joined, kind="batch", bases=("sd15", "demo", "file", "flux"))
on_latent("RepeatLatentBatch", share("amount", 2), kind="batch")
on_latent(
    "LatentBatchSeedBehavior", lambda rng, recipe: {"seed_behavior": rng.choice(("fixed", "random"))}, often=1
)
on_latent("SmallLatent", share("dtype", "fp16", "bf16"), often=1)
