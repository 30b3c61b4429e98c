"""The rows of the matrix: what a real ComfyUI does to a MODEL, a LATENT or a run, with each kind of
predictor.

A row is `Row(name, check)`; check(bench, kind) raises AssertionError where something is wrong. `refused` maps
a kind that the pack refuses to a pattern of the message. The file is long because it is a list."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from comfyui.predictor_kinds import CFG, KINDS, NFE, Kind, RunResult, Small, run
from safetensors.torch import load

APART = r"unconditional result separately, which .* does not allow: remove the patch or guider"
HALVES = {"halves": APART}
EVERY = tuple(kind.name for kind in KINDS)
BY_NODES = tuple(kind.name for kind in KINDS if not kind.sampler)
TOUCHED = ("AMED-Solver", "halves", "network", "KSampler", "around dpmpp_2m, KSampler")
"""Of what stands between MODEL and guidance: the other kinds ask a MODEL as AMED-Solver does."""
BY_TOUCHED = tuple(name for name in TOUCHED if name in BY_NODES) + ("around dpmpp_2m",)
OURS = tuple(kind.name for kind in KINDS if not kind.around and not kind.sampler)
FALLING = r"sigmas must fall at every step, but are .*: "


Change = Callable[[Small], object]  # changes a graph; may return a GUIDER
Check = Callable[["Bench", Kind], None]


class Bench:
    """A running server, and the plain runs that rows are compared with, each run once."""

    def __init__(self, server):
        self.server, self.kept = server, {}
        self.version: str = server.get("/system_stats")["system"]["comfyui_version"]

    def run(self, g: Small, latent) -> RunResult:
        return run(self.server, g, latent)

    def plain(self, kind: Kind, cfg=CFG, **small) -> RunResult:
        """Run a kind on a MODEL without patches."""
        key = (kind.name, cfg, *sorted(small.items()))
        if key not in self.kept:
            g = Small(**small)
            self.kept[key] = self.run(g, g.sample(kind, cfg))
        return self.kept[key]

    def euler(self, g: Small, **more) -> torch.Tensor:
        """Run the host's own Euler on a graph's MODEL."""
        return self.run(g, g.ksampler("euler", "karras", 2, cfg=CFG, **more)).latents


@dataclass(frozen=True)
class Row:
    name: str
    check: Check
    refused: dict[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    """Names of the kinds that the row runs with; (): all."""
    needs: tuple[str, ...] = ()
    """Nodes of the host that the row needs."""
    since: str = ""
    """First version of the host in which its own node works."""
    slow: bool = False
    """Whether the row takes minutes; then only `make matrix` runs it."""

    def concerns(self, kind: Kind) -> bool:
        return not self.kinds or kind.name in self.kinds


def assert_close(first: torch.Tensor, other: torch.Tensor, share: float = 1e-3) -> None:
    torch.testing.assert_close(first, other, rtol=share, atol=share * float(other.std()))


def assert_differs(first: torch.Tensor, other: torch.Tensor) -> None:
    assert float((first - other).abs().max()) > 0.01 * float(other.std()), (
        "the patch has no effect on the image"
    )


def check_counts(result: RunResult, kind: Kind, rows: int | None = 2, evaluations: int = NFE) -> None:
    """Check the evaluations, and the network's rows per image, that the run itself reports."""
    assert result.counted is not None, f"the report states no counts: {result.report}"
    assert result.counted[0] == evaluations, result.report
    if rows is not None and evaluations == NFE:
        assert result.counted[1] == kind.passes(rows), result.report


# --- a MODEL with something on it --------------------------------------------------------------------------


