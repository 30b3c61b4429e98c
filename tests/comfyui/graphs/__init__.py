"""Random graphs around every node of the pack, run in a real ComfyUI.

`recipe.draw(seed)` chooses a model, ingredients of `ingredients.py`, one of the ways to sample of `ways.py`
and settings; `build.build(recipe)` makes the graph; `invariants.py` says what must hold of every run;
`runner.Runner` runs them, and shrinks what fails to the fewest ingredients.
"""
