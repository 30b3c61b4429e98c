"""AMED for Stable Diffusion WebUI (AUTOMATIC1111, Forge, reForge).

scripts/amed_webui.py loads this folder as the package `amed_webui`. ComfyUI imports nothing from it."""
