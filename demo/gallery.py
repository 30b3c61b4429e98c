"""The example workflows and the subgraph, as nodes by name; `python -m demo.examples` writes them.

A workflow's name is the title of its card in the template browser."""

from collections.abc import Callable

from .drawing import Column, Example, Model, Node, subgraph

HUB = "https://huggingface.co"
SD15 = Model("v1-5-pruned-emaonly-fp16.safetensors",
             f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
             "checkpoints")  # fmt: skip
SDXL = Model("sd_xl_base_1.0.safetensors",
             f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
             "checkpoints")  # fmt: skip
FLUX = Model("flux1-dev-fp8.safetensors",
             f"{HUB}/Comfy-Org/flux1-dev/resolve/main/flux1-dev-fp8.safetensors", "checkpoints")  # fmt: skip
CANNY = Model("control_v11p_sd15_canny_fp16.safetensors",
              f"{HUB}/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/"
              "control_v11p_sd15_canny_fp16.safetensors", "controlnet")  # fmt: skip
CORGI = "A Corgi on the grass surrounded by a cluster of colorful balloons"  # the paper's
AVATAR = "toon head, long hair"
LIGHTHOUSE = "a lighthouse on a cliff at dawn, oil painting"
DEMO_FILE = "avatars32-multistep-nfe6-cfg4.safetensors"
PUBLISHED = {"nfe": 10, "guidance": 7.5}
DEMO = {"nfe": 6, "guidance": 4.0}
DEMO_OUT = {"model": "demo.MODEL", "positive": "prompt.CONDITIONING", "negative": "demo.negative"}
DEMO_ALL = DEMO_OUT | {"latent_image": "demo.latent"}
SMALL = 240  # width of a node with few widgets
YOURS = "For your own model: replace the demo nodes with its loader, prompts and VAE Decode."


def note(*paragraphs: str) -> str:
    """Join paragraphs into the Markdown text of a workflow's note."""
    return "\n\n".join(paragraphs)


def demo_model(batch: int = 9) -> list[Node]:
    """Return the nodes of the demo model, which comes with the pack, and of its prompt."""
    return [
        Node("demo", "AMEDDemoModel", values={"batch_size": batch, "model": "avatars32"}),
        Node("prompt", "AMEDDemoPrompt", values={"text": AVATAR}, title="Prompt"),
    ]


def demo_shown(samples: str, title: str = "") -> list[Column]:
    """Return the nodes that decode a LATENT of the demo model and show it enlarged."""
    decoded = Node("decode", "AMEDDemoDecode", {"samples": samples}, {"enlarge": 8}, width=SMALL)
    images = {"images": "decode.IMAGE"}
    return [
        Column([decoded]),
        Column([Node("picture", "PreviewImage", images, title=title, size=(560, 600))]),
    ]


def loader(model: Model) -> Node:
    """Return a checkpoint loader for a model file."""
    return Node("checkpoint", "CheckpointLoaderSimple", values={"ckpt_name": model.name}, models=(model,),
                width=380)  # fmt: skip


def loaded_image(title: str = "Your picture", **place: int) -> Node:
    """Return a node that loads the user's image."""
    return Node("image", "LoadImage", values={"image": "example.png"}, title=title, width=380, **place)


def prompts(positive: str, negative: str) -> list[Node]:
    """Return the two nodes of the prompt and the negative prompt."""
    clip = {"clip": "checkpoint.CLIP"}
    return [
        Node("positive", "CLIPTextEncode", clip, {"text": positive}, "Prompt", width=380),
        Node("negative", "CLIPTextEncode", clip, {"text": negative}, "Negative prompt", width=380),
    ]


def size(side: int, kind: str = "EmptyLatentImage") -> Node:
    """Return a node that makes an empty latent of `side` x `side` pixels; `kind` is the node's class."""
    return Node("latent", kind, values={"width": side, "height": side}, title="Size", width=380)


def amed(latent: str, positive: str = "positive.CONDITIONING", negative: str = "negative.CONDITIONING",
         model: str = "checkpoint.MODEL", control: str = "randomize", **values: object) -> Node:  # fmt: skip
    """Return an AMED KSampler node; `values` are its widgets' values, the other arguments its links.

    A link is written "node.output"; `control` is what happens to the seed after a run."""
    links = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return Node("amed", "AMEDKSampler", links, {"seed": 1} | values, control=control)


