"""The ComfyUI nodes, one file a room.

What touches ComfyUI's insides stands in five files, each module of the host in exactly one of them (a test
holds this): folders (where predictors are), model (what a MODEL is), sampling (what happens during a run),
running (the run itself, and the page), register (the host's lists of samplers and schedules)."""
