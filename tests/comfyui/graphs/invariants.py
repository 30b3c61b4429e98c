"""INVARIANTS: what must hold for every graph that runs or is refused.

Each is a function of a Case that raises Broken. It raises Invalid for a graph that the host itself cannot
run."""

import math
import re
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from amed import Fitted

from .build import LIST, NUMBERED, START, WHOLE
from .recipe import Recipe
from .run import Error, Run
from .ways import HOST, HOSTS_OWN, WAYS


class Broken(AssertionError):
    """Raised if an invariant does not hold."""


class Invalid(Exception):
    """Raised if the host's own sampler cannot run the graph either, so that it says nothing about this
    pack."""


class Case(Protocol):
    """A recipe, and the results of its graph."""

    recipe: Recipe
    batch_run: Run
    fits: list[Fitted]
    """Predictor files that the run wrote."""

    def run(self, variant: str = WHOLE, way: str = "", more: tuple = (), **settings: object) -> Run:
        """Run again: another variant or way, more ingredients, or other settings."""

    def again(self) -> Run:
        """Run the same graph once more."""

    def names(self) -> list[str]:
        """Return the names of the existing predictor files."""


# --- it runs, or says in one clear line why not ------------------------------------------------------------

INTERNAL = (
    r"Tensor|NoneType|has no attribute|size of tensor|must match|KeyError|IndexError|not subscriptable|"
    r"not iterable|out of range|unexpected keyword|positional argument|Traceback|aten::|CUDA error|"
    r"mat1|Expected all|cannot reshape|shape '\[|Overflow|unpack|No sample_sigmas|__\w+__|object at 0x|"
    r"bigger than max|smaller than min|division by zero|nan\b"
)
TYPES = ("ValueError", "CachedError", "RuntimeError", "PredictorError", "UnsavedError", "StoppedError")
LONGEST, LINES = 400, 4


def unclear(text: str) -> str | None:
    """Return why a message is not one clear line for an artist; None if it is."""
    lines = text.strip().splitlines()
    if not lines or len(lines[0].split()) < 5:
        return "it says too little"
    if match := re.search(INTERNAL, text):
        return f"it speaks of internals ({match[0]!r})"
    if len(lines) > LINES or max(map(len, lines)) > LONGEST:
        return "it is too long"
    return None


def unclear_error(error: Error) -> str | None:
    """Return why an error that stopped a run is unclear; it must be raised deliberately by this pack."""
    kind = error.kind.split(".")[-1]
    if kind not in TYPES:
        return f"it is a {kind}"
    if not error.ours:
        return f"it is raised in {error.place}, not by this pack"
    return unclear(error.message)


def runs_or_says_why(case: Case) -> None:
    run = case.batch_run
    if run.died:
        raise Broken(run.died)
    if run.error is None:
        return
    if run.error.node in ("GraphBefore", "GraphModel", "GraphWatch"):
        raise Invalid(run.error.message)
    if not run.error.reached:  # a node of the host that runs before ours
        raise Invalid(f"{run.error.node}: {run.error.message}")
    windows = case.recipe.has("ContextWindowsManual", "WanContextWindowsManual")
    if windows and "wrapped by a pack" in case.recipe.way and "No sample_sigmas matched" in run.error.message:
        raise Invalid("a pack that changes the noise level takes the host's own Euler from its windows too")
    kind = run.error.kind
    planted = case.recipe.settings.get("fault")  # on the MODEL, so the host fails too
    if not planted and not run.error.ours and WAYS[case.recipe.way].images:  # possibly with other steps
        for steps in (4, 8, 16):
            theirs = case.run(WHOLE, HOSTS_OWN, hosts_steps=steps).error
            if theirs is not None and theirs.kind == kind:
                raise Invalid(f"the host's own Euler of {steps} steps: {theirs.message}")
    if why := unclear_error(run.error):
        raise Broken(f"{run.error.node}: {run.error.message.strip()[:300]} [{why}]")