def demo_amed(model: str = "demo.MODEL") -> Node:
    """Return an AMED KSampler for the demo model."""
    return amed("demo.latent", "prompt.CONDITIONING", "demo.negative", model, "fixed", **DEMO)


def saved() -> list[Column]:
    """Return the nodes that decode the sampler's LATENT and save the image."""
    decoded = Node("decode", "VAEDecode", {"samples": "amed.LATENT", "vae": "checkpoint.VAE"}, width=SMALL)
    file = Node("save", "SaveImage", {"images": "decode.IMAGE"}, {"filename_prefix": "AMED"}, size=(560, 640))
    return [Column([decoded]), Column([file])]


def start_here() -> Example:
    note_text = note(
        "**Press Run.** The small model that comes with the pack draws nine avatars of six evaluations each.",
        "Change the prompt: its styles are pixel art, open peeps, thumbs, lorelei, big smile, adventurer, "
        "toon head and miniavs.",
        "Change **nfe** and run again: AMED finds the best sampling for that number by itself. The report on "
        "the node says what ran.",
        YOURS,
    )
    return Example(note_text, [Column(demo_model()), Column([demo_amed()]), *demo_shown("amed.LATENT")])


def compare() -> Example:
    note_text = note(
        "**Press Run.** This compares AMED with other samplers at the same seeds and the same number of "
        "evaluations. The first row is a many-step run.",
        "Write one sampler per line, e.g. **dpmpp_2m / karras**, and several numbers of evaluations as "
        "**4, 6, 8**.",
        "For your own model: replace the demo node with its loader, prompts, an empty latent of your size "
        "and its VAE, and set **guidance** to your cfg.",
    )
    samplers = "amed\nplain\ndpmpp_2m / simple\nuni_pc / simple"
    values = {"samplers": samplers, "nfe": "6", "guidance": 4.0, "seed": 1, "seeds": 4}
    grid = Node("grid", "AMEDCompare", DEMO_ALL, values, size=(640, 860))
    table = Node("table", "PreviewAny", {"source": "grid.table"}, title="The table", size=(940, 260))
    images = {"images": "grid.grid"}
    shown = Node("picture", "PreviewImage", images, title="Side by side", size=(940, 1100))
    return Example(note_text, [Column(demo_model(1)), Column([grid]), Column([table, shown], top=-324)])


def calibrate() -> Example:
    note_text = note(
        "**Press Run.** This takes a few minutes. A predictor for 6 evaluations is fitted to the model, "
        "compared with the plain solvers and saved; **auto** finds it from then on.",
        "For your own model: replace the demo node with its loader, prompts and an empty latent of your "
        "size, set **guidance** to your cfg and **budget** to normal.",
    )
    values = {"nfe": "6", "guidance": 4.0, "name": "demo"}
    fit = Node("fit", "AMEDCalibrate", DEMO_ALL, values, size=(400, 720))
    fitted, images = {"model": "demo.MODEL", "predictor": "fit.predictor"}, {"images": "fit.report"}
    apply = Node("apply", "AMEDApplyPredictor", fitted, DEMO)
    report = Node("report", "PreviewImage", images, title="What was gained", size=(680, 720), below=246)
    return Example(
        note_text,
        [
            Column(demo_model()),
            Column([fit], top=240),
            Column([apply, report], top=-400),
            Column([demo_amed("apply.MODEL")]),
            *demo_shown("amed.LATENT", "6 evaluations, calibrated"),
        ],
        {"Once": ["fit", "report"]},
        lift=250,
    )


def text_to_image(note_text: str, model: Model, latent: Node, prompt_nodes: list[Node], sampler: Node,
                  *between: Node) -> Example:  # fmt: skip
    """Return a text-to-image workflow that saves the image; nodes `between` stand left of the sampler."""
    columns = [Column([loader(model)]), Column([*prompt_nodes, latent], top=200)]
    columns += [Column(list(between), top=200)] if between else []
    return Example(
        note_text, [*columns, Column([sampler], top=140), *saved()],
        {"Prompts and size": [*(node.name for node in prompt_nodes), "latent"]},
    )  # fmt: skip


