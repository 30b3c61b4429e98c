"""Identities of real MODELs of ComfyUI: precisions, quantised files, merges, LoRAs; and names of SAMPLERs.
Prints one JSON line: {case: value}.

    python tests/comfyui/beside_identity.py FOLDER [COMFYUI_GGUF]

Run in a process of its own, as it loads ComfyUI's modules."""

import functools
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from comfyui.tiny_sd import PREFIX, imports, network  # noqa: E402

from demo.comfyui import find  # noqa: E402

folder, *packs = map(Path, sys.argv[1:])
imports(str(find()))

import comfy.model_management  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.weight_adapter  # noqa: E402
import torch  # noqa: E402
from comfy_extras import nodes_model_merging as merging  # noqa: E402
from comfy_extras.nodes_model_merging_model_specific import ModelMergeSD1  # noqa: E402
from quantisers import BLOCKS, pack  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def package(path, name):
    """A custom node's package, as the host loads it."""
    at = importlib.util.spec_from_file_location(
        name, path / "__init__.py", submodule_search_locations=[str(path)]
    )
    sys.modules[name] = made = importlib.util.module_from_spec(at)
    at.loader.exec_module(made)
    return made


package(ROOT, "amed_pack")
ours = importlib.import_module("amed_pack.nodes.host.model")
named = importlib.import_module("amed_pack.nodes.host.register").sampler_name
choose = importlib.import_module("amed_pack.amed.choose")