def images_are_whole(case: Case) -> None:
    """Images are finite, not blank, one per image of the LATENT. (A grey mask on an empty one may keep
    everything.)"""
    keeps_all = case.recipe.has("DifferentialDiffusion") and case.recipe.has("noise mask")
    for latents in case.batch_run.latents:
        if not latents.isfinite().all():
            raise Broken("the image is not finite")
        if float(latents.float().std()) < 1e-3 and not keeps_all:
            raise Broken("the image is blank")


# --- counts and reports ------------------------------------------------------------------------------------

COUNTED = re.compile(r"evaluations counted: (\d+)(?:, (\d+) network passes per image)?")
BRIEF = re.compile(r"AMED: (\d+) evaluations?(?:, (\d+) passes per image)?")
USED = re.compile(r"(\d+) evaluations?, (\d+) rows")


def reported(run: Run) -> list[tuple[int, int | None]]:
    """Return the evaluations and passes per image of each reported run, in order."""
    counts = []
    for node in run.sampled.runs:
        for text in run.texts(node):
            match = COUNTED.search(text) or BRIEF.search(text)
            if match:
                counts.append((int(match[1]), int(match[2]) if match[2] else None))
    return counts


def counts_are_true(case: Case) -> None:
    """Reported numbers equal those counted around the network."""
    run = case.batch_run
    if not run.sampled.runs or WAYS[case.recipe.way].fits or run.network_counts is None:
        return
    reports = reported(run)
    if not reports:
        raise Broken(f"no report: {[run.texts(n) for n in run.sampled.runs]}")
    evaluations = sum(count for count, _ in reports)
    if evaluations != run.network_counts["evaluations"]:
        raise Broken(
            f"{evaluations} evaluations reported, {run.network_counts['evaluations']} counted at the network"
        )
    images = sum(len(latents) for latents in run.latents)
    if len(reports) == 1 and reports[0][1] is not None and images:
        passes = round(run.network_counts["rows"] / images)
        if passes != reports[0][1]:
            raise Broken(
                f"{reports[0][1]} passes per image reported, {passes} counted ({run.network_counts['rows']})"
            )
    evaluations = run.network_counts["evaluations"]
    for node in run.sampled.used:
        for text in run.texts(node):
            match = USED.search(text)
            reports = (int(match[1]), int(match[2])) if match else (0, 0)
            # LazyCache answers before the evaluation is counted, EasyCache before the network is called
            fewer = case.recipe.has("LazyCache") and reports[0] < evaluations
            spared = case.recipe.has("EasyCache") and reports[1] < run.network_counts["rows"]
            if (reports[1] != run.network_counts["rows"] and not spared) or (
                reports[0] != evaluations and not fewer
            ):
                raise Broken(
                    f"Evaluations Used says {text!r}, counted around the network: {run.network_counts}"
                )


def takes_the_evaluations_asked_for(case: Case) -> None:
    """AMED KSampler from noise takes exactly nfe evaluations; with a mask it has no analytic first step."""
    recipe, run = case.recipe, case.batch_run
    if recipe.way not in ("AMED KSampler", "counted", "list of checkpoints") or recipe["denoise"] < 1.0:
        return
    for evaluations, _ in reported(run):
        more = recipe.has("noise mask") and evaluations == recipe["nfe"] + 1
        if evaluations != recipe["nfe"] and not more:
            raise Broken(f"nfe {recipe['nfe']} was asked for, {evaluations} evaluations were made")


