"""Kill processes while they save and while they fit, and let several save at once; they are forked from this
one.

python -m trust.kills SAVES FITS [SIDE] prints the results as JSON; it exits with 1 if a promise was broken.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from trust.failing_models import network, table, toy_target

from amed import Library, load, save
from amed.files import store
from amed.files.code import code_of
from amed.files.keep import keep
from amed.fit import Job, fit

STRAY = ".*.safetensors.*.part"
BUDGET = 1340  # the smallest possible budget, for a fit at NFE 2


def fork(work: Callable[[], None]) -> int:
    """Run this work in a new process; return its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def wait_for(children: list[int]) -> list[int]:
    """Wait; return how each process ended."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def listed_names(folder: Path) -> list[str]:
    """Return what a list of predictors shows. Raises AssertionError if one does not load."""
    library = Library([folder])
    assert library.problems() == [], library.problems()
    return library.names()


def kill_saves(folder: Path, count: int, drawn: random.Random) -> dict[str, int]:
    """Kill a process that repeatedly saves one of two predictors over the other."""
    both, path, strays = [network(1), network(2)], folder / "dear.safetensors", 0
    codes, results = {code_of(candidate) for candidate in both}, set()
    save(path, both[0])

    def over_and_over():
        while True:
            for file in both:
                save(path, file)

    kills = 0
    while kills < count or not strays:  # until a kill hit the middle of a file
        kills += 1
        child = fork(over_and_over)
        time.sleep(drawn.uniform(0.001, 0.06))
        os.kill(child, signal.SIGKILL)
        assert wait_for([child]) == [-signal.SIGKILL]
        assert listed_names(folder) == ["dear.safetensors"]
        assert code_of(load(path)) in codes
        results.add(code_of(load(path)))
        strays = len(list(folder.glob(STRAY)))
    for part in folder.glob(STRAY):  # pretend that an hour has passed
        os.utime(part, (time.time() - store.ABANDONED - 1,) * 2)
    save(path, both[0])
    assert [p.name for p in folder.iterdir()] == ["dear.safetensors"]
    return {
        "kills while saving": kills,
        "of them in the middle of a file": strays,
        "versions of the file seen (old, new)": len(results),
    }


def demo_target(side: int):
    """The demo network on images of this many pixels a side."""
    from demo import target as demo

    target = demo.target(1.0)

    def draw(generator, count):
        noise, args = target.draw(generator, count)
        return noise[..., :side, :side], args

    return replace(target, draw=draw, features=None)


def kill_fits(folder: Path, count: int, side: int, drawn: random.Random) -> dict[str, int]:
    """Kill a process that fits the demo model twice (side 0: a closed-form denoiser), at random moments.

    Its first file replaces an existing one."""
    target, job = demo_target(side) if side else toy_target(), Job((2, 3), budget=1560)
    work = folder / "work"

    def fit_both(place: Path) -> None:
        fit(target, job, lambda nfe: place / f"mine-nfe{nfe}.safetensors", lambda progress: None)

    begin = time.monotonic()
    assert wait_for([fork(lambda: fit_both(folder / "first"))]) == [0]
    seconds = time.monotonic() - begin
    old = load(folder / "first" / "mine-nfe2.safetensors")
    old = replace(old, spec=replace(old.spec, metrics={**old.spec.metrics, "error": 1e6}))
    counts = {"kept": 0, "replaced": 0, "both": 0}
    while sum(counts.values()) < count:
        for file in work.glob("*"):
            file.unlink()
        place = save(work / "mine-nfe2.safetensors", old)
        before = place.read_bytes()
        child = fork(lambda: fit_both(work))
        time.sleep(drawn.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        if wait_for([child]) == [0]:  # the fit was faster than the first one
            seconds *= 0.9
            continue
        names, replaced = listed_names(work), place.read_bytes() != before
        assert set(names) <= {"mine-nfe2.safetensors", "mine-nfe3.safetensors"}
        finished = load(place).spec.metrics
        assert not replaced or (finished["finished"] and finished["error"] < 1e6)
        counts["both" if len(names) == 2 else "replaced" if replaced else "kept"] += 1
    return {
        "kills while fitting": count,
        "the old file was unchanged": counts["kept"],
        "the first new file was complete in its place": counts["replaced"],
        "both new files were complete": counts["both"],
    }


def save_at_once(folder: Path, rounds: int, each: int = 6) -> dict[str, int]:
    """Let two processes keep fits under one name at the same moment.

    Of one checkpoint the best must be under that name; of two checkpoints both must be saved."""
    for number in range(rounds):
        for name in ("one", "two"):
            path, start = folder / name / f"{number}.safetensors", time.monotonic() + 0.05
            path.parent.mkdir(parents=True, exist_ok=True)

            def work(me: int, path: Path = path, start: float = start, name: str = name) -> None:
                marks = ("f" * 16, "f" * 16 if name == "one" else "e" * 16)
                errors = [0.1 + 0.01 * ((me + 2 * i) * 5 % 13) for i in range(each)]
                fits = [table(error, marks[me]) for error in errors]
                while time.monotonic() < start:
                    pass
                for fitted in fits:
                    keep(path, fitted)

            assert wait_for([fork(lambda me=me: work(me)) for me in (0, 1)]) == [0, 0]
            mine = [n for n in listed_names(path.parent) if n.split(".")[0].split("-")[0] == str(number)]
            specs = [load(path.parent / n).spec for n in mine]
            best = {mark: min(s.metrics["error"] for s in specs if s.model_fingerprint == mark)
                    for mark in {s.model_fingerprint for s in specs}}  # fmt: skip
            all_errors = [[0.1 + 0.01 * ((me + 2 * i) * 5 % 13) for i in range(each)] for me in (0, 1)]
            if name == "one":
                assert best == {"f" * 16: min(sum(all_errors, []))}, (best, all_errors)
                assert load(path).spec.metrics["error"] == min(sum(all_errors, []))
            else:
                assert best == {"f" * 16: min(all_errors[0]), "e" * 16: min(all_errors[1])}, (
                    best,
                    all_errors,
                )
    return {"pairs of processes that saved at once": 2 * rounds, "files saved by each": each}


def fits_at_once(folder: Path) -> dict[str, int]:
    """Run two fits with different seeds into one name, in two processes: both are saved, or only the better
    one."""
    target, path = toy_target(), folder / "mine.safetensors"

    def work(seed: int) -> None:
        fit(target, Job((2,), budget=BUDGET, seed=seed), lambda nfe: path, lambda progress: None)

    assert wait_for([fork(lambda seed=seed: work(seed)) for seed in (0, 1)]) == [0, 0]
    alone = []
    for seed in (0, 1):
        alone_folder = folder / f"alone-{seed}"
        fit(target, Job((2,), budget=BUDGET, seed=seed), lambda nfe, alone_folder=alone_folder: alone_folder / "a.safetensors", lambda p: None)  # noqa: E501 # fmt: skip
        alone.append(load(alone_folder / "a.safetensors").spec.metrics["error"])
    saved_errors = [
        load(p).spec.metrics["error"] for p in sorted(folder.glob("mine*.safetensors"), key=len_of)
    ]
    assert saved_errors[0] == min(alone) and saved_errors in ([min(alone)], sorted(alone)), (
        saved_errors,
        alone,
    )
    return {"files after two fits with different seeds saved at once under one name": len(saved_errors)}


def len_of(path: Path) -> int:
    return len(path.name)


def run(saves: int, fits: int, side: int, seed: int = 0) -> dict[str, int]:
    torch.set_num_threads(1)  # otherwise a forked process would wait for threads that it does not have
    drawn = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for name in ("saves", "fits", "keeps", "both"):
            (base / name).mkdir()
        saving_figures = kill_saves(base / "saves", saves, drawn)
        saving_figures |= save_at_once(base / "keeps", max(5, saves))
        saving_figures |= fits_at_once(base / "both")
        return saving_figures | (kill_fits(base / "fits", fits, side, drawn) if fits else {})


if __name__ == "__main__":
    saves, fits, side = (int(a) for a in [*sys.argv[1:], "8"][:3])
    print(json.dumps(run(saves, fits, side)))
