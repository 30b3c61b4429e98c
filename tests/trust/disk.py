"""Save to a full disk, and to a read-only one: a separate small file system.

`python -m trust.disk FOLDER`, run by a process that may mount one (`command`), prints the results as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

from trust.failing_models import network, table, toy_target

from amed import Library, PredictorError, load, save
from amed.files.code import from_code
from amed.files.keep import keep
from amed.fit import Job, Outcome, fit
from amed.fit.measures import Counter

SIZE = 160_000  # size of the file system in bytes
CODE = "this is its code: "


def command(folder: Path) -> list[str] | None:
    """Return the command that runs this module in its own mount namespace, with a small disk at `folder`.

    None where this machine does not allow it. The mount is invisible to other processes, and disappears with
    this one."""
    mount = f'mount -t tmpfs -o size={SIZE} tmpfs "$0"'
    for start in (["unshare", "-m"], ["unshare", "-r", "-m"]):
        try:
            if subprocess.run([*start, "sh", "-c", mount, str(folder)], capture_output=True).returncode == 0:
                run = f'{mount} && exec "{sys.executable}" -m trust.disk "$0"'
                return [*start, "sh", "-c", run, str(folder)]
        except OSError:
            break
    return None


def fill(folder: Path) -> None:
    """Fill the disk until not a byte fits."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                pass


def count_refusals(path: Path, old: bytes, word: str) -> int:
    """Save, keep and fit there; return how many attempts were refused.

    Each error is in words, no result is lost, no partial file is left, and the old file is unchanged."""
    refusals = 0
    before = sorted(p.name for p in path.parent.iterdir())
    for act in (lambda: save(path, network(2)), lambda: keep(path, network(2))):
        try:
            act()
        except PredictorError as error:
            assert str(path) in str(error) and word in str(error) and "free some space" in str(error), error
            text = str(error).partition(CODE)[2]
        else:
            raise AssertionError("it was saved")
        assert path.read_bytes() == old and sorted(p.name for p in path.parent.iterdir()) == before
        assert Library([path.parent]).problems() == []
        refusals += 1
    assert from_code(text, "pasted").spec.how == "seed 2"
    target = toy_target()
    counter = Counter(target.model)
    try:
        fit(target, Job((4,)), lambda nfe: path, lambda progress: None)
    except PredictorError as error:
        assert word in str(error) and not counter.evaluations, error  # before any work
    else:
        raise AssertionError("it was fitted")
    return refusals + 1


def count_fits_on_full_disk(folder: Path) -> int:
    """Fill the disk before a fit ends, and before it is interrupted; return the number of fits.

    The raised error must contain the result."""
    ended = 0
    target, path = toy_target(), folder / "late.safetensors"
    for stop in (False, True):
        (folder / "filler").unlink(missing_ok=True)
        outcome, finished = Outcome(), []

        def tell(progress, stop=stop, finished=finished):
            if progress.stage == "fit" and not finished:
                finished.append(1)
                fill(folder)
                if stop:
                    raise KeyboardInterrupt

        try:
            fit(target, Job((4,), budget=1800), lambda nfe: path, tell, outcome)
        except PredictorError as error:
            recovered = from_code(str(error).partition(CODE)[2], "pasted").spec
            assert (
                recovered.nfe == 4 and recovered.metrics["finished"] != stop and outcome.interrupted == stop
            ), error
        else:
            raise AssertionError("it was saved")
        assert not path.exists() and not list(folder.glob(".*"))
        ended += 1
    return ended


def run(folder: Path) -> dict[str, int]:
    path = save(folder / "dear.safetensors", network(1))
    old = path.read_bytes()
    fill(folder)
    full = count_refusals(path, old, "No space left on device") + count_fits_on_full_disk(folder)
    (folder / "filler").unlink()
    save(path, network(2))  # once there is space again, it is saved
    assert load(path).spec.how == "seed 2"
    save(folder / "small.safetensors", table())
    old = path.read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    return {"full": full, "read-only": count_refusals(path, old, "Read-only file system")}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(json.dumps(run(Path(sys.argv[1]))))
