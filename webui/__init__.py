"""Stable Diffusion WebUI (AUTOMATIC1111, Forge, reForge): loaded by path from scripts/amed_webui.py, as
`amed_webui`; nothing here is imported by ComfyUI."""