def weights(seed):
    """A checkpoint's U-Net; norms and biases do nothing."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for key, weight in network("tiny_sd15").state_dict().items():
        if weight.ndim < 2:
            value = torch.ones_like(weight) if key.endswith(("weight", "scale")) else torch.zeros_like(weight)
        else:
            value = torch.empty_like(weight).normal_(generator=generator) * weight[0].numel() ** -0.5
        made[PREFIX + key] = value
    return made


def saved(name, values):
    save_file({k: v.contiguous() for k, v in values.items()}, folder / f"{name}.safetensors")


def loaded(name, dtype=None):
    options = {} if dtype is None else {"dtype": dtype}
    return comfy.sd.load_diffusion_model(str(folder / f"{name}.safetensors"), model_options=options)


def who(model):
    return ours.identity(model)


def in_fp8(values):
    """As files with a scale for each weight have it."""
    made = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, value in values.items():
        key = key.removeprefix(PREFIX)
        linear = value.ndim == 2 and key.endswith(".weight")
        if linear:
            scale = value.abs().max() / 448
            made[key.removesuffix("weight") + "scale_weight"] = scale.float()
            value = value / scale
        made[key] = value.to(torch.float8_e4m3fn) if linear else value.half()
    return made


def lora(model, strength=1.0):
    """A LoRA on every attention weight."""
    torch.manual_seed(5)
    patches = {}
    for key, weight in model.model.state_dict().items():
        if ".attn" in key and weight.ndim == 2:
            up, down = torch.randn(weight.shape[0], 4), torch.randn(4, weight.shape[1])
            both = (up, down, 4.0, None, None, None)
            patches[key] = comfy.weight_adapter.LoRAAdapter(set(), both)
    own = model.clone()
    assert len(own.add_patches(patches, strength)) > 8
    return own


def merged(a, b, ratio):
    return merging.ModelMergeSimple().merge(a, b, ratio)[0]


def merges(a, b, told):
    """Merges in the graph, and what is said of them."""
    mine, theirs = who(a), who(b)

    def same(one, other):
        return bool(one.same(other) and other.same(one))

    half, tenth = who(merged(a, b, 0.5)), who(merged(a, b, 0.9))
    told["ratio 0 is the second"] = same(who(merged(a, b, 0.0)), theirs)
    told["ratio 1 is the first"] = same(who(merged(a, b, 1.0)), mine)
    told["ratio 1 is no merge"] = not who(merged(a, b, 1.0)).merge
    told["half is another"] = half.merge and not (same(half, mine) or same(half, theirs) or same(half, tenth))
    told["a tenth is another"] = not (same(tenth, mine) or same(tenth, theirs))
    told["either way"] = same(who(merged(b, a, 0.5)), half)
    blocks = merging.ModelMergeBlocks().merge(a, b, input=1.0, middle=1.0, out=0.0)[0]
    told["blocks"] = not (same(who(blocks), mine) or same(who(blocks), theirs))
    own = {f"input_blocks.{i}.": 0.0 for i in range(12)}
    own |= {f"output_blocks.{i}.": 0.0 for i in range(12)}
    own |= {
        "time_embed.": 0.0,
        "label_emb.": 0.0,
        "out.": 0.0,
        **{f"middle_block.{i}.": 0.0 for i in range(3)},
    }
    told["every block of the second"] = same(who(ModelMergeSD1().merge(a, b, **own)[0]), theirs)
    own["middle_block.1."] = own["input_blocks.1."] = 0.3
    some = who(ModelMergeSD1().merge(a, b, **own)[0])
    told["one block of both"] = not (same(some, mine) or same(some, theirs))
    less = merging.ModelSubtract().merge(a, b, 1.0)[0]
    told["a difference"] = not (same(who(less), mine) or same(who(less), theirs))
    back = merging.ModelAdd().merge(b, less)[0]
    told["b + (a - b) is a"] = same(who(back), mine)
    again = merged(merged(a, b, 0.5), b, 0.5)
    told["a merge of a merge"] = not (same(who(again), half) or same(who(again), theirs))
    told["is the merge by the product"] = same(who(again), who(merged(a, b, 0.25)))
    told["the other merge of a merge"] = same(who(merged(b, merged(a, b, 0.5), 0.5)), who(merged(a, b, 0.25)))
    told["a LoRA on the first"] = same(who(merged(lora(a), b, 0.5)), half)
    told["a LoRA on the second"] = same(who(merged(a, lora(b), 0.5)), half)
    told["a LoRA on the merge"] = same(who(lora(merged(a, b, 0.5))), half)
    told["a LoRA alone"] = same(who(lora(a)), mine) and not who(lora(a)).merge
    simple = a.clone()
    simple.add_patches({k: (v,) for k, v in b.model.state_dict().items()}, 0.5, 0.5)
    told["another pack's merge"] = same(who(simple), half)
    negative = a.clone()
    negative.add_patches({k: (v,) for k, v in b.model.state_dict().items()}, 1.0, 0.0)
    told["another pack's replacement"] = same(who(negative), theirs)
    rows, whole = a.clone(), []
    other = b.model.state_dict()
    for key, weight in a.model.state_dict().items():
        if key.startswith("diffusion_model."):
            half_of = len(weight) // 2
            rows.add_patches({(key, (0, 0, half_of)): (other[key][:half_of],)}, 1.0, 0.0)
            whole.append((key, torch.cat([other[key][:half_of], weight[half_of:]])))
    expected = importlib.import_module("amed_pack.amed.fingerprint").identity_of(mine.family, whole)
    told["half of each weight replaced"] = same(who(rows), expected) and not same(expected, mine)

    for name, model in (
        ("merge", merged(a, b, 0.5)),
        ("LoRA", lora(a)),
        ("LoRA merge", merged(lora(a), b, 0.5)),
    ):
        fresh, before = model.clone(), who(model)
        comfy.model_management.load_models_gpu([model], force_patch_weights=True)
        ours._identities.clear()
        told[f"{name}, patched in place"] = same(who(model), before) and same(who(a), mine)
        told[f"{name}, another MODEL of the same weights meanwhile"] = same(who(fresh), before)
        told[f"{name}, second parent meanwhile"] = same(who(b), theirs)
        comfy.model_management.unload_all_models()
        told[f"{name}, unloaded"] = same(who(model), before) and same(who(a), mine)
    model = merged(a, b, 0.5)
    comfy.model_management.load_models_gpu([model], force_patch_weights=True)
    inside = model.model.diffusion_model.state_dict()
    saved("half", {PREFIX + name: weight.detach().clone() for name, weight in inside.items()})
    comfy.model_management.unload_all_models()
    told["saved and loaded"] = same(who(loaded("half")), half) and not who(loaded("half")).merge
    spec = choose.Identity(mine.family, mine.fingerprint, mine.signature)
    told["remark"] = choose.mismatches(fitted_for(spec), half, 1.0)
    told["remark for itself"] = choose.mismatches(fitted_for(half), half, 1.0)

    replaced = a.clone()
    replaced.add_object_patch("diffusion_model", b.model.diffusion_model)
    told["a replaced network"] = same(who(replaced), theirs) and same(who(a), mine)
    part = a.clone()
    part.add_object_patch("diffusion_model.middle_block", b.model.diffusion_model.middle_block)
    told["a replaced block"] = not (same(who(part), theirs) or same(who(part), mine))
    compiled = a.clone()
    compiled.add_object_patch("diffusion_model", torch.compile(a.model.diffusion_model))
    told["compiled"] = same(who(compiled), mine)


def fitted_for(identity):
    spec = SimpleNamespace(model_family=identity.family, model_name="a", model_fingerprint="", guidance=1.0,
                           identity=identity)  # fmt: skip
    return SimpleNamespace(spec=spec, name="x")


# --- names of SAMPLERs -------------------------------------------------------------------------------------


@dataclass
class Settings:
    amount: float
    more: dict


def around(held):
    def sample_around(model, x, sigmas, **more):
        return held.sampler_function(model, x, sigmas, **more)

    return sample_around


def with_schedule(make):
    return comfy.samplers.KSAMPLER(outer, {"make": make})


def outer(model, x, sigmas, **more):
    return x


def samplers():
    """name -> a SAMPLER; each is another."""
    KSAMPLER, of = comfy.samplers.KSAMPLER, comfy.samplers.sampler_object
    euler, heun = of("euler"), of("heun")

    def amount(value):
        return lambda steps: [value] * steps

    return {
        "euler": euler,
        "uni_pc": of("uni_pc"),
        "dpm_fast": of("dpm_fast"),
        "lms": comfy.samplers.ksampler("lms", {"order": 3}),
        "around euler": KSAMPLER(outer, {"inner": euler, "s": 0.1}),
        "around heun": KSAMPLER(outer, {"inner": heun, "s": 0.1}),
        "around lms 3": KSAMPLER(outer, {"inner": comfy.samplers.ksampler("lms", {"order": 3}), "s": 0.1}),
        "around lms 2": KSAMPLER(outer, {"inner": comfy.samplers.ksampler("lms", {"order": 2}), "s": 0.1}),
        "around euler, more": KSAMPLER(outer, {"inner": euler, "s": 0.2}),
        "around around euler": KSAMPLER(outer, {"inner": KSAMPLER(outer, {"inner": euler}), "s": 0.1}),
        "closure around euler": KSAMPLER(around(euler)),
        "closure around heun": KSAMPLER(around(heun)),
        "partial 1": KSAMPLER(functools.partial(outer, k=1)),
        "partial 2": KSAMPLER(functools.partial(outer, k=2)),
        "tensor 1": KSAMPLER(outer, {"t": torch.ones(3)}),
        "tensor 2": KSAMPLER(outer, {"t": torch.ones(3) * 2}),
        "tensor of 4": KSAMPLER(outer, {"t": torch.ones(4)}),
        "list": KSAMPLER(outer, {"t": [1, 2]}),
        "list of more": KSAMPLER(outer, {"t": [1, 3]}),
        "dict": KSAMPLER(outer, {"t": {"a": 1}}),
        "dict of more": KSAMPLER(outer, {"t": {"a": 2}}),
        "settings": KSAMPLER(outer, {"t": Settings(1.0, {"b": None})}),
        "settings, more": KSAMPLER(outer, {"t": Settings(1.0, {"b": 2})}),
        "closure 1": with_schedule(amount(1.0)),
        "closure 2": with_schedule(amount(2.0)),
        "lambda 1": with_schedule(lambda steps: steps),
        "lambda 2": with_schedule(lambda steps: steps + 1),
        "none beside": KSAMPLER(outer, {"t": [1, 2], "u": None}),
    }


def dtype_of(model):
    named = model.model.diffusion_model.named_parameters()
    return str(next(weight.dtype for name, weight in named if "attn1.to_q" in name))


def main():
    told = {}
    a, b = weights(0), weights(1)
    generator = torch.Generator().manual_seed(9)
    tuned = {k: v + 0.02 * v.std().nan_to_num() * torch.empty_like(v).normal_(generator=generator)
             for k, v in a.items()}  # fmt: skip
    for name, values in (("a", a), ("b", b), ("tuned", tuned)):
        saved(name, values)
    saved("scaled", in_fp8(a))
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
              "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}  # fmt: skip
    models = {name: loaded("a", dtype) for name, dtype in dtypes.items()}
    models["scaled fp8"] = loaded("scaled")
    others = {"b": loaded("b", torch.float16), "b in fp8": loaded("b", torch.float8_e4m3fn),
              "tuned": loaded("tuned", torch.float16)}  # fmt: skip
    if packs:
        models |= gguf_models("a", a, ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q2_K", "IQ4_NL", "F16"))
        convolutions = {k: a[k] if v.ndim > 2 else v for k, v in b.items()}
        others |= {
            f"same convolutions, {k}": v for k, v in gguf_models("c", convolutions, ("Q4_K", "Q8_0")).items()
        }
        held = [getattr(p, "tensor_type", 0) for p in models["Q4_K"].model.diffusion_model.parameters()]
        told["packed"] = sum(kind not in (0, 1) for kind in held)  # neither float32 nor float16
    known = {name: who(model) for name, model in models.items()}
    assert all(v.signature for v in known.values()), known
    told["one checkpoint"] = {f"{x}, {y}": known[x].same(known[y]) for x in known for y in known}
    told["another"] = {f"{x}, {y}": known[x].same(who(other)) for x in known for y, other in others.items()}
    told["dtypes"] = {name: dtype_of(model) for name, model in models.items()}
    merges(models["fp16"], others["b"], told)
    eighth = who(merged(models["fp8_e4m3fn"], others["b in fp8"], 0.5))
    told["a merge in fp8"] = eighth.same(who(merged(models["fp16"], others["b"], 0.5)))
    scaled = who(merged(models["scaled fp8"], others["b"], 0.5))
    told["a merge of scaled fp8"] = scaled.same(who(merged(models["fp16"], others["b"], 0.5)))
    if packs:
        half = who(merged(models["Q8_0"], others["b"], 0.5))  # as the second the host takes none
        told["a merge of GGUF"] = half.same(who(merged(models["fp16"], others["b"], 0.5)))
        told["a LoRA on GGUF"] = who(lora(models["Q4_K"])).same(known["fp16"])
        own = lora(models["Q4_K"])
        comfy.model_management.load_models_gpu([own])
        ours._identities.clear()
        told["a LoRA on GGUF, loaded"] = who(own).same(known["fp16"])
        comfy.model_management.unload_all_models()
    told["names"] = {k: named(v) for k, v in samplers().items()}
    told["names again"] = {k: named(v) for k, v in samplers().items()}
    print(json.dumps(told))


def gguf_models(name, values, kinds):
    """MODELs of ComfyUI-GGUF: linear weights quantised, as its own tool leaves convolutions and biases."""
    import gguf

    loader = sys.modules.get("gguf_pack") or package(packs[0], "gguf_pack")
    import folder_paths

    made = {}
    for kind in kinds:
        path = folder / f"{name}-{kind}.gguf"
        writer = gguf.GGUFWriter(path, "sd1")
        for key, value in values.items():
            data = value.float().numpy()
            linear = value.ndim == 2 and value.shape[1] % BLOCKS.get(kind, 32) == 0
            if linear and kind in BLOCKS:
                packed = pack(kind, data).reshape(len(data), -1)
                writer.add_tensor(key, packed, raw_dtype=gguf.GGMLQuantizationType[kind])
            else:
                writer.add_tensor(key, data.astype("float16") if value.ndim > 1 else data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        folder_paths.add_model_folder_path("unet", str(folder))
        folder_paths.add_model_folder_path("diffusion_models", str(folder))
        made[kind] = loader.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet(path.name)[0]
    return made


if __name__ == "__main__":
    with torch.inference_mode():
        main()
