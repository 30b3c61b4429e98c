"""The ComfyUI nodes, one file a room.

What touches ComfyUI's insides stands in six files, each module of the host in exactly one of them (a test
holds this): folders (where predictors are), model (what a MODEL is), weights (its network's), running (the
run itself, and the page), register (the host's lists of samplers and schedules), counting (wrappers around a
MODEL). On these stand choosing (what amed.choose is asked), evaluate and sampling (what happens during a
run), and fitting."""
