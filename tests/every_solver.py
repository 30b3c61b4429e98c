"""Every recipe at every order, with every combination of its switches."""

from amed import Solver
from amed.recipes import RECIPES

EVERY = [
    Solver(name, order, *more)
    for name, recipe in RECIPES.items()
    for order in range(1, recipe.orders + 1)
    for more in {
        "dpmpp": [(x0, low) for x0 in (True, False) for low in (True, False)],
        "unipc": [(False, low, v) for low in (True, False) for v in ("bh1", "bh2")],
    }.get(name, [()])
]
