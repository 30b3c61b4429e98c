"""Random graphs around every node of the pack, run in a real ComfyUI.

`recipe.draw(seed)` chooses a model, ingredients of `ingredients.py`, one of the ways to sample of `ways.py`
and settings; `build.build(recipe)` makes the graph; `invariants.py` says what must hold for every run;
`runner.Runner` runs the graphs, and shrinks a failure to the fewest ingredients."""
