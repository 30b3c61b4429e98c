"""The ComfyUI nodes, each in a file named after it.

`host/` is the only folder that uses ComfyUI's internals, each module and each hook of them in one file;
`choice/` decides which predictor a node runs and when the node runs again. Beside the nodes: `schema` (inputs
that several nodes share), `calibration` and `comparison` (what the nodes of that name run)."""