def patched(on: Change, off: Change | None = None, rows: int | None = 2, idle: tuple[str, ...] = ()) -> Check:
    """Check that the patch changes the image (except for kinds in `idle`) and that a disabled patch does not.

    The reported counts must be right, and the MODEL's images by the host's own sampler the same before and
    after."""

    def euler(bench: Bench) -> torch.Tensor:
        g = Small()
        on(g)
        return bench.euler(g, seed=11)

    def check(bench: Bench, kind: Kind) -> None:
        if check not in bench.kept:
            bench.kept[check] = euler(bench)
        plain, g = bench.plain(kind), Small()
        result = bench.run(g, g.sample(kind, guider=on(g)))
        if kind.around:  # the last kind of a row
            assert torch.equal(euler(bench), bench.kept[check]), "the MODEL was changed"
        assert result.latents.shape == plain.latents.shape
        check_counts(result, kind, rows)
        if kind.name not in idle:
            assert_differs(result.latents, plain.latents)
        if off is not None:
            g = Small()
            assert_close(bench.run(g, g.sample(kind, guider=off(g))).latents, plain.latents)

    return check


def on_model(kind: str, **inputs) -> Change:
    return lambda g: g.patch(kind, **inputs) and None


def node(kind: str, on: dict, off: dict | None = None, rows: int | None = 2, idle=(), refused=None,
         suffix: str = "", since: str = "") -> Row:  # fmt: skip
    """Return a row for a node of the host from MODEL to MODEL; `off` are the inputs that disable it."""
    turned_off = None if off is None else on_model(kind, **on | off)
    check = patched(on_model(kind, **on), turned_off, rows, idle)
    return Row(kind + suffix, check, refused or {}, TOUCHED, (kind,), since)


def dual_cfg(first: float) -> Callable[[Small], list]:
    """With equal scales, DualCFGGuider's second prompt cancels out."""
    return lambda g: [g.add("DualCFGGuider", model=g.model, cond1=g.positive, cond2=g.other,
                            negative=g.negative, cfg_conds=first, cfg_cond2_negative=CFG,
                            style="regular"), 0]  # fmt: skip


def perp_neg(g: Small):
    return [g.add("PerpNegGuider", model=g.model, positive=g.positive, negative=g.negative,
                  empty_conditioning=g.other, cfg=CFG, neg_scale=1.0), 0]  # fmt: skip


def control(strength: float, start=0.0, end=1.0) -> Callable[[Small], None]:
    def on(g: Small) -> None:
        image = [g.add("EmptyImage", width=96, height=64, batch_size=1, color=0x4080C0), 0]
        net = [g.add("SmallControl"), 0]
        node = g.add("ControlNetApplyAdvanced", positive=g.positive, negative=g.negative, control_net=net,
                     image=image, strength=strength, start_percent=start, end_percent=end)  # fmt: skip
        g.positive, g.negative = [node, 0], [node, 1]

    return on


def lora(strength: float) -> Change:
    return on_model("LoraLoaderModelOnly", lora_name="small.safetensors", strength_model=strength)


def lora_hook(g: Small) -> None:
    """A LoRA on the positive prompt alone, so that the halves are two calls."""
    hook = [g.add("CreateHookLoraModelOnly", lora_name="small.safetensors", strength_model=1.0), 0]
    g.positive = [g.add("ConditioningSetProperties", cond_NEW=g.positive, hooks=hook, strength=1.0,
                        set_cond_area="default"), 0]  # fmt: skip


