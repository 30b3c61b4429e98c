"""Which predictor a node runs (`lookup`, `workflow`), and when the node runs again (`fingerprint`)."""
