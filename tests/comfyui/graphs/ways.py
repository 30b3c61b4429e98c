"""The ways to sample with our nodes, each with settings drawn at random."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from comfyui.predictor_kinds import KINDS, WRAPPED, Kind

from amed import SAMPLERS

from .scene import FAMILIES, Scene

ALL = ("sd15", "demo", "wan", "flux", "file")
FITTED = ("sd15", "wan", "file")  # bases for which comfyui.predictor_kinds writes files
NO_DEMO = ("sd15", "wan", "flux", "file")
FILES = {kind.file: kind for kind in KINDS if not kind.sampler and not kind.around}
DEMO = {
    f"emoji32-{name}-nfe{nfe}-cfg{cfg}.safetensors": (nfe, cfg)
    for name, nfe, cfg in (
        ("amed", 5, 1),
        ("amed", 5, 2),
        ("dpmpp", 7, 2),
        ("ipndm", 3, 1),
        ("ipndm", 5, 2),
        ("multistep", 4, 1),
        ("multistep", 5, 2),
        ("multistep", 6, 4),
        ("multistep", 8, 1),
    )
}
HOST = {
    "Euler": "euler",
    "Heun": "heun",
    "iPNDM-4": "ipndm",
    "DPM++ 2M": "dpmpp_2m",
    "DPM-Solver-2": "dpm_2",
    "DEIS-3": "deis",
}
"""Plain solvers that the host has too, by its names."""
PLAIN, HOSTS_OWN = "plain", "the host's own Euler"
LEAST = {2: 1400, 3: 1600}  # budget of a fit by NFE: about the least that it needs


@dataclass
class Sampled:
    """The outputs that a way to sample added to a graph."""

    latent: list | None = None
    """The sampled LATENT; None if the way gives none."""
    runs: list[str] = field(default_factory=list)
    """Nodes that show a run's report: AMED KSampler, or the host's node with one of our samplers."""
    texts: list[str] = field(default_factory=list)
    """Nodes that show another text of this pack."""
    finished: list = field(default_factory=list)
    """The last output to be ready, for ways without a LATENT."""
    used: list[str] = field(default_factory=list)
    """Nodes with a count of AMED Evaluations Used."""


@dataclass(frozen=True)
class Way:
    name: str
    draw: Callable[[Random, str], dict[str, Any]]
    """Draws the settings for a base."""
    put: Callable[[Scene, dict[str, Any]], Sampled]
    bases: tuple[str, ...] = ALL
    often: int = 4
    slow: bool = False
    """Whether a run takes many seconds, as a fit does."""
    fits: bool = False
    images: bool = True
    """Whether each image of the LATENT is sampled, equally alone, in a batch and in a list."""
    empty: bool = False
    """Whether only the size of the LATENT is used."""


WAYS: dict[str, Way] = {}


def way(name: str, draw: Callable[[Random, str], dict[str, Any]], **more: Any) -> Callable:
    def register(put: Callable[[Scene, dict[str, Any]], Sampled]) -> Callable:
        WAYS[name] = Way(name, draw, put, **more)
        return put

    return register


# --- drawing the settings ----------------------------------------------------------------------------------


def file_of(rng: Random, base: str) -> dict[str, Any]:
    """Draw a predictor file, and its evaluations."""
    if base == "demo":
        name = rng.choice(list(DEMO))
        return {"file": name, "nfe": DEMO[name][0]}
    kind = rng.choice(list(FILES))
    return {"file": f"small-{FAMILIES[base]}-{kind}.safetensors", "nfe": 4}


def denoised(rng: Random) -> dict[str, Any]:
    return {"denoise": rng.choice((1.0, 1.0, 1.0, 0.3, 0.6, 0.9))}


def looked_up(rng: Random, base: str) -> dict[str, Any]:
    """Draw settings without a linked predictor: the library is searched, with `if_missing` as the
    fallback."""
    settings = {"sampler": rng.choice(("auto", "auto", *SAMPLERS)), "nfe": rng.randrange(2, 9), "file": ""}
    return settings | {"if_missing": rng.choice((*[PLAIN] * 7, "untrained", "untrained", "error"))}


def chosen(rng: Random, base: str) -> dict[str, Any]:
    """Draw a file by name, or settings with which the library is searched."""
    settings = looked_up(rng, base) | denoised(rng)
    if base in (*FITTED, "demo") and rng.random() < 0.5:
        settings |= file_of(rng, base) | {"sampler": "auto"}
    return settings


def guided(rng: Random, base: str) -> dict[str, Any]:
    return chosen(rng, base) | {"guider": rng.choice(("Basic", "CFG", "DualCFG", "PerpNeg"))}


def split(rng: Random, base: str) -> dict[str, Any]:
    return chosen(rng, base) | {"denoise": 1.0, "at": rng.randrange(1, 3)}


def ordinary(rng: Random, base: str) -> dict[str, Any]:
    return {
        "sampler": rng.choice(list(SAMPLERS)),
        "scheduler": rng.choice(("amed", "amed", "karras", "simple", "normal")),
        "steps": rng.randrange(1, 8),
    } | denoised(rng)


def applied(rng: Random, base: str) -> dict[str, Any]:
    kind = rng.choice(list(FILES))
    return {"kind": kind, "file": f"small-{FAMILIES[base]}-{kind}.safetensors", "nfe": 4} | denoised(rng)


def plain(rng: Random, base: str) -> dict[str, Any]:
    solver = rng.choice((*HOST, "iPNDM-2", "iPNDM-3", "UniPC", "DPM++ 3M"))
    nfe = rng.choice((2, 4, 6)) if solver in ("Heun", "DPM-Solver-2") else rng.randrange(2, 8)
    # "discrete" needs the host's model_sampling tables, which are missing here
    kind, rho = rng.choice((("polynomial", 7.0), ("time_uniform", 1.0), ("logsnr", 1.0)))
    return {"solver": solver, "nfe": nfe, "schedule": kind, "rho": rho, "zero": rng.random() < 0.5}


def refined(rng: Random, base: str) -> dict[str, Any]:
    return looked_up(rng, base) | {
        "denoise": rng.choice((0.3, 0.5, 0.7)),
        "scale": rng.choice((1.5, 2.0)),
        "method": rng.choice(("nearest-exact", "bilinear", "bislerp")),
    }


def fitted(rng: Random, base: str) -> dict[str, Any]:
    return {
        "sampler": rng.choice(("amed_multistep", "amed_multistep", *SAMPLERS)),
        "nfe": rng.choice((2, 3)),
        "passes": 0,
        "wrapped": rng.choice(("", "", "", "euler", "dpmpp_2m")),
    }


def compared(rng: Random, base: str) -> dict[str, Any]:
    lines = rng.sample(
        (
            "amed",
            "plain",
            "amed_ipndm",
            "amed_uni_pc",
            "euler / karras",
            "dpmpp_2m / simple",
            "uni_pc / normal",
        ),
        3,
    )
    return {
        "samplers": "\n".join(lines),
        "nfe": rng.choice((2, 3, 4)),
        "seeds": rng.choice((1, 2)),
        "reference": rng.choice((0, 8, 10)),
    }


def shown(rng: Random, base: str) -> dict[str, Any]:
    settings = {"nfe": rng.randrange(2, 7), "file": "", "reference": 20}
    return settings | (file_of(rng, base) if base != "flux" and rng.random() < 0.4 else {})


# --- adding nodes to the graph -----------------------------------------------------------------------------


def amed_ksampler(scene: Scene, s: dict[str, Any], **other: Any) -> str:
    inputs = {
        "nfe": s["nfe"],
        "sampler": s["sampler"],
        "guidance": s["cfg"],
        "seed": s["noise"],
        "denoise": s.get("denoise", 1.0),
        "predictor": s["file"] or "auto",
        "if_missing": s["if_missing"],
    }
    return scene.amed(**inputs | other)[0]


def sampler_and_sigmas(scene: Scene, s: dict[str, Any]) -> tuple[list, list]:
    linked = {"predictor": scene.load(s["file"])} if s["file"] else {}
    sampler = scene.add("AMEDSampler", sampler=s["sampler"], if_missing=s["if_missing"], **linked)
    sigmas = scene.add(
        "AMEDScheduler", model=scene.model, sampler=s["sampler"], nfe=s["nfe"], denoise=s["denoise"], **linked
    )
    return [sampler, 0], [sigmas, 0]


def guider_of(scene: Scene, s: dict[str, Any]) -> list:
    prompts = {"positive": scene.positive, "negative": scene.negative}
    inputs: dict[str, dict[str, Any]] = {
        "Basic": {"conditioning": scene.positive},
        "CFG": prompts | {"cfg": s["cfg"]},
        "DualCFG": {
            "cond1": scene.positive,
            "cond2": scene.other(),
            "negative": scene.negative,
            "cfg_conds": s["cfg"],
            "cfg_cond2_negative": 2.0,
            "style": "regular",
        },
        "PerpNeg": prompts | {"empty_conditioning": scene.other(), "cfg": s["cfg"], "neg_scale": 1.0},
    }
    return [scene.add(f"{s['guider']}Guider", model=scene.model, **inputs[s["guider"]]), 0]


@way("AMED KSampler", chosen, often=10)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    node = amed_ksampler(scene, s)
    return Sampled([node, 0], [node])


@way("SamplerCustom", chosen, often=5)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    node = scene.custom_run(*sampler_and_sigmas(scene, s), s["noise"], s["cfg"])
    return Sampled([node, 0], [node])


@way("SamplerCustomAdvanced", guided, often=5)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    sampler, sigmas = sampler_and_sigmas(scene, s)
    noise = [scene.add("RandomNoise", noise_seed=s["noise"]), 0]
    node = scene.add(
        "SamplerCustomAdvanced",
        noise=noise,
        guider=guider_of(scene, s),
        sampler=sampler,
        sigmas=sigmas,
        latent_image=scene.latent,
    )
    return Sampled([node, 0], [node])


@way("split sigmas", split)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    sampler, sigmas = sampler_and_sigmas(scene, s)
    parts = scene.add("SplitSigmas", sigmas=sigmas, step=s["at"])
    first = scene.custom_run(sampler, [parts, 0], s["noise"], s["cfg"])
    second = scene.custom_run(sampler, [parts, 1], s["noise"], s["cfg"], False, [first, 0])
    return Sampled([second, 0], [first, second])


@way("around a sampler, wrapped by a pack", chosen, bases=NO_DEMO)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    sampler, sigmas = sampler_and_sigmas(scene, s)
    wrapped = [scene.add("GraphWrap", sampler=sampler, factor=0.98), 0]
    node = scene.custom_run(wrapped, sigmas, s["noise"], s["cfg"])
    return Sampled([node, 0], [node])


@way("ordinary KSampler", ordinary, often=5)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    node = scene.ksampler(s["sampler"], s["scheduler"], s["steps"], s["cfg"], s["noise"], s["denoise"])[0]
    return Sampled([node, 0], [node])


def with_predictor(scene: Scene, predictor: list) -> list:
    """Return a MODEL with a predictor applied."""
    return [scene.add("AMEDApplyPredictor", model=scene.model, predictor=predictor), 0]


@way("Apply AMED Predictor", applied, bases=FITTED)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    kind: Kind = FILES[s["kind"]]
    model = with_predictor(scene, scene.load(s["file"]))
    node = scene.ksampler(
        kind.own_sampler, "amed", kind.own_steps, s["cfg"], s["noise"], s["denoise"], model=model
    )[0]
    return Sampled([node, 0], [node])


@way("Apply looks it up", lambda rng, base: looked_up(rng, base) | {"sampler": "auto"})
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    """For AMED KSampler, which takes the one on the MODEL."""
    applied = scene.add(
        "AMEDApplyPredictor",
        model=scene.model,
        sampler=s["sampler"],
        nfe=s["nfe"],
        guidance=s["cfg"],
        if_missing=s["if_missing"],
    )
    node = amed_ksampler(scene, s, model=[applied, 0])
    return Sampled([node, 0], [node])


@way(
    "around the host's sampler",
    lambda rng, base: {"by": rng.choice(("Apply", "AMED Sampler")), "nfe": 4},
    bases=FITTED,
)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    predictor = scene.load(f"small-{scene.family}-around.safetensors")
    if s["by"] == "Apply":
        model = with_predictor(scene, predictor)
        node = scene.ksampler(WRAPPED, "amed", 4, s["cfg"], s["noise"], model=model)[0]
        return Sampled([node, 0], [node])
    host = [scene.add("KSamplerSelect", sampler_name=WRAPPED), 0]
    sampler = [
        scene.add("AMEDSampler", sampler="auto", if_missing="error", predictor=predictor, wrapped=host),
        0,
    ]
    sigmas = [
        scene.add(
            "AMEDScheduler", model=scene.model, sampler="auto", nfe=4, denoise=1.0, predictor=predictor
        ),
        0,
    ]
    node = scene.custom_run(sampler, sigmas, s["noise"], s["cfg"])
    return Sampled([node, 0], [node])


def plain_sampler(scene: Scene, s: dict[str, Any]) -> str:
    return scene.add(
        "AMEDPlainSolver",
        model=scene.model,
        solver=s["solver"],
        nfe=s["nfe"],
        schedule=s["schedule"],
        rho=s["rho"],
        afs=False,
    )


@way(HOSTS_OWN, lambda rng, base: {}, often=0)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    """Nothing of ours: to compare with, never drawn."""
    steps = s.get("hosts_steps", 4)
    guider = guider_of(scene, s) if "guider" in s else None
    if guider is None:
        return Sampled(scene.ksampler("euler", "simple", steps, s["cfg"], s["noise"]))
    noise = [scene.add("RandomNoise", noise_seed=s["noise"]), 0]
    sampler = [scene.add("KSamplerSelect", sampler_name="euler"), 0]
    sigmas = [scene.add("BasicScheduler", model=scene.model, scheduler="simple", steps=steps, denoise=1.0),
              0]  # fmt: skip
    node = scene.add("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
                     latent_image=scene.latent)  # fmt: skip
    return Sampled([node, 0])


@way("AMED Plain Solver", plain, often=6)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    node_id = plain_sampler(scene, s)
    sampler, sigmas = [node_id, 0], [node_id, 1]
    if s.get("by_host"):
        sampler = [scene.add("KSamplerSelect", sampler_name=HOST[s["solver"]]), 0]
    if s["zero"]:
        sigmas = [scene.add("GraphZero", sigmas=sigmas), 0]
    return Sampled([scene.custom_run(sampler, sigmas, s["noise"], s["cfg"]), 0])


@way("upscale and refine", refined, bases=NO_DEMO)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    first = amed_ksampler(scene, s, denoise=1.0)
    larger = [
        scene.add("LatentUpscaleBy", samples=[first, 0], upscale_method=s["method"], scale_by=s["scale"]),
        0,
    ]
    second = amed_ksampler(scene, s, latent_image=larger)
    return Sampled([second, 0], [first, second])


@way("counted", chosen)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    model = [scene.add("AMEDCountEvaluations", model=scene.model), 0]
    node = amed_ksampler(scene, s, model=model)
    used = scene.add("AMEDEvaluationsUsed", model=model, samples=[node, 0])
    return Sampled([used, 0], [node], used=[used])


@way(
    "list of checkpoints",
    lambda rng, base: looked_up(rng, base) | {"denoise": 1.0},
    bases=("sd15", "wan", "flux"),
    images=False,
)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    second = [scene.add("GraphWatch", model=scene.checkpoint(1), name="graph"), 0]
    both = [scene.add("GraphBoth", first=scene.model, second=second), 0]
    model = {"list": both, "first": scene.model, "second": second}[s.get("which", "list")]
    node = amed_ksampler(scene, s, model=model)
    return Sampled([node, 0], [node])


@way(
    "files",
    lambda rng, base: file_of(rng, base) | {"sampler": "auto", "if_missing": "error", "denoise": 1.0},
    bases=(*FITTED, "demo"),
)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    """A predictor loaded, described, saved under another name, loaded from its code and used."""
    predictor = scene.load(s["file"])
    info = scene.add("AMEDPredictorInfo", predictor=predictor)
    scene.add("AMEDSavePredictor", predictor=predictor, name="graphs saved")
    pasted = [scene.add("AMEDLoadPredictor", name=s["file"], code=[info, 2]), 0]
    sampler = [scene.add("AMEDSampler", sampler="auto", if_missing="error", predictor=pasted), 0]
    sigmas = [
        scene.add("AMEDScheduler", model=scene.model, sampler="auto", nfe=8, denoise=1.0, predictor=pasted),
        0,
    ]
    node = scene.custom_run(sampler, sigmas, s["noise"], s["cfg"])
    return Sampled([node, 0], texts=[info])


# --- fits and pictures -------------------------------------------------------------------------------------


@way("Calibrate AMED", fitted, slow=True, fits=True, empty=True, often=6)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    """And its predictor used at once."""
    host = {"wrapped": [scene.add("KSamplerSelect", sampler_name=s["wrapped"]), 0]} if s["wrapped"] else {}
    node_id = scene.add(
        "AMEDCalibrate",
        sampler=s["sampler"],
        nfe=str(s["nfe"]),
        guidance=s["cfg"],
        budget="custom",
        evaluations=LEAST[s["nfe"]],
        seed=s["noise"],
        name="graphs fit",
        passes=s["passes"],
        **host,
        **scene.around(),
    )
    sampler = [
        scene.add("AMEDSampler", sampler="auto", if_missing="error", predictor=[node_id, 0], **host),
        0,
    ]
    sigmas = [
        scene.add(
            "AMEDScheduler",
            model=scene.model,
            sampler="auto",
            nfe=s["nfe"],
            denoise=1.0,
            predictor=[node_id, 0],
        ),
        0,
    ]
    node = scene.custom_run(sampler, sigmas, s["noise"], s["cfg"])
    return Sampled([node, 0], texts=[node_id])


@way(
    "calibrate now",
    lambda rng, base: {
        "sampler": rng.choice(("auto", "amed", "amed_ipndm")),
        "nfe": rng.choice((2, 3)),
        "file": "",
        "if_missing": "calibrate now (quick)",
    },
    slow=True,
    fits=True,
    bases=("sd15", "flux", "wan"),
    often=2,
    images=False,
)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    node = amed_ksampler(scene, s)
    return Sampled([node, 0], [node])


@way(
    "Train AMED Predictor",
    lambda rng, base: {"sampler": rng.choice(("amed", "amed_ipndm")), "nfe": rng.choice((3, 4))},
    bases=("sd15", "demo"),
    slow=True,
    fits=True,
    often=1,
    empty=True,
)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    node_id = scene.add(
        "AMEDTrainPredictor",
        sampler=s["sampler"],
        nfe=s["nfe"],
        guidance=s["cfg"],
        images=8,
        batch=4,
        teacher_points=1,
        learning_rate=0.005,
        seed=s["noise"],
        name="graphs trained",
        **scene.around(),
    )
    sampler = [scene.add("AMEDSampler", sampler="auto", if_missing="error", predictor=[node_id, 0]), 0]
    sigmas = [
        scene.add(
            "AMEDScheduler",
            model=scene.model,
            sampler="auto",
            nfe=s["nfe"],
            denoise=1.0,
            predictor=[node_id, 0],
        ),
        0,
    ]
    node = scene.custom_run(sampler, sigmas, s["noise"], s["cfg"])
    return Sampled([node, 0], texts=[node_id])


@way("Compare AMED", compared, empty=True, images=False)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    node_id = scene.add(
        "AMEDCompare",
        samplers=s["samplers"],
        nfe=str(s["nfe"]),
        guidance=s["cfg"],
        seed=s["noise"],
        seeds=s["seeds"],
        reference=s["reference"],
        **scene.around(),
    )
    return Sampled(texts=[scene.add("PreviewAny", source=[node_id, 1])], finished=[node_id, 1])


@way("AMED Trajectory Plot", shown, empty=True, images=False)
def _(scene: Scene, s: dict[str, Any]) -> Sampled:
    linked = {"predictor": scene.load(s["file"])} if s["file"] else {}
    node_id = scene.add(
        "AMEDTrajectoryPlot",
        seed=s["noise"],
        nfe=s["nfe"],
        guidance=s["cfg"],
        reference=s["reference"],
        **linked,
        **scene.around(),
    )
    return Sampled(texts=[scene.add("PreviewAny", source=[node_id, 1])], finished=[node_id, 1])