FREEU = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
NO_FREEU = {"b1": 1.0, "b2": 1.0, "s1": 1.0, "s2": 1.0}
CACHE = {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
V = {"sampling": "v_prediction"}
TILES = {"tile_size": 32, "swap_size": 2, "max_depth": 0, "scale_depth": False}
PATCHES = (
    node("PerturbedAttentionGuidance", {"scale": 3.0}, {"scale": 0.0}, 3, refused=HALVES),
    node("SelfAttentionGuidance", {"scale": 0.5, "blur_sigma": 2.0}, {"scale": 0.0}, 3, refused=HALVES),
    node("RescaleCFG", {"multiplier": 0.7}, {"multiplier": 0.0}, refused=HALVES),
    node("CFGZeroStar", {}, refused=HALVES),
    node("APG", {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.5}, refused=HALVES),
    Row("DualCFGGuider", patched(dual_cfg(5.0), dual_cfg(CFG), 3), HALVES, BY_TOUCHED, ("DualCFGGuider",)),
    Row("PerpNegGuider", patched(perp_neg, rows=3), HALVES, BY_TOUCHED, ("PerpNegGuider",)),
    node("FreeU", FREEU, NO_FREEU),
    node("FreeU_V2", FREEU, NO_FREEU),
    node("HyperTile", TILES),
    node("TomePatchModel", {"ratio": 0.3}, {"ratio": 0.0}),
    # older versions divide by zero in a log message if as many evaluations are skipped as there are steps
    node("EasyCache", CACHE, {"reuse_threshold": 0.0}, None, ("halves",), since="0.3.58"),
    node("LazyCache", CACHE, {"reuse_threshold": 0.0}, None, refused=HALVES, since="0.3.58"),
    Row("ControlNet", patched(control(1.0), control(0.0)), kinds=TOUCHED),
    Row("ControlNet, from 20 to 60 percent", patched(control(1.0, 0.2, 0.6)), kinds=TOUCHED),
    Row("LoRA", patched(lora(1.0), lora(0.0)), kinds=TOUCHED),
    Row("LoRA as a hook on one prompt", patched(lora_hook), {}, TOUCHED, ("CreateHookLoraModelOnly",)),
    node("ModelSamplingDiscrete", V | {"zsnr": False}, suffix=", v-prediction"),
    node("ModelSamplingDiscrete", V | {"zsnr": True}, suffix=", zero terminal SNR"),
    node("DifferentialDiffusion", {}, idle=EVERY, suffix=", no mask"),
)  # fmt: skip


# --- batches, sizes, guidance ------------------------------------------------------------------------------


def batches(bench: Bench, kind: Kind) -> None:
    single = bench.plain(kind).latents
    for batch in (2, 5):
        whole_batch = bench.plain(kind, batch=batch)
        assert len(whole_batch.latents) == batch
        check_counts(whole_batch, kind)
        assert_close(whole_batch.latents[:1], single)
        assert_differs(whole_batch.latents[1:2], single)


def odd_sizes(bench: Bench, kind: Kind) -> None:
    for width, height in ((72, 104), (40, 24)):
        result = bench.plain(kind, batch=2, width=width, height=height)
        assert result.latents.shape == (2, 4, height // 8, width // 8)
        check_counts(result, kind)


def guidance(scale: float) -> Check:
    def check(bench: Bench, kind: Kind) -> None:
        result = bench.plain(kind, cfg=scale)
        check_counts(result, kind, 1 if scale == 1 else 2)
        if scale != CFG:
            assert_differs(result.latents, bench.plain(kind).latents)

    return check


def in_two_calls(bench: Bench, kind: Kind) -> None:
    g = Small(batch=2).patch("SmallMemory")
    result = bench.run(g, g.sample(kind))
    check_counts(result, kind)
    assert_close(result.latents, bench.plain(kind, batch=2).latents)


# --- prompts -----------------------------------------------------------------------------------------------


def side(g: Small, prompt, is_left: bool):
    """Return a prompt for the left or the right half, by a mask."""
    full_mask = [g.add("SolidMask", value=0.0, width=96, height=64), 0]
    half = [g.add("SolidMask", value=1.0, width=48, height=64), 0]
    mask = g.add(
        "MaskComposite", destination=full_mask, source=half, x=0 if is_left else 48, y=0, operation="add"
    )
    return [g.add("ConditioningSetMask", conditioning=prompt, mask=[mask, 0], strength=1.0,
                  set_cond_area="default"), 0]  # fmt: skip


def span(g: Small, prompt, start: float, end: float):
    return [g.add("ConditioningSetTimestepRange", conditioning=prompt, start=start, end=end), 0]


def area(g: Small, prompt, x: float):
    return [g.add("ConditioningSetAreaPercentage", conditioning=prompt, width=0.5, height=1.0, x=x, y=0.0,
                  strength=1.0), 0]  # fmt: skip


def same_prompts(split: Callable[[Small, object], list], rows: int | None) -> Check:
    """Check that several conds of the same prompt equal that prompt, and that a differing one changes the
    image."""

    def check(bench: Bench, kind: Kind) -> None:
        for other in (False, True):
            g = Small(batch=2)
            parts = split(g, g.other if other else g.positive)
            g.positive = [g.add("ConditioningCombine", conditioning_1=parts[0], conditioning_2=parts[1]), 0]
            result = bench.run(g, g.sample(kind))
            check_counts(result, kind, rows)
            plain = bench.plain(kind, batch=2).latents
            if other:
                assert_differs(result.latents, plain)
            elif kind.file != "network":  # the first of two rows is the image that this prompt sees
                assert_close(result.latents, plain)

    return check


def areas(bench: Bench, kind: Kind) -> None:
    g = Small(batch=2)
    parts = area(g, g.positive, 0.0), area(g, g.other, 0.5)
    g.positive = [g.add("ConditioningCombine", conditioning_1=parts[0], conditioning_2=parts[1]), 0]
    result = bench.run(g, g.sample(kind))
    check_counts(result, kind, None)
    assert_differs(result.latents, bench.plain(kind, batch=2).latents)


def not_always(bench: Bench, kind: Kind) -> None:
    """A prompt that begins at 30 percent, and nothing before it."""
    g = Small(batch=2)
    g.positive = span(g, g.positive, 0.3, 1.0)
    check_counts(bench.run(g, g.sample(kind)), kind, None)


# --- LATENTs -----------------------------------------------------------------------------------------------


def one_of_a_batch(bench: Bench, kind: Kind) -> None:
    g = Small(batch=5)
    g.latent = [g.add("LatentFromBatch", samples=g.latent, batch_index=3, length=1), 0]
    result = bench.run(g, g.sample(kind)).latents
    assert_close(result, bench.plain(kind, batch=5).latents[3:4])


def repeated_batch(bench: Bench, kind: Kind) -> None:
    """Repeat images 3 and 4 of five, which the host numbers 3, 4, 5, 6."""
    g = Small(batch=5)
    g.latent = [g.add("LatentFromBatch", samples=g.latent, batch_index=3, length=2), 0]
    g.latent = [g.add("RepeatLatentBatch", samples=g.latent, amount=2), 0]
    result = bench.run(g, g.sample(kind)).latents
    assert len(result) == 4
    assert_close(result[:2], bench.plain(kind, batch=5).latents[3:5])
    assert_differs(result[2:], result[:2])


def fixed_seeds(bench: Bench, kind: Kind) -> None:
    g = Small(batch=3)
    g.latent = [g.add("LatentBatchSeedBehavior", samples=g.latent, seed_behavior="fixed"), 0]
    result = bench.run(g, g.sample(kind)).latents
    assert_close(result, result[:1].expand_as(result))
    assert_close(result[:1], bench.plain(kind).latents)


def joined_batches(bench: Bench, kind: Kind) -> None:
    g = Small(batch=2)
    g.latent = [g.add("LatentBatch", samples1=g.latent, samples2=g.latent), 0]
    result = bench.run(g, g.sample(kind)).latents
    assert len(result) == 4


def masked(bench: Bench, kind: Kind) -> None:
    """Columns that a mask keeps equal the start's."""
    g = Small(batch=2)
    start = g.ksampler("euler", "karras", 2)
    start_latents = bench.run(g, start).latents
    half = [g.add("SolidMask", value=1.0, width=48, height=64), 0]
    mask = g.add("MaskComposite", destination=[g.add("SolidMask", value=0.0, width=96, height=64), 0],
                 source=half, x=48, y=0, operation="add")  # fmt: skip
    g.latent = [g.add("SetLatentNoiseMask", samples=start, mask=[mask, 0]), 0]
    result = bench.run(g, g.sample(kind, seed=8)).latents
    assert_close(result[..., :6], start_latents[..., :6])
    assert_differs(result[..., 7:], start_latents[..., 7:])


def latents_in(dtype: str) -> Check:
    """A LATENT in another dtype, in which the host also draws its noise and runs samplers."""

    def check(bench: Bench, kind: Kind) -> None:
        g = Small()
        g.latent = [g.add("SmallLatent", samples=g.latent, dtype=dtype), 0]
        result = bench.run(g, g.sample(kind))
        check_counts(result, kind)
        assert result.latents.dtype == torch.float32  # what the host gives back
        away = float((result.latents - bench.plain(kind).latents).std() / result.latents.std())
        assert away < 0.1, f"{away:.3f} of fp32's image"

    return check


def weights_in(dtype: str) -> Check:
    """The network in another dtype: about as far from fp32's image as the host's own DPM++ 2M."""

    def check(bench: Bench, kind: Kind) -> None:
        def host(dtype):
            if (host_key := ("host", dtype)) not in bench.kept:
                g = Small(dtype=dtype)
                result = bench.run(g, g.ksampler("dpmpp_2m", "karras", NFE, cfg=CFG))
                bench.kept[host_key] = result.latents
            return bench.kept[host_key]

        kinds_result, plain = bench.plain(kind, dtype=dtype), bench.plain(kind)
        check_counts(kinds_result, kind)
        assert kinds_result.latents.dtype == plain.latents.dtype
        away = float((kinds_result.latents - plain.latents).std() / plain.latents.std())
        theirs = float((host(dtype) - host("fp32")).std() / host("fp32").std())
        assert 0 < away < max(3 * theirs, 0.02), f"{away:.4f} of fp32, the host's {theirs:.4f}"

    return check


def video(bench: Bench, kind: Kind) -> None:
    """Latents [B, C, T, H, W] of a video model: the first of a batch of 2 equals the single one."""
    result = bench.plain(kind, which="wan", batch=2)
    assert result.latents.shape == (2, 16, 3, 6, 8)
    check_counts(result, kind)
    assert_close(result.latents[:1], bench.plain(kind, which="wan").latents)
    if kind.file == "network":
        assert "no bottleneck could be captured" in result.report


def windows(bench: Bench, kind: Kind) -> None:
    """Context windows over the frames of a video."""
    g = Small("wan", length=25)
    wanted = {"context_length": 4, "context_overlap": 1, "context_schedule": "standard_static",
              "context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "dim": 2}  # fmt: skip
    inputs = bench.server.object_info()["ContextWindowsManual"]["input"]["required"]
    usual = {name: declared[1]["default"] for name, declared in inputs.items() if "default" in declared[-1]}
    g.patch("ContextWindowsManual", **usual | wanted)
    result = bench.run(g, g.sample(kind))
    assert result.latents.shape[2] == 7
    check_counts(result, kind, None)


def torch_compiled(bench: Bench, kind: Kind) -> None:
    """The network compiled for this CPU gives the plain image and the same count."""
    g = Small().patch("TorchCompileModel", backend="inductor")
    result = bench.run(g, g.sample(kind))
    check_counts(result, kind)
    assert "could be captured" not in result.report
    assert_close(result.latents, bench.plain(kind).latents)


# --- noise levels ------------------------------------------------------------------------------------------


def img2img(denoise: float) -> Check:
    def check(bench: Bench, kind: Kind) -> None:
        g = Small(batch=2)
        g.latent = start = g.ksampler("euler", "karras", 1)
        if "start" not in bench.kept:
            bench.kept["start"] = bench.run(g, start).latents
        before = bench.kept["start"]
        result = bench.run(g, g.sample(kind, denoise=denoise)).latents
        assert result.shape == before.shape
        assert_differs(result, before)

    return check


HIGH = 14.614641


def one_level(bench: Bench, kind: Kind) -> None:
    """A single noise level leaves nothing to do: the result is that of the host's own sampler."""
    ends = []
    for host in (False, True):
        g = Small()
        levels = g.levels(HIGH)
        sampler = g.add("KSamplerSelect", sampler_name="euler") if host else g.sampler(kind)[0]
        ends.append(bench.run(g, g.custom(sampler, levels[0], CFG)).latents)
    assert_close(*ends)


def one_step_to_zero(bench: Bench, kind: Kind) -> None:
    """One level and 0: the denoised image in one evaluation, as the host's Euler gives it."""
    ends = []
    for host in (False, True):
        g = Small()
        levels = g.levels(HIGH, 0)
        sampler = g.add("KSamplerSelect", sampler_name="euler") if host else g.sampler(kind)[0]
        result = bench.run(g, g.custom(sampler, levels[0], CFG))
        ends.append(result.latents)
        if not host:
            assert result.counted and result.counted[0] == 1, result.report
    if not kind.around:
        assert_close(*ends)


def with_levels(*levels: float) -> Check:
    def check(bench: Bench, kind: Kind) -> None:
        g = Small()
        result = bench.run(g, g.sample(kind, sigmas=g.levels(*levels)))
        assert result.counted and result.counted[0] >= len([v for v in levels[:-1] if v > 0]), result.report

    return check


def in_two_parts(bench: Bench, kind: Kind) -> None:
    """KSampler (Advanced): the first run leaves its noise, the second continues from there.

    AMED-Solver uses no slope of an earlier interval, so its two parts equal the whole run."""
    g = Small()
    applied = [g.add("AMEDApplyPredictor", model=g.model, predictor=g.loaded(kind)), 0]
    steps = kind.own_steps
    usual = {"model": applied, "steps": steps, "cfg": CFG, "sampler_name": kind.own_sampler,
             "scheduler": "amed", "noise_seed": 3, "positive": g.positive,
             "negative": g.negative}  # fmt: skip
    first = g.add("KSamplerAdvanced", add_noise="enable", latent_image=g.latent, start_at_step=0,
                  end_at_step=steps // 2, return_with_leftover_noise="enable", **usual)  # fmt: skip
    second = g.add("KSamplerAdvanced", add_noise="disable", latent_image=[first, 0],
                   start_at_step=steps // 2, end_at_step=1000, return_with_leftover_noise="disable",
                   **usual)  # fmt: skip
    result = bench.run(g, [second, 0])
    if kind.file == "amed":
        assert_close(result.latents, bench.plain(kind).latents)


# --- a run as a whole --------------------------------------------------------------------------------------


def stopped(bench: Bench, kind: Kind) -> None:
    """Interrupt each evaluation, in its first or second call: no further evaluation may follow.

    After the last evaluation nothing follows, and the run may end normally."""
    g = Small().patch("SmallMemory")
    stops = g.add("SmallStops", model=g.model, positive=g.positive, negative=g.negative, cfg=CFG,
                  latent_image=g.latent, sampler=g.sampler(kind), sigmas=g.sigmas(kind))  # fmt: skip
    records = json.loads(bench.server.run(g.nodes).text(stops))
    assert records["calls"] == kind.passes(2) and records["same"], records
    assert len(records["stops"]) == records["calls"]
    last = records["calls"] - (1 if kind.spared else 2)  # the network's calls before the last evaluation
    for number, calls in records["stops"]:
        at_its_end = calls == "went on" and number > last
        assert at_its_end or number <= calls <= number + 1, records


def two_in_the_queue(bench: Bench, kind: Kind) -> None:
    """Two prompts queued together with different guidance each give what they give alone."""
    sent = []
    for cfg in (CFG, 7.5):
        g = Small()
        shown = g.add("SaveLatent", samples=g.sample(kind, cfg), filename_prefix="queue")
        sent.append((cfg, shown, bench.server.submit(g.nodes)))
    for cfg, shown, prompt in sent:
        while not (history := bench.server.get(f"/history/{prompt}")):
            bench.server.check_alive()
            time.sleep(0.02)
        entry = history[prompt]["outputs"][shown]["latents"][0]
        latents = load(bench.server.view(entry))["latent_tensor"]
        assert_close(latents, bench.plain(kind, cfg=cfg).latents)


def sides(g: Small, second) -> list:
    return [side(g, g.positive, True), side(g, second, False)]


def spans(g: Small, second) -> list:
    return [span(g, g.positive, 0.0, 0.2), span(g, second, 0.2, 1.0)]


REFUSED = dict.fromkeys((*OURS, "around dpmpp_2m"), FALLING)
ROWS = (
    Row("batches of 1, 2 and 5: the first image is the same", batches),
    Row("latents of 9 x 13 and of 5 x 3", odd_sizes),
    *(Row(f"cfg {scale:g}", guidance(scale)) for scale in (1.0, 2.0, 7.5)),
    Row("TorchCompileModel", torch_compiled, {}, ("halves", "network"), ("TorchCompileModel",), slow=True),
    Row("cond and uncond in two calls (low memory)", in_two_calls, kinds=TOUCHED),
    Row("two prompts by masks", same_prompts(sides, None), kinds=TOUCHED),
    Row("two prompts by areas", areas, kinds=TOUCHED),
    Row("two prompts by start and end percent", same_prompts(spans, None), kinds=TOUCHED),
    Row("no prompt before 30 percent", not_always, kinds=TOUCHED),
    *PATCHES,
    Row("weights in bf16", weights_in("bf16")),
    Row("weights in fp16", weights_in("fp16")),
    Row("LATENT in bf16", latents_in("bf16")),
    Row("LATENT in fp16", latents_in("fp16")),
    Row(
        "denoise 0.1", img2img(0.1), {"around dpmpp_2m": r"below this schedule's last level .*Raise denoise"}
    ),
    *(Row(f"denoise {share:g}", img2img(share)) for share in (0.3, 0.6, 0.9)),
    Row("noise levels: one", one_level, kinds=BY_NODES),
    Row("noise levels: one and 0", one_step_to_zero, kinds=BY_NODES),
    Row("noise levels: two, not ending in 0", with_levels(HIGH, 3.0), kinds=BY_NODES),
    Row("noise levels: five, not ending in 0", with_levels(HIGH, 5.0, 2.0, 1.0, 0.5), kinds=BY_NODES),
    Row("noise levels: five and 0", with_levels(HIGH, 5.0, 2.0, 1.0, 0.5, 0), kinds=BY_NODES),
    Row("noise levels: one repeated", with_levels(HIGH, 5.0, 5.0, 1.0, 0), REFUSED, BY_NODES),
    Row("noise levels: rising", with_levels(1.0, 5.0, HIGH), REFUSED, BY_NODES),
    Row("noise levels: 0 repeated", with_levels(HIGH, 5.0, 0, 0), REFUSED, BY_NODES),
    Row("KSampler (Advanced) in two parts", in_two_parts, kinds=(*OURS, EVERY[-1])),
    Row("Latent From Batch: the same image as in the batch", one_of_a_batch, kinds=TOUCHED),
    Row("Repeat Latent Batch", repeated_batch, kinds=TOUCHED),
    Row("Latent Batch", joined_batches, kinds=TOUCHED),
    Row("Latent Batch Seed Behavior, fixed", fixed_seeds, kinds=TOUCHED),
    Row("noise mask: the kept part is unchanged", masked, kinds=TOUCHED),
    Row("video latents [B, C, T, H, W]", video),
    Row("context windows over a video", windows, needs=("ContextWindowsManual",)),
    Row("interrupted in every evaluation", stopped, kinds=BY_NODES),
    Row("two prompts in the queue", two_in_the_queue, kinds=TOUCHED),
)
