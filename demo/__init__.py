"""The demo model: a small class-conditional diffusion model of emoji, with the code that made it.

Also here: a real ComfyUI for demos and tests, and the example workflows."""
