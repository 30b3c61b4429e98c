"""A graph under construction: its MODEL, prompts and LATENT so far, for a recipe's base."""

from typing import Any

from comfyui.conftest import Graph

WATCH = "graph"  # the name under which a graph's MODEL is counted
FAMILIES = {"sd15": "sd15", "file": "sd15", "wan": "wan21_t2v", "demo": "emoji32", "flux": "flux"}
CATEGORIES = ("Smileys & Emotion", "Animals & Nature")
CHECKPOINT = "tiny_sd15.safetensors"
WIDTHS = {
    "file": (768, 1280),
    "flux": (64, 64),
}  # widths of a prompt's tokens and pooled output; 64 and 1280 for other bases


class Scene(Graph):
    def __init__(self, base: str, settings: dict[str, Any]):
        self.nodes: dict[str, dict[str, Any]] = {}
        self.base, self.settings = base, settings
        self.width, self.height = settings["width"], settings["height"]
        self.family = FAMILIES[base]
        self.model = self.checkpoint(settings["weights"])
        self.positive, self.negative = self.prompt(1), self.prompt(2)
        self.latent = self.empty()
        self.patch("GraphWatch", name=WATCH)

    def patch(self, node: str, **inputs: Any) -> "Scene":
        self.model = [self.add(node, model=self.model, **inputs), 0]
        return self

    def checkpoint(self, number: int) -> list:
        """Return a MODEL of this base; another number is another checkpoint, if the base has several."""
        if self.base == "demo":
            return [self.demo_model(), 0]
        if self.base == "file":
            return [self.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT), 0]
        return [self.add("GraphModel", which=self.base, dtype=self.settings["dtype"], weights=number), 0]

    def demo_model(self, category: int = 0) -> str:
        return self.add(
            "AMEDDemoModel",
            category=CATEGORIES[category],
            width=self.width,
            height=self.height,
            batch_size=self.settings["batch"],
        )

    def prompt(self, number: int, repeats: int = 1) -> list:
        """Return a prompt. 1: the positive one, 2: the negative one, 3: another. repeats: of its tokens."""
        if self.base == "demo":
            return [self.demo_model(number == 3), 2 if number == 2 else 1]
        width, pooled = WIDTHS.get(self.base, (64, 1280))
        return [self.add("TestPrompt", seed=number, repeats=repeats, width=width, pooled=pooled), 0]

    def other(self) -> list:
        return self.prompt(3)

    def empty(self) -> list:
        """Return an empty LATENT of the recipe's size."""
        if self.base == "demo":
            return [self.demo_model(), 3]
        size = {"width": self.width, "height": self.height, "batch_size": self.settings["batch"]}
        if self.base == "wan":
            return [self.add("EmptyHunyuanLatentVideo", length=self.settings["length"], **size), 0]
        return [self.add("EmptyLatentImage", **size), 0]

    def half_mask(self, is_left: bool, factor: int = 1) -> list:
        """Return a MASK of the left or right half, of `factor` times the image's size."""
        width, height = self.width * factor, self.height * factor
        full_mask = [self.add("SolidMask", value=0.0, width=width, height=height), 0]
        half = [self.add("SolidMask", value=1.0, width=width // 2, height=height), 0]
        return [
            self.add(
                "MaskComposite",
                destination=full_mask,
                source=half,
                x=0 if is_left else width // 2,
                y=0,
                operation="add",
            ),
            0,
        ]

    def euler(self, steps: int) -> list:
        """Return a LATENT sampled by the host's own sampler."""
        return self.ksampler("euler", "simple", steps, cfg=1.0, seed=5)

    def load(self, file: str) -> list:
        return [self.add("AMEDLoadPredictor", name=file), 0]

    def custom_run(
        self,
        sampler: list,
        sigmas: list,
        noise: int,
        cfg: float,
        add_noise: bool = True,
        latent: list | None = None,
    ) -> str:
        """Add a SamplerCustom; return its id."""
        around = self.around() | ({} if latent is None else {"latent_image": latent})
        return self.add(
            "SamplerCustom",
            add_noise=add_noise,
            noise_seed=noise,
            cfg=cfg,
            sampler=sampler,
            sigmas=sigmas,
            **around,
        )
