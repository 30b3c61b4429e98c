"""Write Stable Diffusion 1.5's architecture with random weights and a U-Net of two levels, as a checkpoint.

For A1111: with its .yaml, a small VAE, and its own text encoder and tokenizer. For Forge or reForge, whose
VAE and text encoder have fixed sizes.

    python tests/webui/tiny_checkpoints.py WEBUI_FOLDER FOLDER SEED NAME

A separate process, because it imports the WebUI's network classes."""

import json
import sys
from pathlib import Path

UNET = {
    "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": 1, "channel_mult": [1, 1],
    "context_dim": 768, "num_heads": 8, "use_spatial_transformer": True, "image_size": 32, "legacy": False,
}  # fmt: skip
WORDS = 512  # tokens of the tokenizer: 256 bytes, each also as a word's end


def weights_of(module, prefix: str) -> dict:
    """Return random weights of unit gain, in half precision."""
    import torch

    named = {}
    for key, weight in module.state_dict().items():
        if not weight.is_floating_point():
            continue
        if weight.ndim < 2:
            # the hosts divide by the mean of a prompt's embedding, which would be 0 with a bias of 0
            value = torch.full(weight.shape, 1.0 if key.endswith("weight") else 0.1)
        else:
            value = torch.randn(weight.shape) * (weight[0].numel() ** -0.5)
        named[prefix + key] = value.half().contiguous()
    return named


def weights_by(unet, vae, text) -> dict:
    """Return a checkpoint's weights under the names that all of these hosts read."""
    return {
        **weights_of(unet, "model.diffusion_model."),
        **weights_of(vae, "first_stage_model."),
        **weights_of(text, "cond_stage_model.transformer."),
    }


def byte_characters() -> list[str]:
    """Return the character that stands for each byte in byte-level BPE: the byte itself if printable."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(len(hidden))]


def write_clip(folder: Path) -> None:
    """Write a text encoder's configuration, and a tokenizer that knows single characters."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [c + end for end in ("", "</w>") for c in byte_characters()]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    settings = {
        "model_type": "clip_text_model", "vocab_size": len(tokens), "hidden_size": 768,
        "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "bos_token_id": WORDS, "eos_token_id": WORDS + 1, "pad_token_id": WORDS + 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))


def classic(webui: Path, folder: Path, name: str) -> dict:
    """Use Stability's own classes: small for A1111, in the usual sizes for reForge."""
    sys.path.insert(0, str(webui / "repositories" / "stable-diffusion-stability-ai"))
    from ldm.models.autoencoder import AutoencoderKL
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    from transformers import CLIPTextConfig, CLIPTextModel

    small = not (webui / "ldm_patched").is_dir()
    clip = folder.resolve().parent / f"{name}-clip"
    unet = {**UNET, "attention_resolutions": [1], "use_checkpoint": False}
    vae = {
        "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    loss = {"target": "torch.nn.Identity"}
    if not small:
        vae |= {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "resolution": 256}
        text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
        return weights_by(UNetModel(**unet), AutoencoderKL(vae, loss, 4), CLIPTextModel(text))
    write_clip(clip)
    inner = {"embed_dim": 4, "ddconfig": vae, "lossconfig": loss}
    settings = {
        "linear_start": 0.00085, "linear_end": 0.012, "num_timesteps_cond": 1, "timesteps": 1000,
        "first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 8, "channels": 4,
        "cond_stage_trainable": False, "conditioning_key": "crossattn", "scale_factor": 0.18215,
        "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": inner},
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
                              "params": {"version": str(clip)}},
    }  # fmt: skip
    model = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": settings}
    (folder / f"{name}.yaml").write_text(json.dumps({"model": model}))  # JSON is YAML
    text = CLIPTextModel(CLIPTextConfig.from_pretrained(clip))
    return weights_by(UNetModel(**unet), AutoencoderKL(vae, loss, 4), text)


def forge(webui: Path, folder: Path, name: str) -> dict:
    sys.argv = ["launch.py", "--always-cpu"]
    sys.path[:0] = [str(webui), str(webui / "repositories" / "huggingface_guess")]
    sys.path += [str(p) for p in webui.glob("packages_3rdparty")]
    from backend.nn.unet import IntegratedUNet2DConditionModel
    from backend.nn.vae import IntegratedAutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    configuration = webui / "backend" / "huggingface" / "runwayml" / "stable-diffusion-v1-5"
    unet = {
        **{k: v for k, v in UNET.items() if k != "image_size"}, "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1,
    }  # fmt: skip
    vae = IntegratedAutoencoderKL.from_config(IntegratedAutoencoderKL.load_config(configuration / "vae"))
    text = CLIPTextModel(CLIPTextConfig.from_pretrained(configuration / "text_encoder"))
    return weights_by(IntegratedUNet2DConditionModel.from_config(unet), vae, text)


def main(webui: str, folder: str, seed: str, name: str) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(int(seed))
    Path(folder).mkdir(parents=True, exist_ok=True)
    make = forge if (Path(webui) / "backend").is_dir() else classic
    save_file(make(Path(webui).resolve(), Path(folder), name), Path(folder) / f"{name}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
