"""Processes that are killed while they save and while they fit, and several that save at once: in processes
of their own, forked from this one.

python -m trust.kills SAVES FITS [SIDE] prints what was found, as JSON; exit code 1 for a broken promise."""

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
from trust.failing import network, table, toy_target

from amed import Library, load, save
from amed.files import store
from amed.files.code import code_of
from amed.files.keep import keep
from amed.fit import Job, fit

STRAY = ".*.safetensors.*.part"
BUDGET = 1340  # evaluations of a fit at 2: the least there is


def forked(work: Callable[[], None]) -> int:
    """A process of its own that does this work; gives its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def waited(children: list[int]) -> list[int]:
    """How each ended."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def shown(folder: Path) -> list[str]:
    """What a list of predictors shows; all of it must load. Raises AssertionError."""
    library = Library([folder])
    assert library.problems() == [], library.problems()
    return library.names()


def saving(folder: Path, count: int, drawn: random.Random) -> dict[str, int]:
    """Kill a process that saves one of two predictors over the other, over and over."""
    both, path, strays = [network(1), network(2)], folder / "dear.safetensors", 0
    whole, seen = {code_of(one) for one in both}, set()
    save(path, both[0])

    def over_and_over():
        while True:
            for one in both:
                save(path, one)

    done = 0
    while done < count or not strays:  # until one hit the middle of a file
        done += 1
        child = forked(over_and_over)
        time.sleep(drawn.uniform(0.001, 0.06))
        os.kill(child, signal.SIGKILL)
        assert waited([child]) == [-signal.SIGKILL]
        assert shown(folder) == ["dear.safetensors"]
        assert code_of(load(path)) in whole
        seen.add(code_of(load(path)))
        strays = len(list(folder.glob(STRAY)))
    for part in folder.glob(STRAY):  # an hour later
        os.utime(part, (time.time() - store.ABANDONED - 1,) * 2)
    save(path, both[0])
    assert [p.name for p in folder.iterdir()] == ["dear.safetensors"]
    return {"kills while saving": done, "of them in the middle of a file": strays, "old or new": len(seen)}


def demo_target(side: int):
    """The demo network on images of this many pixels a side."""
    from demo import target as demo

    made = demo.target(1.0)

    def draw(generator, count):
        noise, args = made.draw(generator, count)
        return noise[..., :side, :side], args

    return replace(made, draw=draw, features=None)