def report_is_true(case: Case) -> None:
    """The named predictor exists and is the requested one; nothing comes from the workflow, which carries
    nothing; no advice is already followed."""
    recipe, run = case.recipe, case.batch_run
    texts = [text for node in (*run.sampled.runs, *run.sampled.texts) for text in run.texts(node)]
    for text in texts:
        if "from the workflow" in text:
            raise Broken(f"the workflow carried nothing: {text!r}")
        for note in re.findall(r"note: (.*)", text):
            if found := re.search(INTERNAL, note):
                raise Broken(f"a note speaks of internals ({found[0]!r}): {note[:300]}")
        for pattern, followed in ADVICE:
            match = re.search(pattern, text)
            if match and followed(recipe, match):
                raise Broken(f"advice that is followed already: {match[0]!r}")
    for node in run.sampled.runs:
        for text in run.texts(node):
            named = re.search(r"predictor: (\S+\.safetensors)", text)
            if named is None:
                continue
            if named[1] not in case.names():
                raise Broken(f"there is no {named[1]}, which ran: {text!r}")
            if (requested := recipe.settings.get("file")) and named[1] != requested:
                raise Broken(f"{requested} was chosen, {named[1]} ran")


def on_the_schedule(recipe: Recipe, match: re.Match[str]) -> bool:
    """Return whether a run already follows "choose the amed schedule with N steps, or AMED Scheduler"."""
    if recipe.way == "ordinary KSampler":
        on_full_schedule = recipe["scheduler"] == "amed" and recipe["denoise"] == 1.0
        return on_full_schedule and recipe["steps"] == int(match[1])
    return (
        recipe.way in ("SamplerCustom", "SamplerCustomAdvanced")
        and recipe["denoise"] == 1.0
        and bool(recipe["file"])
    )


ADVICE: tuple[tuple[str, Callable[[Recipe, re.Match[str]], bool]], ...] = (
    (r"choose the amed schedule with (\d+) steps", on_the_schedule),
    (r"set nfe to (\d+)", lambda recipe, match: recipe.settings.get("nfe") == int(match[1])),
    (r"set sampler to auto", lambda recipe, match: recipe.settings.get("sampler") == "auto"),
    (r"Raise denoise", lambda recipe, match: recipe.settings.get("denoise") == 1.0),
    (r"Set passes to 0", lambda recipe, match: recipe.settings.get("passes") == 0),
    (r"[Ss]et if_missing to plain", lambda recipe, match: recipe.settings.get("if_missing") == "plain"),
)


def no_text_speaks_of_internals(case: Case) -> None:
    """Check the tables of Compare AMED and the texts of the other nodes."""
    for node in case.batch_run.sampled.texts:
        for text in case.batch_run.texts(node):
            if match := re.search(INTERNAL, re.sub(r"-?inf\b", "nan", text)):
                at = max(match.start() - 80, 0)
                raise Broken(f"a text says {text[at : at + 200]!r} ({match[0]!r})")


# --- the same image in every variant -----------------------------------------------------------------------

SHARES = {"fp32": 2e-3, "bf16": 0.15, "fp16": 0.1}
"""Largest difference of two latents that are the same but for the order of sums, over their spread. Seen at
most, in 31 graphs: 1e-4, 0.004 and 0.04 (guidance of 5 and UniPC carry a rounding of the network far)."""


ALIKE = 16  # torch draws the same noise for a batch and its images if their size is a multiple of this


