"""Random graphs around every node of the pack, in a real ComfyUI; by default for an hour.

    make graphs                                    an hour; writes a part of docs/TRUST.md
    make graphs ARGS="--minutes 5 --first 20000"   other seeds, shorter; the page is not changed
    make graphs ARGS="--seed 71"                   one graph again
    make graphs ARGS="--file FOUND.json"           a shrunk failure that an earlier run wrote

Failures are shrunk to the fewest ingredients, printed, and written with their graphs to --out (API format,
for a ComfyUI that has tests/comfyui/test_nodes)."""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from comfyui.conftest import write_tiny_models
from comfyui.graphs import files
from comfyui.graphs.invariants import INVARIANTS
from comfyui.graphs.recipe import Recipe, draw, from_json
from comfyui.graphs.runner import FAILED, INVALID, REFUSED, RUNS, Failure, Outcome, Runner, text_of
from comfyui.graphs.ways import WAYS
from trust import page
from trust.soak import version

from demo import comfyui
from demo.comfyui import ROOT, Server

MINUTES, FIRST = 60.0, 10_000
SHRUNK = 3  # failures shrunk per mechanism; of further ones only the seed is recorded
OUT = ROOT / ".comfyui-data" / "graphs"


@dataclass
class Findings:
    """The results of all recipes so far."""

    states: Counter[str] = field(default_factory=Counter)  # recipes by outcome
    ways: Counter[str] = field(default_factory=Counter)
    ingredients: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)  # refusals by message
    failures: dict[str, list[Failure]] = field(default_factory=dict)  # by mechanism
    runs: int = 0  # prompts run

    def add(self, outcome: Outcome) -> None:
        self.states[outcome.state] += 1
        self.runs += outcome.runs
        if outcome.state in (RUNS, FAILED):
            self.ways[outcome.recipe.way] += 1
            self.ingredients.update(name for name, _ in outcome.recipe.ingredients)
        if outcome.state == REFUSED:
            self.refusals[" ".join(outcome.reason.split())[:90]] += 1

    def fail(self, failure: Failure) -> bool:
        """Record a failure; return whether enough of its mechanism are known."""
        same_mechanism = self.failures.setdefault(failure.mechanism, [])
        same_mechanism.append(failure)
        return len(same_mechanism) > SHRUNK


def write(folder: Path, failure: Failure, graph: dict[str, Any]) -> Path:
    """Write a failure to a file; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{failure.invariant}-{failure.recipe.seed}.json"
    record = {
        "invariant": failure.invariant,
        "text": failure.text,
        "recipe": asdict(failure.recipe),
        "graph": graph,
    }
    path.write_text(json.dumps(record, indent=1))
    return path


def hunt(runner: Runner, recipes: Any, findings: Findings, out: Path, say: Any) -> None:
    """Check recipes one after the other, and report failures."""
    for recipe in recipes:
        outcome = runner.check(recipe)
        findings.add(outcome)
        for failure in outcome.failures:
            enough = findings.fail(failure)
            say(f"FAILED {failure.invariant}: {failure.text[:300]}\n  {recipe.text()}")
            if enough:
                continue
            smallest = runner.shrink(failure)
            path = write(out, smallest, runner.graph_of(smallest.recipe))
            say(f"  as small as it gets, in {path}:\n  {text_of(smallest)}")


def drawn(first: int, minutes: float, findings: Findings, say: Any) -> Any:
    """Yield recipes of consecutive seeds until the time is up."""
    end, seed, last_report = time.monotonic() + 60 * minutes, first, 0.0
    while time.monotonic() < end:
        yield draw(seed)
        seed += 1
        if time.monotonic() - last_report > 60:
            last_report = time.monotonic()
            states = ", ".join(f"{count} {state}" for state, count in findings.states.items())
            say(f"{(end - last_report) / 60:.0f} minutes left, at seed {seed}: {states}")


def part(findings: Findings, host: str, minutes: float) -> page.Part:
    graphs = sum(count for state, count in findings.states.items() if state != INVALID)
    about = (
        "Random graphs of models (U-Net, video transformer, Flux, the demo model, a checkpoint "
        "file) with LoRAs, merges, guidance and attention patches, caches, context windows, hooks, "
        "ControlNet, regional prompts, masks, batches, lists, other dtypes and sizes, around each "
        "of our nodes. Each graph must run, or say in one clear line why not; report its true "
        "number of evaluations; give the same image alone, in a batch and in a list, and the host's "
        "own image with a plain solver; leave nothing on the MODEL; report what ran; and be cached "
        "when it is run again."
    )
    failed = [f"{len(failures)}: {mechanism}" for mechanism, failures in findings.failures.items()]
    rows = [
        ("host", f"ComfyUI {host}"),
        ("graphs; minutes", f"{graphs:,} in {minutes:.0f}"),
        ("prompts run", f"{findings.runs:,}"),
        (
            "ways to sample; ingredients",
            f"{len(findings.ways)} of {sum(way.often > 0 for way in WAYS.values())}, "
            f"{len(findings.ingredients)}",
        ),
        ("graphs that ran", f"{findings.states[RUNS]:,}"),
        ("graphs refused in one clear line", f"{findings.states[REFUSED]:,}, {len(findings.refusals)} lines"),
        ("graphs that the host itself cannot run", f"{findings.states[INVALID]:,}"),
        (f"graphs that broke one of {len(INVARIANTS)} invariants", f"{findings.states[FAILED]:,}"),
        *(("failure", text.replace("|", "/")) for text in failed),
    ]
    return page.Part("graphs", "Random graphs", "make graphs", about, rows)


def requested_recipes(options: argparse.Namespace) -> list[Recipe]:
    """Return the recipes named on the command line; none: draw them."""
    read = [json.dumps(json.loads(path.read_text())["recipe"]) for path in options.file]
    return [from_json(text) for text in read] + [draw(seed) for seed in options.seed]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--first", type=int, default=FIRST, help="the first seed")
    parser.add_argument("--seed", type=int, nargs="+", default=[], help="these alone")
    parser.add_argument("--file", type=Path, nargs="+", default=[], help="failures that were written")
    parser.add_argument("--out", type=Path, default=OUT, help="where failures are written")
    options = parser.parse_args()
    findings, begin = Findings(), time.monotonic()

    def say(text: str) -> None:
        print(text, flush=True)

    with tempfile.TemporaryDirectory(prefix="amed-graphs-") as folder:
        base, named = Path(folder), requested_recipes(options)
        write_tiny_models(base)
        files.write(base)
        server = Server(base)
        server.start(timeout=1800)  # the machine may be busy
        try:
            recipes = named or drawn(options.first, options.minutes, findings, say)
            hunt(Runner(server), recipes, findings, options.out, say)
        finally:
            server.stop()
    written_part = part(findings, version(comfyui.find()), (time.monotonic() - begin) / 60)
    for row_name, figure in written_part.rows:
        say(f"{row_name}: {figure}")
    for line, count in findings.refusals.most_common():
        say(f"refused, {count} times: {line}")
    for mechanism, failures in findings.failures.items():
        say(f"{len(failures)} failures, seeds {sorted({f.recipe.seed for f in failures})[:12]}: {mechanism}")
    if not named and options.minutes >= MINUTES:
        page.put(written_part)
    return 1 if findings.failures else 0


if __name__ == "__main__":
    sys.exit(main())
