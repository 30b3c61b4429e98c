"""The long run of faults: full disks, processes that are killed, fits at once, and models that run out of
memory or of numbers at any call. Writes the parts "faults", "kills" and "memory" of docs/TRUST.md.

PYTHONPATH=.:tests python -m trust.faults [faults] [kills] [memory]"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from trust import disk, page
from trust.failing import (
    JOBS,
    Failing,
    all_nan,
    euler,
    fitted_with,
    nothing_stays,
    one_inf,
    out_of_memory,
    toy_target,
)
from trust.failing import patches as patches_on
from trust.kills import demo_target

from amed import SAMPLERS, Constants, Solver, load, schedules
from amed.constants import as_multistep
from amed.evaluate import FromModule
from amed.fit import Job, Target
from amed.loop import NotFiniteError
from amed.outside import Outside, ScaledDenoiser
from demo import model as demo

COMMAND = "make faults"
SAVES, FITS, SIDE = 200, 50, 8
TIMES = schedules.make("time_uniform", 4, demo.SIGMA_MIN, demo.SIGMA_MAX)
HOWS = {"NaN": all_nan, "one infinity": one_inf}


class Runs:
    """Sampling runs of the demo network: by each sampler of ours, and by a host's that AMED-Plugin is wrapped
    around."""

    names = (*SAMPLERS, "outside")

    def __init__(self):
        self.denoiser = demo.load_denoiser()
        self.noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
        self.before = patches_on(self.denoiser)

    def run(self, name: str, at: int = 0, how: Callable = out_of_memory) -> tuple[torch.Tensor, Failing]:
        """One, with a model that fails at a call: where it ends, and the model."""
        model, x = Failing(self.denoiser, at, how), self.noise * float(TIMES[0])
        with torch.no_grad():
            if name == "outside":
                around = ScaledDenoiser(model, Outside(TIMES, TIMES).at)
                return euler(around, x, torch.cat([TIMES, TIMES.new_zeros(1)]), {}), model
            constants = as_multistep(Solver("ipndm", 2), TIMES) if name == "amed_multistep" else None
            constants = constants or Constants(TIMES)
            bottleneck = FromModule(self.denoiser.inner_model.middle_block)

            def ask(model, x, sigma, args, wants):  # as the paper's network has it: with a hook
                return bottleneck(model, x, sigma, args, wants | {"bottleneck"})

            end = SAMPLERS[name](model, x, TIMES, disable=True, predictor=constants, evaluate=ask)
        return end, model

    def out_of_memory(self, name: str) -> int:
        """At each call of a run: the host's own error comes through, nothing is left patched, nothing held,
        and the next run gives the same image. How many calls."""
        whole, model = self.run(name)
        calls = model.calls
        del model
        for at in range(1, calls + 1):
            with nothing_stays():
                try:
                    self.run(name, at)
                except torch.OutOfMemoryError:
                    pass
                else:
                    raise AssertionError(f"{name}: nothing was raised at call {at}")
            assert patches_on(self.denoiser) == self.before, name
        assert torch.equal(self.run(name)[0], whole)
        return calls

    def not_finite(self, name: str) -> int:
        """At each call of a run: told in words with its sigma; wrapped from outside the host's sampler goes
        on, as without us, and no number of its image is made up. How many runs."""
        calls, runs = self.run(name)[1].calls, 0
        for how in HOWS.values():
            for at in range(1, calls + 1):
                runs += 1
                try:
                    end, _ = self.run(name, at, how)
                except NotFiniteError as error:
                    assert name != "outside" and "at sigma=" in str(error), (name, at, error)
                    assert "bfloat16" in str(error)
                else:
                    assert name == "outside" and not end.isfinite().all(), (name, at)
        return runs


def unfinished(folder: Path) -> int:
    """How many files a stopped fit left: all of them whole, and called unfinished. Removes them."""
    files = list(folder.iterdir())
    for file in files:
        assert load(file).spec.metrics["finished"] is False
        file.unlink()
    return len(files)


def calls_of(target: Target, job: Job) -> int:
    """Of the model, in a whole fit."""
    with tempfile.TemporaryDirectory() as folder:
        model, raised, _ = fitted_with(target, job, Path(folder), 0)
    assert raised is None, raised
    return model.calls


def fits_out_of_memory(name: str, every: int, first: int = 1) -> tuple[int, int]:
    """Of a fit whose model runs out of memory at every such call: the error comes through, the best so far
    loads, nothing is held. How many, and of them with something kept."""
    target, kept, done = toy_target(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for at in range(first, calls_of(target, JOBS[name]) + 1, every):
            with nothing_stays():
                model, raised, outcome = fitted_with(target, JOBS[name], Path(folder), at)
                assert isinstance(raised, torch.OutOfMemoryError) and outcome.interrupted, (name, at, raised)
                assert unfinished(Path(folder)) == len(outcome.fits)
                kept, done = kept + len(outcome.fits), done + 1
                del model, raised, outcome
    return done, kept


def demo_fit_out_of_memory(every: int, side: int) -> int:
    """The same of the demo network, which is to have its own functions after it."""
    target, job, done = demo_target(side), Job((2,), budget=1340), 0
    before = patches_on(target.model)
    with tempfile.TemporaryDirectory() as folder:
        for at in range(every, calls_of(target, job) + 1, every):
            with nothing_stays():
                model, raised, outcome = fitted_with(target, job, Path(folder), at)
                assert isinstance(raised, torch.OutOfMemoryError)
                del model, raised, outcome
            assert patches_on(target.model) == before
            unfinished(Path(folder))
            done += 1
    return done


def fits_not_finite(name: str, every: int, first: int = 1) -> int:
    """Of a fit whose model gives NaN, or a single infinity, at every such call: it stops and names the sigma.
    How many."""
    target, done = toy_target(), 0
    with tempfile.TemporaryDirectory() as folder:
        for at in range(first, calls_of(target, JOBS[name]) + 1, every):
            for how in HOWS.values():
                model, raised, _ = fitted_with(target, JOBS[name], Path(folder), at, how)
                assert isinstance(raised, NotFiniteError), (name, how, at, raised)
                assert f"at sigma={model.sigma:.5g}" in str(raised), (name, at, model.sigma, raised)
                unfinished(Path(folder))
                done += 1
    return done


def with_path() -> dict[str, str]:
    """The environment of a process that finds this one's modules."""
    return os.environ | {"PYTHONPATH": f"{page.ROOT}{os.pathsep}{page.ROOT / 'tests'}"}