def sd15() -> Example:
    note_text = note(
        f"Needs Stable Diffusion 1.5 (`{SD15.name}`) or any checkpoint based on it. **Press Run.**",
        "10 evaluations at cfg 7.5 with the values that the paper's authors published: no calibration is "
        "needed.",
    )
    text = prompts(CORGI, "")
    return text_to_image(note_text, SD15, size(512), text, amed("latent.LATENT", **PUBLISHED))


def sdxl() -> Example:
    note_text = note(
        f"Needs SDXL (`{SDXL.name}`), or choose any other checkpoint. **Press Run.**",
        "The first run calibrates AMED for this checkpoint: about 2,700 evaluations, once. The result is "
        "saved in models/amed_predictors; from then on sampling starts at once, for any prompt and seed.",
        "To skip the calibration, set **if_missing** to plain.",
    )
    text = prompts(LIGHTHOUSE, "blurry, text, watermark")
    values = {"nfe": 8, "guidance": 5.0, "if_missing": "calibrate now (quick)"}
    return text_to_image(note_text, SDXL, size(1024), text, amed("latent.LATENT", **values))


def flux() -> Example:
    note_text = note(
        f"Needs Flux.1 dev (`{FLUX.name}`), or choose a checkpoint of another flow model. **Press Run.**",
        "Set Flux's guidance in the node FluxGuidance. The sampler's **guidance** stays at 1: one network "
        "pass per evaluation, and no negative prompt.",
        "By default this uses the plain solver for flow models. For better images at few evaluations, set "
        "**if_missing** to *calibrate now (quick)*: about 2,700 evaluations, once.",
    )
    positive, negative = prompts(LIGHTHOUSE, "")
    negative.title = "Negative prompt (not used)"
    strength = Node("flux", "FluxGuidance", {"conditioning": "positive.CONDITIONING"}, {"guidance": 3.5},
                    width=SMALL)  # fmt: skip
    sampler = amed("latent.LATENT", "flux.CONDITIONING", nfe=8, guidance=1.0)
    latent = size(1024, "EmptySD3LatentImage")
    return text_to_image(note_text, FLUX, latent, [positive, negative], sampler, strength)


def encoded(name: str) -> Node:
    """Return a node that encodes the user's image into a LATENT."""
    return Node(name, "VAEEncode", {"pixels": "image.IMAGE", "vae": "checkpoint.VAE"}, width=380)


def from_picture(note_text: str, picture: Node, between: list[Column], sampler: Node) -> Example:
    """Return a workflow for Stable Diffusion 1.5 that starts from an image of the user."""
    columns = [Column([loader(SD15), picture]), *between, Column([sampler], top=140), *saved()]
    return Example(note_text, columns)


def img2img() -> Example:
    note_text = note(
        f"Needs Stable Diffusion 1.5 (`{SD15.name}`). Choose an image of yours, then **press Run**.",
        "**denoise** sets how much is repainted: 0.6 keeps the composition.",
    )
    texts = [*prompts("a watercolour painting", ""), encoded("latent")]
    sampler = amed("latent.LATENT", denoise=0.6, **PUBLISHED)
    return from_picture(note_text, loaded_image(below=530), [Column(texts, top=200)], sampler)


def inpaint() -> Example:
    note_text = note(
        f"Needs Stable Diffusion 1.5 (`{SD15.name}`). Choose an image, right-click it, choose *Open in "
        "MaskEditor*, and paint over the area to change. Then **press Run**.",
        "Only the masked area is sampled. **denoise** 0.8 keeps a little of what was there.",
    )
    masked = Node("latent", "SetLatentNoiseMask", {"samples": "encoded.LATENT", "mask": "image.MASK"})
    texts = [*prompts("a bouquet of flowers", ""), encoded("encoded")]
    sampler = amed("latent.LATENT", denoise=0.8, **PUBLISHED)
    picture = loaded_image("Your picture and its mask", below=530)
    return from_picture(note_text, picture, [Column(texts, top=200), Column([masked], top=730)], sampler)


