"""Runs recipes in a server, checks every invariant, and shrinks what fails."""

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

TIMEOUT, SLOW = 300.0, 1200.0  # seconds after which a run hangs; of a fit
TRIALS = 14  # runs to shrink a failure
RUNS, REFUSED, INVALID, FAILED = "runs", "refused", "not a graph of the host's", "failed"


@dataclass(frozen=True)
class Failure:
    recipe: Recipe
    invariant: str
    text: str

    @property
    def mechanism(self) -> str:
        """What failures have in common: without numbers and names of files."""
        words = re.sub(r"\S+\.safetensors|0x\w+", "FILE", self.text)
        return f"{self.invariant}: {re.sub(r'[0-9][0-9.e+-]*', '#', words)[:110]}"


@dataclass(frozen=True)
class Outcome:
    """Of a recipe: RUNS, REFUSED (said: why), INVALID (said: why) or FAILED."""

    recipe: Recipe
    state: str
    said: str = ""
    failures: tuple[Failure, ...] = ()
    runs: int = 1


@dataclass
class Runner:
    """Runs graphs in a server that is started again where it dies or hangs; predictor files that a graph
    writes are removed after it."""

    server: Server
    runs: int = 0

    @property
    def folder(self) -> Path:
        return self.server.base / "models" / "amed_predictors"

    def files(self) -> set[Path]:
        return set(self.folder.glob("*.safetensors"))

    def graph(self, recipe: Recipe, variant: str = WHOLE, looks: bool = True) -> Run:
        self.runs += 1
        made = run(self.server, build(recipe, variant, looks), recipe["workflow"],
                   SLOW if WAYS[recipe.way].slow else TIMEOUT)  # fmt: skip
        if made.died:
            self.server.stop()
            self.server.start(timeout=600)
        return made

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
            if case.whole.died or (case.whole.error and not failures and invariant is invariants[0]):
                break
            if failures and invariant is invariants[0]:
                break
        error = case.whole.error
        state = FAILED if failures else REFUSED if error else RUNS
        said = error.message if error and not failures else ""
        return Outcome(recipe, state, said, tuple(failures), self.runs - first)

    def shrink(self, failure: Failure, trials: int = TRIALS) -> Failure:
        """The same failure with as few ingredients and as usual settings as can be found."""
        index = [one.__name__ for one in INVARIANTS].index(failure.invariant)
        invariants = (INVARIANTS[0], INVARIANTS[index]) if index else INVARIANTS[:1]
        smallest, progress = failure, True
        while progress and trials > 0:
            progress = False
            for recipe in smaller(smallest.recipe):
                if trials <= 0:
                    break
                trials -= 1
                found = [
                    f for f in self.check(recipe, invariants).failures if f.mechanism == failure.mechanism
                ]
                if found:
                    smallest, progress = found[0], True
                    break
        return smallest

    def graph_of(self, recipe: Recipe) -> dict[str, Any]:
        return build(recipe).nodes


def smaller(recipe: Recipe) -> list[Recipe]:
    """Without one of its ingredients, or with one setting as usual."""
    fewer = [recipe.without(i) for i in range(len(recipe.ingredients))]
    usual = [recipe.set(**{k: v}) for k, v in USUAL.items() if k in recipe.settings and recipe[k] != v]
    return fewer + usual


@dataclass
class Running:
    """A Case of invariants.py."""

    runner: Runner
    recipe: Recipe
    before: set[Path]
    done: dict[str, Run] = field(default_factory=dict)

    @property
    def whole(self) -> Run:
        if WHOLE not in self.done:
            self.done[WHOLE] = self.runner.graph(self.recipe)
        return self.done[WHOLE]

    @property
    def fits(self) -> list[Fitted]:
        self.whole  # noqa: B018 - what it writes
        made = []
        for file in sorted(self.runner.files() - self.before, key=lambda file: file.stat().st_mtime):
            try:
                made.append(load(file))
            except PredictorError as error:
                raise Broken(f"{file.name} was written and cannot be read: {error}") from error
        return made

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
    """For people: what failed, and how it is run again."""
    return (
        f"{failure.invariant}: {failure.text}\n  {failure.recipe.text()}\n"
        f'  make graphs ARGS="--seed {failure.recipe.seed}", or the recipe: {to_json(failure.recipe)}'
    )
