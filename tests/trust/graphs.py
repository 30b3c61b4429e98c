"""Random graphs around every node of the pack, in a real ComfyUI: an hour of them by default.

    make graphs                                    an hour; writes a part of docs/TRUST.md
    make graphs ARGS="--minutes 5 --first 20000"   other seeds, less long; the page stays as it is
    make graphs ARGS="--seed 71"                   one graph again
    make graphs ARGS="--file FOUND.json"           a failure that an earlier run wrote, as it was shrunk

What fails is shrunk to the fewest ingredients, printed, and written with its graph (API format, to be dragged
into a ComfyUI that has tests/comfyui/test_nodes) into --out.
"""

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
SHRUNK = 3  # failures of one mechanism that are shrunk; of the others the seed is kept
OUT = ROOT / ".comfyui-data" / "graphs"


@dataclass
class Found:
    """All outcomes, and failures by their mechanism."""

    states: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    ingredients: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[Failure]] = field(default_factory=dict)
    runs: int = 0

    def add(self, outcome: Outcome) -> None:
        self.states[outcome.state] += 1
        self.runs += outcome.runs
        if outcome.state in (RUNS, FAILED):
            self.ways[outcome.recipe.way] += 1
            self.ingredients.update(name for name, _ in outcome.recipe.ingredients)
        if outcome.state == REFUSED:
            self.refusals[" ".join(outcome.reason.split())[:90]] += 1

    def fail(self, failure: Failure) -> bool:
        """Keep it; gives whether enough of its mechanism are known."""
        known = self.failures.setdefault(failure.mechanism, [])
        known.append(failure)
        return len(known) > SHRUNK


def write(folder: Path, failure: Failure, graph: dict[str, Any]) -> Path:
    """A failure as a file; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{failure.invariant}-{failure.recipe.seed}.json"
    told = {
        "invariant": failure.invariant,
        "text": failure.text,
        "recipe": asdict(failure.recipe),
        "graph": graph,
    }
    path.write_text(json.dumps(told, indent=1))
    return path


def hunt(runner: Runner, recipes: Any, found: Found, out: Path, say: Any) -> None:
    """Check recipes, one after the other, and report what fails."""
    for recipe in recipes:
        outcome = runner.check(recipe)
        found.add(outcome)
        for failure in outcome.failures:
            enough = found.fail(failure)
            say(f"FAILED {failure.invariant}: {failure.text[:300]}\n  {recipe.text()}")
            if enough:
                continue
            smallest = runner.shrink(failure)
            path = write(out, smallest, runner.graph_of(smallest.recipe))
            say(f"  as small as it gets, in {path}:\n  {text_of(smallest)}")


def drawn(first: int, minutes: float, found: Found, say: Any) -> Any:
    """Recipes of one seed after the other until the time is up."""
    end, seed, told = time.monotonic() + 60 * minutes, first, 0.0
    while time.monotonic() < end:
        yield draw(seed)
        seed += 1
        if time.monotonic() - told > 60:
            told = time.monotonic()
            states = ", ".join(f"{count} {state}" for state, count in found.states.items())
            say(f"{(end - told) / 60:.0f} minutes left, at seed {seed}: {states}")


def part(found: Found, host: str, minutes: float) -> page.Part:
    graphs = sum(count for state, count in found.states.items() if state != INVALID)
    about = (
        "Random graphs: models (U-Net, video transformer, Flux, the demo model, a checkpoint file) with "
        "LoRAs, merges, guidance and attention patches, caches, context windows, hooks, ControlNet, regional "
        "prompts, masks, batches, lists, other dtypes and sizes, around each of our nodes. Each must run or "
        "say in one clear line why not, count its evaluations truly, give the same image alone, in a batch "
        "and in a list, give the host's own image with a plain solver, leave nothing on the MODEL, report "
        "what ran, and be cached when it is run again."
    )
    failed = [f"{len(own)}: {mechanism}" for mechanism, own in found.failures.items()]
    rows = [
        ("host", f"ComfyUI {host}"),
        ("graphs, in minutes", f"{graphs:,} in {minutes:.0f}"),
        ("prompts run for them", f"{found.runs:,}"),
        (
            "ways to sample, ingredients",
            f"{len(found.ways)} of {sum(way.often > 0 for way in WAYS.values())}, {len(found.ingredients)}",
        ),
        ("that ran", f"{found.states[RUNS]:,}"),
        ("that were refused in a clear line", f"{found.states[REFUSED]:,}, {len(found.refusals)} lines"),
        ("drawn, but the host itself cannot run them", f"{found.states[INVALID]:,}"),
        (f"that broke one of {len(INVARIANTS)} invariants", f"{found.states[FAILED]:,}"),
        *(("failure", text.replace("|", "/")) for text in failed),
    ]
    return page.Part("graphs", "Random graphs", "make graphs", about, rows)


def asked(options: argparse.Namespace) -> list[Recipe]:
    """The recipes that a person named; none: draw."""
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
    found, begin = Found(), time.monotonic()

    def say(text: str) -> None:
        print(text, flush=True)

    with tempfile.TemporaryDirectory(prefix="amed-graphs-") as folder:
        base, named = Path(folder), asked(options)
        write_tiny_models(base)
        files.write(base)
        server = Server(base)
        server.start(timeout=1800)  # the machine may be busy
        try:
            recipes = named or drawn(options.first, options.minutes, found, say)
            hunt(Runner(server), recipes, found, options.out, say)
        finally:
            server.stop()
    made = part(found, version(comfyui.find()), (time.monotonic() - begin) / 60)
    for what, figure in made.rows:
        say(f"{what}: {figure}")
    for line, count in found.refusals.most_common():
        say(f"refused, {count} times: {line}")
    for mechanism, own in found.failures.items():
        say(f"{len(own)} failures, seeds {sorted({f.recipe.seed for f in own})[:12]}: {mechanism}")
    if not named and options.minutes >= MINUTES:
        page.put(made)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