def relative_difference(first: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the other's spread."""
    if first.shape != other.shape:
        return math.inf
    return float((first.float() - other.float()).abs().max() / other.float().std().clamp(min=1e-9))


def tolerance_of(recipe: Recipe) -> float:
    """Return the relative difference that two runs of a recipe may have."""
    low = [ingredient["dtype"] for name, ingredient in recipe.ingredients if name == "SmallLatent"] + [
        recipe["dtype"]
    ]
    return max(SHARES[dtype] for dtype in low)


def same_alone_and_in_lists(case: Case) -> None:
    """Each image of a batch equals the one that its LATENT gives alone and in a list.

    Batches that the host's own Euler changes too are excepted: some features look at the whole batch."""
    recipe, batch = case.recipe, case.batch_run
    if not WAYS[recipe.way].images or recipe.joint or WAYS[recipe.way].fits or len(batch.latents) != 1:
        return
    images, all_of = batch.latents[0], WHOLE
    if len(images) < 2:
        return
    if images[0].numel() % ALIKE or recipe.way == "upscale and refine":
        all_of, numbered = NUMBERED, case.run(NUMBERED)
        if not numbered.latents:
            raise Broken("the batch runs, with its images numbered it does not")
        images = numbered.latents[0]
    number = len(images) - 1
    for variant, expected in ((str(number), images[number:]), (LIST, images)):
        run = case.run(variant)
        if not run.latents:
            problem = run.died or (run.error.message if run.error else "no image")
            raise Broken(f"the batch runs, {variant} does not: {problem}"[:400])
        share = tolerance_of(recipe)
        if relative_difference(torch.cat(run.latents), expected) > share:
            theirs = case.run(all_of, HOSTS_OWN).latents, case.run(variant, HOSTS_OWN).latents
            alike = (
                theirs[0]
                and theirs[1]
                and relative_difference(torch.cat(theirs[1]), theirs[0][0][-len(expected) :])
            )
            share = max(share, 5 * alike) if alike and alike < share else math.inf
        case_of = "in a list" if variant == LIST else f"number {number} alone"
        compare(torch.cat(run.latents), expected, share, f"{case_of}: another image than in the batch")
        if variant == LIST:
            check_list_reports(case, run)


def check_list_reports(case: Case, run: Run) -> None:
    """Each item's report equals the batch's."""
    for node in run.sampled.runs:
        first = [strip(text) for text in case.batch_run.texts(node) if COUNTED.search(text)]
        for text in run.texts(node):
            if COUNTED.search(text) and first and strip(text) != first[0]:
                raise Broken(f"in a list an item's report is {text!r}, of the batch {first[0]!r}")


def strip(text: str) -> str:
    return text.strip()


def list_of_checkpoints_is_each(case: Case) -> None:
    """In a list of two checkpoints each image equals the one of its checkpoint."""
    if case.recipe.way != "list of checkpoints" or case.batch_run.error or len(case.batch_run.latents) != 2:
        return
    texts = [t for n in case.batch_run.sampled.runs for t in case.batch_run.texts(n) if COUNTED.search(t)]
    for number, which in enumerate(("first", "second")):
        run = case.run(which=which)
        if run.error or run.died or not run.latents:
            raise Broken(f"the list runs, {which} alone does not: {run.error and run.error.message}")
        alone = run.latents[0]
        compare(
            case.batch_run.latents[number],
            alone,
            tolerance_of(case.recipe),
            f"the {which} checkpoint in a list",
        )
        own_texts = [t for n in run.sampled.runs for t in run.texts(n) if COUNTED.search(t)]
        if len(texts) == 2 and own_texts and strip(texts[number]) != strip(own_texts[0]):
            raise Broken(
                f"in a list the {which} checkpoint's report is {texts[number]!r}, alone {own_texts[0]!r}"
            )


def compare(image: Tensor, expected: Tensor, share: float, label: str) -> None:
    if not (difference := relative_difference(image, expected)) <= share:
        raise Broken(f"{label}: {difference:.3g} of its spread away (allowed {share:g})")


def plain_is_the_hosts(case: Case) -> None:
    """AMED Plain Solver equals the host's sampler of that name on the same noise levels.

    With a mask they end differently above 0: the host leaves the last noise on the kept part."""
    recipe = case.recipe
    if recipe.way != "AMED Plain Solver" or recipe["solver"] not in HOST:
        return
    run = (
        Run(case.batch_run.sampled)
        if recipe.has("noise mask") and not recipe["zero"]
        else case.run(by_host=True)
    )
    if run.latents:
        share = 5 * tolerance_of(recipe)
        compare(case.batch_run.latents[0], run.latents[0], share, f"not the host's {HOST[recipe['solver']]}")


def masks_keep(case: Case) -> None:
    """The part kept by a hard mask equals the start: the left half, except for its border."""
    recipe, batch = case.recipe, case.batch_run
    hard = any(name == "noise mask" and inputs["kind"] != "grey" for name, inputs in recipe.ingredients)
    if not hard or len(batch.latents) != 1 or WAYS[recipe.way].empty or recipe.way == "upscale and refine":
        return
    if recipe.base in ("wan", "flux") and not recipe.has("from an image"):
        return  # an empty LATENT is 0 in their network's own space, and not 0 outside it
    start = case.run(START).latents
    if not start or start[0].shape != batch.latents[0].shape:
        return
    columns = start[0].shape[-1] // 2 - 1
    result_part, start_part = batch.latents[0][..., :columns], start[0][..., :columns]
    difference = float(
        (result_part.float() - start_part.float()).abs().max() / batch.latents[0].float().std()
    )
    if not difference <= 5 * tolerance_of(recipe):
        raise Broken(f"what the mask keeps is {difference:.3g} of the image's spread away from the start")


# --- changes left behind -----------------------------------------------------------------------------------


def nothing_is_left(case: Case) -> None:
    after = case.batch_run.after
    if after is None:
        return
    if after["changed"]:
        raise Broken(f"left on the MODEL: {', '.join(after['changed'])}")
    if not after["away"] <= 1e-5:
        raise Broken(
            f"the host's Euler gives another image afterwards: {after['away']:.3g} of its spread away"
        )


def again_is_cached(case: Case) -> None:
    """Running the same prompt again executes no node; after a fit, which changes the library, the third
    run."""
    again = case.again()
    if case.recipe.way == "calibrate now" and not again.error:
        if new := [fit.name for fit in case.fits[1:]]:
            raise Broken(f"fitted again on the second run: {', '.join(new)}")
        again = case.again()
    elif WAYS[case.recipe.way].fits or case.recipe.way == "files":
        again = case.again()
    if again.error or again.died:
        raise Broken(f"the second run fails: {again.died or again.error.message}"[:300])
    if again.executed:
        raise Broken(f"run again: {', '.join(sorted(set(again.executed)))}")


# --- fits --------------------------------------------------------------------------------------------------


SCALES = {
    "sd15": 0.18215,
    "file": 0.18215,
    "flux": 0.3611,
}  # scale from a LATENT to the network's input; 1 for other bases
FAR = 1.2  # share of the images' root mean square; beyond it no sampling at all is nearer to the reference


def fits_are_sound(case: Case) -> None:
    """A fit saves a finite error, and auto does not choose one that is no better than no sampling.

    A kept plain solver is the best of its list, and the network itself answers every evaluation."""
    if not WAYS[case.recipe.way].fits:
        return
    for fitted in case.fits:
        metrics = fitted.spec.metrics
        error, plain = metrics.get("error"), metrics.get("plain_error")
        if case.recipe.way == "Train AMED Predictor" and error is None:
            continue
        if error is None or not math.isfinite(float(error)):
            raise Broken(f"{fitted.name} states the error {error}")
        if plain is not None and float(error) > float(plain) * 1.001:
            raise Broken(f"{fitted.name} states the error {error:.4g}, its best plain solver {plain:.4g}")
        size = max(
            (float(v.float().square().mean().sqrt()) for v in case.batch_run.latents), default=math.inf
        )
        masked = case.recipe.has("noise mask")  # left out of fits, so the images are no measure for it
        far = float(error) > FAR * size * SCALES.get(case.recipe.base, 1.0)
        if far and not masked and report_if_chosen(case, fitted):
            raise Broken(f"auto takes {fitted.name} with the error {error:.4g}: no sampling at all is nearer")
    counts = case.batch_run.network_counts
    cached = case.recipe.has("EasyCache", "LazyCache")
    copied = (
        case.recipe.way == "Train AMED Predictor"
    )  # its network is a copy, whose calls are not counted here
    if (
        counts
        and cached
        and not copied
        and not case.batch_run.error
        and counts["forwards"] < 0.98 * counts["calls"]
    ):
        skipped = counts["calls"] - counts["forwards"]
        raise Broken(
            f"{skipped} of {counts['calls']} calls of the network were answered by a cache, without a remark"
        )


def report_if_chosen(case: Case, fitted: Fitted, *more: tuple[str, dict]) -> str | None:
    """Return the report of AMED KSampler if it chooses the file by itself. `more`: further ingredients."""
    inputs = {"sampler": "auto", "file": "", "if_missing": "plain", "nfe": fitted.nfe, "denoise": 1.0}
    run = case.run(way="AMED KSampler", more=more, workflow=False, **inputs)
    texts = [text for node in run.sampled.runs for text in run.texts(node)]
    return next((text for text in texts if f"predictor: {fitted.name}" in text), None)


MERGE, LORA = ("ModelMergeSimple", {"ratio": 0.3}), ("LoRA", {"strength": 0.5})


def fits_are_for_their_checkpoint(case: Case) -> None:
    """On a merge, which is another checkpoint, a fit runs only with a remark; with a LoRA it runs."""
    recipe = case.recipe
    if recipe.way != "Calibrate AMED" or recipe["wrapped"] or recipe.base not in ("sd15", "wan", "flux"):
        return
    for fitted in case.fits[:1]:
        if not report_if_chosen(case, fitted):
            continue
        merged = None if recipe.has(*MERGES) else report_if_chosen(case, fitted, MERGE)
        if merged and "note:" not in merged:
            raise Broken(f"{fitted.name} of one checkpoint runs on a merge of two, without a word")
        if recipe.base == "sd15" and not recipe.has("LoRA") and not report_if_chosen(case, fitted, LORA):
            raise Broken(f"{fitted.name} is not found any more once there is a LoRA")


MERGES = ("ModelMergeSimple", "ModelMergeBlocks", "add difference")


def pictures_are_sound(case: Case) -> None:
    """In Compare AMED each of our samplers takes the requested evaluations, or a note says why not.

    In AMED Trajectory Plot every evaluation calls the network (a cache answers within a run, but not here).
    """
    recipe, run = case.recipe, case.batch_run
    if recipe.way == "Compare AMED":
        for row in rows_of("\n".join(t for n in run.sampled.texts for t in run.texts(n))):
            took, ours = row["evaluations"], row["sampler"].startswith(("amed", "plain"))
            if took and ours and not row["note"] and not recipe.has("noise mask"):
                fewer = recipe.has("EasyCache", "LazyCache") and float(took) < recipe["nfe"]
                if float(took) != recipe["nfe"] and not fewer:
                    raise Broken(
                        f"{row['sampler']} took {took} evaluations of {recipe['nfe']}, without a remark"
                    )
            if not row["evaluations"] and (why := unclear(row["note"])):
                raise Broken(f"{row['sampler']} gave no image, and says {row['note'][:200]!r} [{why}]")
    if recipe.way == "AMED Trajectory Plot" and not recipe.has("EasyCache", "LazyCache"):
        counts = run.network_counts
        if counts and counts["forwards"] < counts["calls"]:
            raise Broken(
                f"{counts['calls'] - counts['forwards']} of {counts['calls']} network calls were not made"
            )


def rows_of(text: str) -> list[dict[str, str]]:
    """Return the rows of a Markdown table, by its header."""
    lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if "|" in line
    ]
    return [dict(zip(lines[0], row)) for row in lines[2:] if len(row) == len(lines[0])] if lines else []


INVARIANTS: tuple[Callable[[Case], None], ...] = (
    runs_or_says_why, images_are_whole, counts_are_true, takes_the_evaluations_asked_for, report_is_true,
    no_text_speaks_of_internals, nothing_is_left, pictures_are_sound, again_is_cached, fits_are_sound,
    fits_are_for_their_checkpoint, masks_keep, plain_is_the_hosts, list_of_checkpoints_is_each,
    same_alone_and_in_lists,
)  # fmt: skip
"""In this order: the first decides whether there is anything to look at; from `again_is_cached` on they run
graphs of their own, and the host's cache holds the nodes of the last one."""
