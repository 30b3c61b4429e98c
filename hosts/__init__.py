"""What the hosts' adapters share and the engine has no need of: pictures (Pillow). ComfyUI's nodes import it
as `..hosts`, the WebUI loads this folder into its own package (scripts/amed_webui.py); so nothing here
imports `amed`."""
