"""Write the files that the example workflows name, with random weights and few layers, into the folders of
models.

    python tests/comfyui/tiny_files.py COMFYUI_FOLDER MODELS_FOLDER

Every network is of the host's own class: Stable Diffusion 1.5's U-Net and ControlNet, SDXL's U-Net
(tiny_sd.py), a block of Flux, CLIP-L in its full size, and tiny autoencoders. The text encoders of SDXL and
Flux are left out, because the host makes them gigabytes large whatever the file contains."""

import sys
from pathlib import Path

from tiny_sd import PREFIX, SETTINGS, imports, network, weights


def autoencoder(channels: int, prefix: str) -> dict:
    from comfy.taesd.taesd import TAESD

    tensors = weights(TAESD(latent_channels=channels), prefix)
    for name in ("vae_scale", "vae_shift"):  # named neither weight nor bias
        del tensors[prefix + name]
    return tensors


def clip_l(prefix: str) -> dict:
    from comfy.sd1_clip import SD1ClipModel

    tensors = weights(SD1ClipModel().clip_l, prefix)
    return {key: value for key, value in tensors.items() if "logit_scale" not in key}


def controlnet() -> dict:
    import comfy.ops
    from comfy.cldm.cldm import ControlNet

    settings = {k: v for k, v in SETTINGS["tiny_sd15"].items() if k != "transformer_depth_output"}
    return weights(ControlNet(image_size=32, in_channels=4, model_channels=320, hint_channels=3, legacy=False,
                              use_spatial_transformer=True, operations=comfy.ops.disable_weight_init,
                              **settings), "control_model.")  # fmt: skip


def flux() -> dict:
    """Return a small Flux; its width is fixed, because the host reads only the number of blocks from a
    file."""
    import comfy.ops
    import torch
    from comfy.ldm.flux.model import Flux, FluxParams

    later = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}
    network = Flux(image_model="flux", in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096,
                   hidden_size=3072, mlp_ratio=4.0, num_heads=24, depth=1, depth_single_blocks=0,
                   axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True,
                   dtype=torch.float16, operations=comfy.ops.disable_weight_init, **later)  # fmt: skip
    return weights(network, PREFIX)


def main(comfyui: str, folder: str) -> None:
    imports(comfyui)
    from safetensors.torch import save_file

    sd15 = weights(network("tiny_sd15"), PREFIX) | clip_l("cond_stage_model.")
    files = {
        "checkpoints/v1-5-pruned-emaonly-fp16": lambda: sd15 | autoencoder(4, "first_stage_model."),
        "checkpoints/sd_xl_base_1.0": lambda: (
            weights(network("tiny_sdxl"), PREFIX) | autoencoder(4, "first_stage_model.")
        ),
        "checkpoints/flux1-dev-fp8": lambda: flux() | autoencoder(16, "vae."),
        "controlnet/control_v11p_sd15_canny_fp16": controlnet,
    }
    for name, make in files.items():
        path = Path(folder) / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(make(), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
