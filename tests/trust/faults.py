"""The long run of faults: full disks, killed processes, simultaneous fits, and models that run out of memory
or give NaN at any call. Writes the parts "faults", "kills" and "memory" of docs/TRUST.md.

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
from trust.failing_models import (
    JOBS,
    Failing,
    all_nan,
    assert_tensors_freed,
    euler,
    fitted_with,
    one_inf,
    out_of_memory,
    toy_target,
)
from trust.failing_models import patches as patches_on
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
    """Sampling runs of the demo network, by each of our samplers and by a host's sampler with AMED-Plugin
    around it."""

    names = (*SAMPLERS, "outside")

    def __init__(self):
        self.denoiser = demo.load_denoiser()
        self.noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
        self.before = patches_on(self.denoiser)

    def run(self, name: str, at: int = 0, how: Callable = out_of_memory) -> tuple[torch.Tensor, Failing]:
        """Run once with a model that fails at a call; return the end, and the model."""
        model, x = Failing(self.denoiser, at, how), self.noise * float(TIMES[0])
        with torch.no_grad():
            if name == "outside":
                around = ScaledDenoiser(model, Outside(TIMES, TIMES).at)
                return euler(around, x, torch.cat([TIMES, TIMES.new_zeros(1)]), {}), model
            constants = as_multistep(Solver("ipndm", 2), TIMES) if name == "amed_multistep" else None
            constants = constants or Constants(TIMES)
            bottleneck = FromModule(self.denoiser.inner_model.middle_block)

            def evaluate(model, x, sigma, args, wants):  # as for the paper's network, with a hook
                return bottleneck(model, x, sigma, args, wants | {"bottleneck"})

            end = SAMPLERS[name](model, x, TIMES, disable=True, predictor=constants, evaluate=evaluate)
        return end, model

    def out_of_memory(self, name: str) -> int:
        """Fail at each call of a run; return the number of calls.

        The host's own error comes through, no patch and no tensor is left, and the next run gives the same
        image."""
        reference_end, model = self.run(name)
        calls = model.calls
        del model
        for at in range(1, calls + 1):
            with assert_tensors_freed():
                try:
                    self.run(name, at)
                except torch.OutOfMemoryError:
                    pass
                else:
                    raise AssertionError(f"{name}: nothing was raised at call {at}")
            assert patches_on(self.denoiser) == self.before, name
        assert torch.equal(self.run(name)[0], reference_end)
        return calls

    def not_finite(self, name: str) -> int:
        """Give NaN or an infinity at each call of a run; return the number of runs.

        Our samplers raise an error that names the sigma. A wrapped host's sampler goes on, as it would alone,
        and its image stays non-finite."""
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
    """Count the files that an interrupted fit left, all complete and marked unfinished, and remove them."""
    files = list(folder.iterdir())
    for file in files:
        assert load(file).spec.metrics["finished"] is False
        file.unlink()
    return len(files)


def calls_of(target: Target, job: Job) -> int:
    """Return the number of the model's calls in a full fit."""
    with tempfile.TemporaryDirectory() as folder:
        model, raised, _ = fitted_with(target, job, Path(folder), 0)
    assert raised is None, raised
    return model.calls