def controlnet() -> Example:
    note_text = note(
        f"Needs Stable Diffusion 1.5 (`{SD15.name}`) and its ControlNet for edges (`{CANNY.name}`). Choose "
        "an image, then **press Run**.",
        "The new image follows the edges of yours; **strength** sets how closely.",
    )
    edges = Node("edges", "Canny", {"image": "image.IMAGE"}, width=380)
    net = Node("net", "ControlNetLoader", values={"control_net_name": CANNY.name}, models=(CANNY,), width=380)
    control = Node(
        "control", "ControlNetApplyAdvanced",
        {"positive": "positive.CONDITIONING", "negative": "negative.CONDITIONING",
         "control_net": "net.CONTROL_NET", "image": "edges.IMAGE"},
        {"strength": 0.8},
    )  # fmt: skip
    texts = Column([*prompts("a marble statue in a garden", ""), net, edges], top=200)
    sampler = amed("latent.LATENT", "control.positive", "control.negative", **PUBLISHED)
    between = [texts, Column([control, size(512)], top=400)]
    return from_picture(note_text, loaded_image(below=30), between, sampler)


def ordinary_ksampler() -> Example:
    note_text = note(
        "**Press Run.** This is AMED in the ordinary KSampler. *Apply AMED Predictor* puts the predictor on "
        "the model and shows which sampler, steps and cfg to choose; the scheduler is **amed**.",
        "Here 6 steps are 6 evaluations.",
    )
    load = Node("load", "AMEDLoadPredictor", values={"name": DEMO_FILE}, below=20)
    apply = Node("apply", "AMEDApplyPredictor", {"model": "demo.MODEL", "predictor": "load.predictor"}, DEMO)
    values = {"seed": 1, "steps": 6, "cfg": 4.0, "sampler_name": "amed_multistep", "scheduler": "amed"}
    ordinary = Node("ordinary", "KSampler", DEMO_ALL | {"model": "apply.MODEL"}, values)
    columns = [Column([*demo_model(), load]), Column([apply], top=240), Column([ordinary])]
    return Example(note_text, [*columns, *demo_shown("ordinary.LATENT")])


def custom_sampler() -> Example:
    note_text = note(
        "**Press Run.** This is AMED in SamplerCustomAdvanced. *AMED Sampler* runs the predictor, *AMED "
        "Scheduler* gives the noise levels that it was fitted on.",
        YOURS,
    )
    predictor = {"predictor": "load.predictor"}
    load = Node("load", "AMEDLoadPredictor", values={"name": DEMO_FILE}, below=20)
    parts = [
        Node("noise", "RandomNoise", values={"noise_seed": 1}),
        Node("guider", "CFGGuider", DEMO_OUT, {"cfg": 4.0}),
        Node("sigmas", "AMEDScheduler", {"model": "demo.MODEL"} | predictor, {"nfe": 6}, below=14),
        Node("sampler", "AMEDSampler", predictor),
    ]
    run = Node("run", "SamplerCustomAdvanced",
               {"noise": "noise.NOISE", "guider": "guider.GUIDER", "sampler": "sampler.SAMPLER",
                "sigmas": "sigmas.SIGMAS", "latent_image": "demo.latent"}, width=280)  # fmt: skip
    columns = [Column([*demo_model(), load]), Column(parts, top=-206), Column([run], top=-20)]
    return Example(note_text, [*columns, *demo_shown("run.output")])


def plain_solver() -> Example:
    note_text = note(
        "**Press Run.** These are the solvers that AMED starts from and has to beat, without a predictor and "
        "on any schedule.",
        YOURS,
    )
    values = {"solver": "iPNDM-2", "nfe": 6, "schedule": "polynomial", "rho": 1.0, "afs": False}
    solver = Node("plain", "AMEDPlainSolver", {"model": "demo.MODEL"}, values)
    run = Node("run", "SamplerCustom", DEMO_ALL | {"sampler": "plain.SAMPLER", "sigmas": "plain.SIGMAS"},
               {"noise_seed": 1, "cfg": 4.0})  # fmt: skip
    columns = [Column(demo_model()), Column([solver], top=190), Column([run])]
    return Example(note_text, [*columns, *demo_shown("run.output")])