def kills(saves: int, fits: int, side: int) -> dict[str, int]:
    """trust.kills, in a process that has no other threads."""
    command = [sys.executable, "-m", "trust.kills", str(saves), str(fits), str(side)]
    done = subprocess.run(command, capture_output=True, text=True, env=with_path())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def on_a_small_disk() -> dict[str, int] | None:
    """trust.disk; None where nothing may be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        command = disk.command(Path(folder))
        if command is None:
            return None
        done = subprocess.run(command, capture_output=True, text=True, env=with_path())
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def counted(what: dict[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{number:,}") for name, number in what.items()]


def faults() -> page.Part:
    found, runs = on_a_small_disk(), Runs()
    told = "full disk: saves, fits and an interrupted fit, told in words, nothing lost"
    rows = {told: found["full"], "read-only disk: the same": found["read-only"]} if found else {}
    rows |= {
        "sampling runs with NaN or an infinity at one call: each of our samplers says at which sigma": sum(
            runs.not_finite(name) for name in SAMPLERS
        ),
        "the same in a sampler that is wrapped: it goes on as its host has it, to no finite image": (
            runs.not_finite("outside")
        ),
    }
    for name in JOBS:
        rows[f"fits ({name}) with NaN or an infinity at one call: stopped, the sigma named"] = (
            fits_not_finite(name, 1)
        )
    about = (
        "The disk is full or may only be read (a file system of its own); the model gives NaN, or a single "
    )
    about += "infinite value, at one call of a run or a fit, each call in turn."
    return page.Part("faults", "Disks and numbers", COMMAND, about, counted(rows))


def killed() -> page.Part:
    about = "SIGKILL at random moments to a process that saves one file over and over, and to one that fits "
    about += f"the demo model (images of {SIDE} pixels) twice; afterwards all that is listed loads, old or "
    about += (
        "new, and the next save removes what lay beside. Pairs of processes that keep fits under one name "
    )
    about += "at once: the best stays under it, those of another checkpoint stay beside it."
    return page.Part("kills", "Killed, and at once", COMMAND, about, counted(kills(SAVES, FITS, SIDE)))


def memory() -> page.Part:
    runs = Runs()
    rows = {"sampling runs of the demo network, of each sampler, at each call": sum(
        runs.out_of_memory(name) for name in Runs.names
    )}  # fmt: skip
    for name in JOBS:
        done, kept = fits_out_of_memory(name, 1)
        rows |= {f"fits ({name}), at each call": done, f"of them ({name}) with a best so far": kept}
    rows["fits of the demo network, at every fifth call"] = demo_fit_out_of_memory(5, SIDE)
    about = (
        "The model raises torch.OutOfMemoryError at one call. It comes through as it is, no tensor is held "
    )
    about += (
        "by anyone after it (without a garbage collection), no hook, function or option is left, and the "
    )
    about += "next run gives the same image. In ComfyUI the same, under its own message: "
    about += "tests/comfyui/test_faults.py."
    return page.Part("memory", "Out of memory", COMMAND, about, counted(rows))


PARTS = {"faults": faults, "kills": killed, "memory": memory}


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or PARTS:
        part = PARTS[name]()
        page.put(part)
        print(name, *part.rows, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
