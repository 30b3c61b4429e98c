"""Pictures that both graphical hosts show (drawn with Pillow, which the engine does not need).

ComfyUI's nodes import this package as `..hosts`; the WebUI loads the folder into its own package
(scripts/amed_webui.py). Therefore nothing here imports `amed`."""