def count_any_sampler() -> Example:
    note_text = note(
        "**Press Run.** *AMED Count Evaluations* and *AMED Evaluations Used* stand before and after the "
        "ordinary KSampler. Change the sampler and see how many evaluations it really takes."
    )
    values = {"seed": 1, "steps": 6, "cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "simple"}
    count = Node("count", "AMEDCountEvaluations", {"model": "demo.MODEL"}, width=280)
    ordinary = Node("ordinary", "KSampler", DEMO_ALL | {"model": "count.MODEL"}, values)
    used = Node("used", "AMEDEvaluationsUsed", {"model": "count.MODEL", "samples": "ordinary.LATENT"})
    columns = [Column(demo_model()), Column([count], top=-110), Column([ordinary], top=40),
               Column([used], top=-110)]  # fmt: skip
    return Example(note_text, [*columns, *demo_shown("used.LATENT")])


def any_sampler() -> Example:
    note_text = note(
        "**Press Run.** This improves one of ComfyUI's samplers at few steps for this model: its noise "
        "levels are fitted, and two numbers for each of its evaluations. Choose another sampler in "
        "*KSamplerSelect*, or link the SAMPLER of another pack.",
        "*Apply AMED Predictor* shows how to set the KSampler: the same sampler, the scheduler **amed**, and "
        "the number of steps.",
        YOURS,
    )
    chosen = Node("chosen", "KSamplerSelect", values={"sampler_name": "uni_pc"}, below=20)
    values = {"nfe": "6", "guidance": 4.0, "name": "demo-uni_pc"}
    fit = Node("fit", "AMEDCalibrate", DEMO_ALL | {"wrapped": "chosen.SAMPLER"}, values, size=(400, 720))
    fitted, images = {"model": "demo.MODEL", "predictor": "fit.predictor"}, {"images": "fit.report"}
    apply = Node("apply", "AMEDApplyPredictor", fitted, DEMO)
    report = Node("report", "PreviewImage", images, title="What was gained", size=(680, 720), below=246)
    steps = {"seed": 1, "steps": 6, "cfg": 4.0, "sampler_name": "uni_pc", "scheduler": "amed"}
    ordinary = Node("ordinary", "KSampler", DEMO_ALL | {"model": "apply.MODEL"}, steps)
    return Example(
        note_text,
        [
            Column([*demo_model(), chosen]),
            Column([fit], top=240),
            Column([apply, report], top=-400),
            Column([ordinary]),
            *demo_shown("ordinary.LATENT", "uni_pc, 6 steps"),
        ],
        {"Once": ["fit", "report"]},
        lift=250,
    )


START, CALIBRATE, ANY = "01 Start here", "03 Calibrate a model", "14 Make any sampler better"
EXAMPLES: dict[str, Callable[[], Example]] = {
    START: start_here,
    "02 Compare samplers": compare,
    CALIBRATE: calibrate,
    "04 Stable Diffusion 1.5": sd15,
    "05 SDXL, calibrated once": sdxl,
    "06 Flux": flux,
    "07 Image to image": img2img,
    "08 Inpaint": inpaint,
    "09 ControlNet": controlnet,
    "10 In the ordinary KSampler": ordinary_ksampler,
    "11 In SamplerCustomAdvanced": custom_sampler,
    "12 Plain solver": plain_solver,
    "13 Count any sampler": count_any_sampler,
    ANY: any_sampler,
}
# examples of the demo model, in the order to run them; those that save a predictor are last
DEMOS = [name for name in EXAMPLES if name[:2] in ("01", "02", "10", "11", "12", "13")] + [CALIBRATE, ANY]


def text_to_image_subgraph(name: str, info: dict) -> dict:
    """Return the blueprint of a subgraph that takes MODEL, CLIP and VAE and samples an image of a prompt."""
    text, sampler, decoded = prompts(CORGI, ""), amed("latent.LATENT"), saved()[0].nodes[0]
    for node in (*text, sampler, decoded):
        node.links = {k: v for k, v in node.links.items() if not v.startswith("checkpoint.")}
    return subgraph(
        name, "Turns a prompt into an image in a few evaluations.",
        [Column([*text, size(512)], top=200), Column([sampler], top=140), Column([decoded])],
        inside=[("amed", "model"), ("positive", "clip"), ("negative", "clip"), ("decode", "vae")],
        outside=["decode.IMAGE", "amed.report"],
        shown=[("positive", "text"), ("negative", "text"), ("latent", "width"), ("latent", "height"),
               ("amed", "seed"), ("amed", "nfe"), ("amed", "guidance"), ("amed", "if_missing")],
        object_info=info,
    )  # fmt: skip


BLUEPRINTS: dict[str, Callable[[str, dict], dict]] = {"AMED text to image": text_to_image_subgraph}
