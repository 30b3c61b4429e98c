"""The embedded default: a small class-conditional diffusion model of emoji, trained for real, with its
recipe."""
