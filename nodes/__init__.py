"""The ComfyUI nodes. Only host.py touches ComfyUI's insides."""
