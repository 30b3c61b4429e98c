"""The only files that use ComfyUI's internals; tests/comfyui/test_rooms.py checks this.

Imports of the internals: `folders`, `model`, `weights`, `running`, `register`, `counting`. Names of hooks:
`hooks`. On these stand `request` (a Request for a MODEL), `evaluate`, `denoiser` and `sampling` (what happens
during a run), `outside` (predictors around ComfyUI's own samplers), `fitting`, `watching` and `training`
(fits). Helpers: `graph` (the running graph), `nested` (latents of several parts),
`content` (hashes), `log`."""
