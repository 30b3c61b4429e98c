"""Print the identities of real MODELs of ComfyUI, and names of SAMPLERs, as one JSON line: {case: value}.

The cases are precisions, quantised files, merges and LoRAs.

    python tests/comfyui/print_identities.py FOLDER [COMFYUI_GGUF]

A separate process, because it loads ComfyUI's modules."""

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
    """Load a custom node's package as the host does."""
    at = importlib.util.spec_from_file_location(
        name, path / "__init__.py", submodule_search_locations=[str(path)]
    )
    sys.modules[name] = module = importlib.util.module_from_spec(at)
    at.loader.exec_module(module)
    return module


package(ROOT, "amed_pack")
ours = importlib.import_module("amed_pack.nodes.host.model")
named = importlib.import_module("amed_pack.nodes.host.register").sampler_name
choose = importlib.import_module("amed_pack.amed.choose")


def weights(seed):
    """Return a checkpoint's U-Net with random weights; its norms and biases have no effect."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, weight in network("tiny_sd15").state_dict().items():
        if weight.ndim < 2:
            value = torch.ones_like(weight) if key.endswith(("weight", "scale")) else torch.zeros_like(weight)
        else:
            value = torch.empty_like(weight).normal_(generator=generator) * weight[0].numel() ** -0.5
        tensors[PREFIX + key] = value
    return tensors


def saved(name, values):
    save_file({k: v.contiguous() for k, v in values.items()}, folder / f"{name}.safetensors")


def loaded(name, dtype=None):
    options = {} if dtype is None else {"dtype": dtype}
    return comfy.sd.load_diffusion_model(str(folder / f"{name}.safetensors"), model_options=options)


def identity_text(model):
    return ours.identity(model)


def in_fp8(values):
    """Return the weights as an fp8 file with one scale per weight stores them."""
    tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, value in values.items():
        key = key.removeprefix(PREFIX)
        linear = value.ndim == 2 and key.endswith(".weight")
        if linear:
            scale = value.abs().max() / 448
            tensors[key.removesuffix("weight") + "scale_weight"] = scale.float()
            value = value / scale
        tensors[key] = value.to(torch.float8_e4m3fn) if linear else value.half()
    return tensors


def lora(model, strength=1.0):
    """Return the MODEL with a LoRA on every attention weight."""
    torch.manual_seed(5)
    patches = {}
    for key, weight in model.model.state_dict().items():
        if ".attn" in key and weight.ndim == 2:
            up, down = torch.randn(weight.shape[0], 4), torch.randn(4, weight.shape[1])
            both = (up, down, 4.0, None, None, None)
            patches[key] = comfy.weight_adapter.LoRAAdapter(set(), both)
    patched = model.clone()
    assert len(patched.add_patches(patches, strength)) > 8
    return patched


def merged(a, b, ratio):
    return merging.ModelMergeSimple().merge(a, b, ratio)[0]


def merges(a, b, results):
    """Merge in the graph, and return the identities and remarks."""
    mine, theirs = identity_text(a), identity_text(b)

    def same(first, other):
        return bool(first.same(other) and other.same(first))

    half, tenth = identity_text(merged(a, b, 0.5)), identity_text(merged(a, b, 0.9))
    results["ratio 0 is the second"] = same(identity_text(merged(a, b, 0.0)), theirs)
    results["ratio 1 is the first"] = same(identity_text(merged(a, b, 1.0)), mine)
    results["ratio 1 is no merge"] = not identity_text(merged(a, b, 1.0)).merge
    results["half is another"] = half.merge and not (
        same(half, mine) or same(half, theirs) or same(half, tenth)
    )
    results["a tenth is another"] = not (same(tenth, mine) or same(tenth, theirs))
    results["either way"] = same(identity_text(merged(b, a, 0.5)), half)
    blocks = merging.ModelMergeBlocks().merge(a, b, input=1.0, middle=1.0, out=0.0)[0]
    results["blocks"] = not (same(identity_text(blocks), mine) or same(identity_text(blocks), theirs))
    ratios = {f"input_blocks.{i}.": 0.0 for i in range(12)}
    ratios |= {f"output_blocks.{i}.": 0.0 for i in range(12)}
    ratios |= {
        "time_embed.": 0.0,
        "label_emb.": 0.0,
        "out.": 0.0,
        **{f"middle_block.{i}.": 0.0 for i in range(3)},
    }
    results["every block of the second"] = same(
        identity_text(ModelMergeSD1().merge(a, b, **ratios)[0]), theirs
    )
    ratios["middle_block.1."] = ratios["input_blocks.1."] = 0.3
    some = identity_text(ModelMergeSD1().merge(a, b, **ratios)[0])
    results["one block of both"] = not (same(some, mine) or same(some, theirs))
    less = merging.ModelSubtract().merge(a, b, 1.0)[0]
    results["a difference"] = not (same(identity_text(less), mine) or same(identity_text(less), theirs))
    back = merging.ModelAdd().merge(b, less)[0]
    results["b + (a - b) is a"] = same(identity_text(back), mine)
    again = merged(merged(a, b, 0.5), b, 0.5)
    results["a merge of a merge"] = not (
        same(identity_text(again), half) or same(identity_text(again), theirs)
    )
    results["is the merge by the product"] = same(identity_text(again), identity_text(merged(a, b, 0.25)))
    results["the other merge of a merge"] = same(
        identity_text(merged(b, merged(a, b, 0.5), 0.5)), identity_text(merged(a, b, 0.25))
    )
    results["a LoRA on the first"] = same(identity_text(merged(lora(a), b, 0.5)), half)
    results["a LoRA on the second"] = same(identity_text(merged(a, lora(b), 0.5)), half)
    results["a LoRA on the merge"] = same(identity_text(lora(merged(a, b, 0.5))), half)
    results["a LoRA alone"] = same(identity_text(lora(a)), mine) and not identity_text(lora(a)).merge
    simple = a.clone()
    simple.add_patches({k: (v,) for k, v in b.model.state_dict().items()}, 0.5, 0.5)
    results["another pack's merge"] = same(identity_text(simple), half)
    negative = a.clone()
    negative.add_patches({k: (v,) for k, v in b.model.state_dict().items()}, 1.0, 0.0)
    results["another pack's replacement"] = same(identity_text(negative), theirs)
    rows, weights_read = a.clone(), []
    other = b.model.state_dict()
    for key, weight in a.model.state_dict().items():
        if key.startswith("diffusion_model."):
            half_of = len(weight) // 2
            rows.add_patches({(key, (0, 0, half_of)): (other[key][:half_of],)}, 1.0, 0.0)
            weights_read.append((key, torch.cat([other[key][:half_of], weight[half_of:]])))
    expected = importlib.import_module("amed_pack.amed.fingerprint").identity_of(mine.family, weights_read)
    results["half of each weight replaced"] = same(identity_text(rows), expected) and not same(expected, mine)

    for name, model in (
        ("merge", merged(a, b, 0.5)),
        ("LoRA", lora(a)),
        ("LoRA merge", merged(lora(a), b, 0.5)),
    ):
        fresh, before = model.clone(), identity_text(model)
        comfy.model_management.load_models_gpu([model], force_patch_weights=True)
        ours._identities.clear()
        results[f"{name}, patched in place"] = same(identity_text(model), before) and same(
            identity_text(a), mine
        )
        results[f"{name}, another MODEL of the same weights meanwhile"] = same(identity_text(fresh), before)
        results[f"{name}, second parent meanwhile"] = same(identity_text(b), theirs)
        comfy.model_management.unload_all_models()
        results[f"{name}, unloaded"] = same(identity_text(model), before) and same(identity_text(a), mine)
    model = merged(a, b, 0.5)
    comfy.model_management.load_models_gpu([model], force_patch_weights=True)
    inside = model.model.diffusion_model.state_dict()
    saved("half", {PREFIX + name: weight.detach().clone() for name, weight in inside.items()})
    comfy.model_management.unload_all_models()
    results["saved and loaded"] = (
        same(identity_text(loaded("half")), half) and not identity_text(loaded("half")).merge
    )
    spec = choose.Identity(mine.family, mine.fingerprint, mine.signature)
    results["remark"] = choose.mismatches(fitted_for(spec), half, 1.0)
    results["remark for itself"] = choose.mismatches(fitted_for(half), half, 1.0)

    replaced = a.clone()
    replaced.add_object_patch("diffusion_model", b.model.diffusion_model)
    results["a replaced network"] = same(identity_text(replaced), theirs) and same(identity_text(a), mine)
    part = a.clone()
    part.add_object_patch("diffusion_model.middle_block", b.model.diffusion_model.middle_block)
    results["a replaced block"] = not (same(identity_text(part), theirs) or same(identity_text(part), mine))
    compiled = a.clone()
    compiled.add_object_patch("diffusion_model", torch.compile(a.model.diffusion_model))
    results["compiled"] = same(identity_text(compiled), mine)


def fitted_for(identity):
    spec = SimpleNamespace(model_family=identity.family, model_name="a", model_fingerprint="", guidance=1.0,
                           identity=identity)  # fmt: skip
    return SimpleNamespace(spec=spec, name="x")


# --- names of SAMPLERs -------------------------------------------------------------------------------------


@dataclass
class Settings:
    amount: float
    more: dict


def around(wrapped):
    def sample_around(model, x, sigmas, **more):
        return wrapped.sampler_function(model, x, sigmas, **more)

    return sample_around


def with_schedule(make):
    return comfy.samplers.KSAMPLER(outer, {"make": make})


def outer(model, x, sigmas, **more):
    return x


def samplers():
    """Return {name: SAMPLER}; all must get different names."""
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
    results = {}
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
        quantised_types = [
            getattr(p, "tensor_type", 0) for p in models["Q4_K"].model.diffusion_model.parameters()
        ]
        results["packed"] = sum(kind not in (0, 1) for kind in quantised_types)  # tensors quantised by GGUF
    known = {name: identity_text(model) for name, model in models.items()}
    assert all(v.signature for v in known.values()), known
    results["one checkpoint"] = {f"{x}, {y}": known[x].same(known[y]) for x in known for y in known}
    results["another"] = {
        f"{x}, {y}": known[x].same(identity_text(other)) for x in known for y, other in others.items()
    }
    results["dtypes"] = {name: dtype_of(model) for name, model in models.items()}
    merges(models["fp16"], others["b"], results)
    eighth = identity_text(merged(models["fp8_e4m3fn"], others["b in fp8"], 0.5))
    results["a merge in fp8"] = eighth.same(identity_text(merged(models["fp16"], others["b"], 0.5)))
    scaled = identity_text(merged(models["scaled fp8"], others["b"], 0.5))
    results["a merge of scaled fp8"] = scaled.same(identity_text(merged(models["fp16"], others["b"], 0.5)))
    if packs:
        half = identity_text(
            merged(models["Q8_0"], others["b"], 0.5)
        )  # the host does not accept it as the second model
        results["a merge of GGUF"] = half.same(identity_text(merged(models["fp16"], others["b"], 0.5)))
        results["a LoRA on GGUF"] = identity_text(lora(models["Q4_K"])).same(known["fp16"])
        with_lora = lora(models["Q4_K"])
        comfy.model_management.load_models_gpu([with_lora])
        ours._identities.clear()
        results["a LoRA on GGUF, loaded"] = identity_text(with_lora).same(known["fp16"])
        comfy.model_management.unload_all_models()
    results["names"] = {k: named(v) for k, v in samplers().items()}
    results["names again"] = {k: named(v) for k, v in samplers().items()}
    print(json.dumps(results))


def gguf_models(name, values, kinds):
    """Return MODELs of ComfyUI-GGUF: linear weights quantised; convolutions and biases as its own tool leaves
    them."""
    import gguf

    loader = sys.modules.get("gguf_pack") or package(packs[0], "gguf_pack")
    import folder_paths

    models = {}
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
        models[kind] = loader.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet(path.name)[0]
    return models


if __name__ == "__main__":
    with torch.inference_mode():
        main()
