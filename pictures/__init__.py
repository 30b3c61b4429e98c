"""Pictures that the ComfyUI nodes and the WebUI extension show, drawn with Pillow.

ComfyUI imports this package relative to its nodes (`..pictures`), the WebUI as `amed_pictures` (see
scripts/amed_webui.py). Modules here import only each other, never `amed`, whose name depends on the host."""
