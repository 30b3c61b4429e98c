"""Run recipes in a server, check every invariant, and shrink failures."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from amed import Fitted, PredictorError, load
from demo.comfyui import Server

from .build import WHOLE, build
from .invariants import INVARIANTS, Broken, Invalid
from .recipe import USUAL, Recipe, to_json
from .run import Run, run
from .ways import WAYS

TIMEOUT, SLOW = 300.0, 1200.0  # seconds until a run, or a fit, counts as hanging
TRIALS = 14  # runs used to shrink a failure
RUNS, REFUSED, INVALID, FAILED = "runs", "refused", "not a graph of the host's", "failed"


@dataclass(frozen=True)
class Failure:
    recipe: Recipe
    invariant: str
    text: str

    @property
    def mechanism(self) -> str:
        """The failure's text without numbers and file names, which failures of one cause have in common."""
        words = re.sub(r"\S+\.safetensors|0x\w+", "FILE", self.text)
        return f"{self.invariant}: {re.sub(r'[0-9][0-9.e+-]*', '#', words)[:110]}"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a recipe."""

    recipe: Recipe
    state: str  # RUNS, REFUSED, INVALID or FAILED
    reason: str = ""  # message of a refusal, or why the graph is invalid
    failures: tuple[Failure, ...] = ()
    runs: int = 1


@dataclass
class Runner:
    """Runs graphs in a server, which it restarts if it dies or hangs, and removes predictor files that they
    wrote."""

    server: Server
    runs: int = 0

    @property
    def folder(self) -> Path:
        return self.server.base / "models" / "amed_predictors"

    def files(self) -> set[Path]:
        return set(self.folder.glob("*.safetensors"))

    def graph(self, recipe: Recipe, variant: str = WHOLE, looks: bool = True) -> Run:
        self.runs += 1
        result = run(self.server, build(recipe, variant, looks), recipe["workflow"],
                     SLOW if WAYS[recipe.way].slow else TIMEOUT)  # fmt: skip
        if result.died:
            self.server.stop()
            self.server.start(timeout=600)
        return result

    def check(self, recipe: Recipe, invariants: tuple[Callable[..., None], ...] = INVARIANTS) -> Outcome:
        before, first = self.files(), self.runs
        try:
            return self.checked(recipe, before, invariants, first)
        finally:
            for file in self.files() - before:
                file.unlink()

    def checked(self, recipe: Recipe, before: set[Path], invariants: tuple, first: int) -> Outcome:
        case, failures = Running(self, recipe, before), []
        for invariant in invariants:
            try:
                invariant(case)
            except Invalid as why:
                return Outcome(recipe, INVALID, str(why), runs=self.runs - first)
            except Broken as why:
                failures.append(Failure(recipe, invariant.__name__, str(why)))
            if case.batch_run.died or (case.batch_run.error and not failures and invariant is invariants[0]):
                break
            if failures and invariant is invariants[0]:
                break
        error = case.batch_run.error
        state = FAILED if failures else REFUSED if error else RUNS
        reason = error.message if error and not failures else ""
        return Outcome(recipe, state, reason, tuple(failures), self.runs - first)

    def shrink(self, failure: Failure, trials: int = TRIALS) -> Failure:
        """Return the same failure with as few ingredients and as many usual settings as can be found."""
        index = [invariant.__name__ for invariant in INVARIANTS].index(failure.invariant)
        invariants = (INVARIANTS[0], INVARIANTS[index]) if index else INVARIANTS[:1]
        smallest, progress = failure, True
        while progress and trials > 0:
            progress = False
            for recipe in smaller_recipes(smallest.recipe):
                if trials <= 0:
                    break
                trials -= 1
                same_failures = [
                    f for f in self.check(recipe, invariants).failures if f.mechanism == failure.mechanism
                ]
                if same_failures:
                    smallest, progress = same_failures[0], True
                    break
        return smallest

    def graph_of(self, recipe: Recipe) -> dict[str, Any]:
        return build(recipe).nodes


def smaller_recipes(recipe: Recipe) -> list[Recipe]:
    """Return the recipe without each of its ingredients, and with each setting as usual."""
    fewer = [recipe.without(i) for i in range(len(recipe.ingredients))]
    usual = [recipe.set(**{k: v}) for k, v in USUAL.items() if k in recipe.settings and recipe[k] != v]
    return fewer + usual


@dataclass
class Running:
    """The Case of invariants.py for a Runner."""

    runner: Runner
    recipe: Recipe
    before: set[Path]
    runs: dict[str, Run] = field(default_factory=dict)

    @property
    def batch_run(self) -> Run:
        if WHOLE not in self.runs:
            self.runs[WHOLE] = self.runner.graph(self.recipe)
        return self.runs[WHOLE]

    @property
    def fits(self) -> list[Fitted]:
        self.batch_run  # noqa: B018 - runs the graph, which writes the files
        fitted = []
        for file in sorted(self.runner.files() - self.before, key=lambda file: file.stat().st_mtime):
            try:
                fitted.append(load(file))
            except PredictorError as error:
                raise Broken(f"{file.name} was written and cannot be read: {error}") from error
        return fitted

    def run(self, variant: str = WHOLE, way: str = "", more: tuple = (), **settings: object) -> Run:
        ingredients = [*self.recipe.ingredients, *more]
        recipe = replace(self.recipe, way=way or self.recipe.way, ingredients=ingredients).set(**settings)
        return self.runner.graph(recipe, variant, looks=False)

    def again(self) -> Run:
        return self.runner.graph(self.recipe)

    def names(self) -> list[str]:
        info = self.runner.server.get("/object_info/AMEDKSampler")["AMEDKSampler"]["input"]["required"]
        choices = info["predictor"]
        return choices[1]["options"] if choices[0] == "COMBO" else choices[0]


def text_of(failure: Failure) -> str:
    """Return a readable text: what failed, and how to run it again."""
    return (
        f"{failure.invariant}: {failure.text}\n  {failure.recipe.text()}\n"
        f'  make graphs ARGS="--seed {failure.recipe.seed}", or the recipe: {to_json(failure.recipe)}'
    )
