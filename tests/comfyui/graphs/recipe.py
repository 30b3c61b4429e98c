"""A random graph's recipe as plain data: drawn from a seed, written and read as JSON."""

import json
import random
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .ingredients import INGREDIENTS
from .ways import WAYS

BASES = {"sd15": 6, "demo": 3, "wan": 3, "flux": 2, "file": 1}
"""Where the MODEL comes from, and how often: Stable Diffusion 1.5's U-Net two levels deep, the demo model,
Wan 2.1's transformer of video, a block of Flux, a checkpoint file."""
SEED_MAX = 2**64 - 1
SIZES = {
    "sd15": ((96, 64), (72, 104), (40, 24), (64, 64)),
    "file": ((64, 64), (72, 40)),
    "flux": ((64, 48), (48, 64), (72, 40)),
    "wan": ((64, 48), (48, 64)),
    "demo": ((32, 32), (16, 16), (40, 24)),
}
SINGLE = tuple(name for name, ingredient in INGREDIENTS.items() if ingredient.single)
USUAL: dict[str, Any] = {"batch": 1, "dtype": "fp32", "cfg": 2.0, "noise": 3, "workflow": False}
"""What a setting is shrunk to."""


@dataclass(frozen=True)
class Recipe:
    seed: int
    """The seed that it was drawn from."""
    base: str
    """One of BASES."""
    way: str
    """One of WAYS, by which it is sampled."""
    settings: dict[str, Any]
    """Settings of the model, the LATENT and the way."""
    ingredients: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Names in INGREDIENTS and their inputs, in the order in which they are added to the graph."""

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    def has(self, *names: str) -> bool:
        return any(name in names for name, _ in self.ingredients)

    @property
    def joint(self) -> bool:
        """Whether an ingredient depends on the whole batch, so that an image changes when it is alone."""
        return any(INGREDIENTS[name].joint for name, _ in self.ingredients)

    def set(self, **settings: Any) -> "Recipe":
        return replace(self, settings=self.settings | settings)

    def without(self, index: int) -> "Recipe":
        rest = [ingredient for i, ingredient in enumerate(self.ingredients) if i != index]
        return replace(self, ingredients=rest)

    def text(self) -> str:
        """Return a readable line."""
        on = ", ".join(name for name, _ in self.ingredients) or "nothing"
        return f"seed {self.seed}: {self.way} on {self.base} with {on}; {self.settings}"


def to_json(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe))


def from_json(text: str) -> Recipe:
    data = json.loads(text)
    return Recipe(**data | {"ingredients": [(name, inputs) for name, inputs in data["ingredients"]]})


def draw(seed: int) -> Recipe:
    """Return the recipe of a seed."""
    rng = random.Random(f"graphs {seed}")
    way = pick(rng, {name: way_type.often for name, way_type in WAYS.items()})
    base = pick(rng, {name: often for name, often in BASES.items() if name in WAYS[way].bases})
    settings = common(rng, base) | WAYS[way].draw(rng, base)
    if WAYS[way].slow:  # other dtypes are many times slower on a CPU
        settings["dtype"] = "fp32"
    recipe = Recipe(seed, base, way, settings)
    for group, most in (("model", 4), ("prompt", 2), ("latent", 2)):
        for _ in range(min(rng.randrange(most + 1), rng.randrange(most + 1) + 1)):
            recipe = with_one_more(rng, recipe, group)
    return recipe


def pick(rng: random.Random, often: dict[str, int]) -> str:
    return rng.choices(list(often), list(often.values()))[0]


def common(rng: random.Random, base: str) -> dict[str, Any]:
    """Return the settings that every recipe has."""
    width, height = rng.choice(SIZES[base])
    dtypes = ("fp32", "fp32", "fp16", "bf16") if base in ("sd15", "wan") else ("fp32",)
    return {
        "width": width,
        "height": height,
        "length": rng.choice((9, 17)),
        "batch": rng.choice((1, 1, 2, 3)),
        "dtype": rng.choice(dtypes),
        "weights": 0,
        "cfg": rng.choice((1.0, 2.0, 2.0, 5.0)),
        "noise": rng.choice((3, rng.randrange(2**31), 2**32 + rng.randrange(2**32), SEED_MAX)),
        "workflow": rng.random() < 0.4,
    }


def with_one_more(rng: random.Random, recipe: Recipe, group: str) -> Recipe:
    """Return the recipe with another ingredient, of a kind that it does not have yet."""
    used_kinds = {INGREDIENTS[name].kind for name, _ in recipe.ingredients}
    fit = {
        name: candidate.often
        for name, candidate in INGREDIENTS.items()
        if candidate.group == group
        and recipe.base in candidate.bases
        and candidate.kind not in used_kinds
        and not (candidate.single and recipe["batch"] > 1)
        and not (candidate.kind == "batch" and recipe.has(*SINGLE))
        and not (group == "latent" and WAYS[recipe.way].empty and candidate.kind == "image")
    }
    if not fit:
        return recipe
    name = pick(rng, fit)
    return replace(recipe, ingredients=[*recipe.ingredients, (name, INGREDIENTS[name].draw(rng, recipe))])