def fits_out_of_memory(name: str, every: int, first: int = 1) -> tuple[int, int]:
    """Run out of memory at every such call of a fit; return the number of fits, and of those that saved a
    result.

    The error comes through, the best so far loads, and no tensor is held."""
    target, saved, fits = toy_target(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for at in range(first, calls_of(target, JOBS[name]) + 1, every):
            with assert_tensors_freed():
                model, raised, outcome = fitted_with(target, JOBS[name], Path(folder), at)
                assert isinstance(raised, torch.OutOfMemoryError) and outcome.interrupted, (name, at, raised)
                assert unfinished(Path(folder)) == len(outcome.fits)
                saved, fits = saved + len(outcome.fits), fits + 1
                del model, raised, outcome
    return fits, saved


def demo_fit_out_of_memory(every: int, side: int) -> int:
    """The same for the demo network, which must have its own functions afterwards."""
    target, job, fits = demo_target(side), Job((2,), budget=1340), 0
    before = patches_on(target.model)
    with tempfile.TemporaryDirectory() as folder:
        for at in range(every, calls_of(target, job) + 1, every):
            with assert_tensors_freed():
                model, raised, outcome = fitted_with(target, job, Path(folder), at)
                assert isinstance(raised, torch.OutOfMemoryError)
                del model, raised, outcome
            assert patches_on(target.model) == before
            unfinished(Path(folder))
            fits += 1
    return fits


def fits_not_finite(name: str, every: int, first: int = 1) -> int:
    """Give NaN or a single infinity at every such call of a fit; return the number of fits.

    Each fit stops and names the sigma."""
    target, fits = toy_target(), 0
    with tempfile.TemporaryDirectory() as folder:
        for at in range(first, calls_of(target, JOBS[name]) + 1, every):
            for how in HOWS.values():
                model, raised, _ = fitted_with(target, JOBS[name], Path(folder), at, how)
                assert isinstance(raised, NotFiniteError), (name, how, at, raised)
                assert f"at sigma={model.sigma:.5g}" in str(raised), (name, at, model.sigma, raised)
                unfinished(Path(folder))
                fits += 1
    return fits


def with_path() -> dict[str, str]:
    """Return the environment of a process that finds this process's modules."""
    return os.environ | {"PYTHONPATH": f"{page.ROOT}{os.pathsep}{page.ROOT / 'tests'}"}


def kills(saves: int, fits: int, side: int) -> dict[str, int]:
    """Run trust.kills, in a process without other threads."""
    command = [sys.executable, "-m", "trust.kills", str(saves), str(fits), str(side)]
    process = subprocess.run(command, capture_output=True, text=True, env=with_path())
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def on_a_small_disk() -> dict[str, int] | None:
    """Run trust.disk; return None where nothing may be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        command = disk.command(Path(folder))
        if command is None:
            return None
        process = subprocess.run(command, capture_output=True, text=True, env=with_path())
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)


def counted(figures: dict[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{number:,}") for name, number in figures.items()]


def faults() -> page.Part:
    disk_figures, runs = on_a_small_disk(), Runs()
    full_disk = "full disk: saves, fits and an interrupted fit, each with a clear error and nothing lost"
    rows = (
        {full_disk: disk_figures["full"], "read-only disk: the same": disk_figures["read-only"]}
        if disk_figures
        else {}
    )
    rows |= {
        "sampling runs with NaN or an infinity at one call: each of our samplers names the sigma": sum(
            runs.not_finite(name) for name in SAMPLERS
        ),
        "the same in a wrapped sampler: it continues as in its host, and the image is not finite": (
            runs.not_finite("outside")
        ),
    }
    for name in JOBS:
        rows[f"fits ({name}) with NaN or an infinity at one call: stopped, with the sigma named"] = (
            fits_not_finite(name, 1)
        )
    about = (
        "The disk is full or read-only (on a separate file system); the model gives NaN, or a "
        "single infinite value, at one call of a run or a fit, for each call in turn."
    )
    return page.Part("faults", "Full disks and non-finite numbers", COMMAND, about, counted(rows))


def killed() -> page.Part:
    about = (
        "SIGKILL at random moments to a process that repeatedly saves one file, and to one that "
        f"fits the demo model (images of {SIDE} pixels) twice. Afterwards every listed file loads, "
        "old or new, and the next save removes temporary files. Pairs of processes save fits "
        "under one name at once: the best one has that name, and those of another checkpoint get "
        "numbered names."
    )
    return page.Part(
        "kills", "Killed and simultaneous processes", COMMAND, about, counted(kills(SAVES, FITS, SIDE))
    )


def memory() -> page.Part:
    runs = Runs()
    rows = {"sampling runs of the demo network, for each sampler and call": sum(
        runs.out_of_memory(name) for name in Runs.names
    )}  # fmt: skip
    for name in JOBS:
        fits, saved = fits_out_of_memory(name, 1)
        rows |= {f"fits ({name}), at each call": fits, f"of these ({name}), with a best so far": saved}
    rows["fits of the demo network, at every fifth call"] = demo_fit_out_of_memory(5, SIDE)
    about = (
        "The model raises torch.OutOfMemoryError at one call. The error comes through unchanged; no "
        "tensor is held afterwards (without a garbage collection); no hook, function or option is "
        "left; and the next run gives the same image. In ComfyUI the same, with its own message: "
        "tests/comfyui/test_faults.py."
    )
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