def fitting(folder: Path, count: int, side: int, drawn: random.Random) -> dict[str, int]:
    """Kill a process that fits the demo model twice (side 0: a closed-form denoiser), at moments over all of
    its time; its first file replaces one that is there."""
    target, job = demo_target(side) if side else toy_target(), Job((2, 3), budget=1560)
    work = folder / "work"

    def whole(place: Path) -> None:
        fit(target, job, lambda nfe: place / f"mine-nfe{nfe}.safetensors", lambda progress: None)

    begin = time.monotonic()
    assert waited([forked(lambda: whole(folder / "first"))]) == [0]
    seconds = time.monotonic() - begin
    old = load(folder / "first" / "mine-nfe2.safetensors")
    old = replace(old, spec=replace(old.spec, metrics={**old.spec.metrics, "error": 1e6}))
    counts = {"kept": 0, "replaced": 0, "both": 0}
    while sum(counts.values()) < count:
        for file in work.glob("*"):
            file.unlink()
        place = save(work / "mine-nfe2.safetensors", old)
        before = place.read_bytes()
        child = forked(lambda: whole(work))
        time.sleep(drawn.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        if waited([child]) == [0]:  # it was faster than the first
            seconds *= 0.9
            continue
        names, replaced = shown(work), place.read_bytes() != before
        assert set(names) <= {"mine-nfe2.safetensors", "mine-nfe3.safetensors"}
        finished = load(place).spec.metrics
        assert not replaced or (finished["finished"] and finished["error"] < 1e6)
        counts["both" if len(names) == 2 else "replaced" if replaced else "kept"] += 1
    return {
        "kills while fitting": count,
        "the old file was there as it was": counts["kept"],
        "the first new one whole in its place": counts["replaced"],
        "both new ones whole": counts["both"],
    }


def at_once(folder: Path, rounds: int, each: int = 6) -> dict[str, int]:
    """Two processes keep fits under one name at the same moment: of one checkpoint, the best must stay under
    it; of two checkpoints, both must stay."""
    for number in range(rounds):
        for what in ("one", "two"):
            path, start = folder / what / f"{number}.safetensors", time.monotonic() + 0.05
            path.parent.mkdir(parents=True, exist_ok=True)

            def work(me: int, path: Path = path, start: float = start, what: str = what) -> None:
                marks = ("f" * 16, "f" * 16 if what == "one" else "e" * 16)
                errors = [0.1 + 0.01 * ((me + 2 * i) * 5 % 13) for i in range(each)]
                fits = [table(error, marks[me]) for error in errors]
                while time.monotonic() < start:
                    pass
                for one in fits:
                    keep(path, one)

            assert waited([forked(lambda me=me: work(me)) for me in (0, 1)]) == [0, 0]
            mine = [n for n in shown(path.parent) if n.split(".")[0].split("-")[0] == str(number)]
            specs = [load(path.parent / n).spec for n in mine]
            best = {mark: min(s.metrics["error"] for s in specs if s.model_fingerprint == mark)
                    for mark in {s.model_fingerprint for s in specs}}  # fmt: skip
            made = [[0.1 + 0.01 * ((me + 2 * i) * 5 % 13) for i in range(each)] for me in (0, 1)]
            if what == "one":
                assert best == {"f" * 16: min(sum(made, []))}, (best, made)
                assert load(path).spec.metrics["error"] == min(sum(made, []))
            else:
                assert best == {"f" * 16: min(made[0]), "e" * 16: min(made[1])}, (best, made)
    return {"pairs of processes that kept at once": 2 * rounds, "files kept by each": each}


def fits_at_once(folder: Path) -> dict[str, int]:
    """Two fits of two seeds into one name, in two processes: both there, or the better in place of the
    other."""
    target, path = toy_target(), folder / "mine.safetensors"

    def work(seed: int) -> None:
        fit(target, Job((2,), budget=BUDGET, seed=seed), lambda nfe: path, lambda progress: None)

    assert waited([forked(lambda seed=seed: work(seed)) for seed in (0, 1)]) == [0, 0]
    alone = []
    for seed in (0, 1):
        own = folder / f"alone-{seed}"
        fit(target, Job((2,), budget=BUDGET, seed=seed), lambda nfe, own=own: own / "a.safetensors", lambda p: None)  # noqa: E501 # fmt: skip
        alone.append(load(own / "a.safetensors").spec.metrics["error"])
    there = [load(p).spec.metrics["error"] for p in sorted(folder.glob("mine*.safetensors"), key=len_of)]
    assert there[0] == min(alone) and there in ([min(alone)], sorted(alone)), (there, alone)
    return {"fits of two seeds at once into one name, files": len(there)}


def len_of(path: Path) -> int:
    return len(path.name)


def run(saves: int, fits: int, side: int, seed: int = 0) -> dict[str, int]:
    torch.set_num_threads(1)  # or a forked process would wait for threads it has not
    drawn = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for name in ("saves", "fits", "keeps", "both"):
            (base / name).mkdir()
        found = saving(base / "saves", saves, drawn)
        found |= at_once(base / "keeps", max(5, saves))
        found |= fits_at_once(base / "both")
        return found | (fitting(base / "fits", fits, side, drawn) if fits else {})


if __name__ == "__main__":
    saves, fits, side = (int(a) for a in [*sys.argv[1:], "8"][:3])
    print(json.dumps(run(saves, fits, side)))
