"""The quick form of trust.faults: the same promises, checked at fewer moments."""

import errno
import os
import subprocess
import threading

import pytest
import torch
from trust import disk, faults
from trust.failing_models import JOBS, network, table, toy_target

from amed import Library, PredictorError, load, save
from amed.files import lock, store
from amed.files.keep import keep
from amed.fit import Job, fit
from amed.fit.compare import Judge
from amed.fit.samples import Samples


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One torch thread, because the images are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs():
    return faults.Runs()


# --- the disk ----------------------------------------------------------------------------------------------


def test_saving_to_a_full_and_a_read_only_disk():
    figures = faults.on_a_small_disk()
    if figures is None:
        pytest.skip("no file system may be mounted here")
    assert figures == {"full": 5, "read-only": 3}


@pytest.mark.parametrize("call", ["open", "fsync", "chmod", "replace", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT])
def test_any_system_call_of_a_save_may_fail(tmp_path, monkeypatch, call, number):
    """The old file stays, no partial file is left, and the message names the file and what to do."""
    path = save(tmp_path / "dear.safetensors", network(1))
    before, real = path.read_bytes(), getattr(os, call)

    def failing(*args, **kwargs):
        if call != "open" or args[1] & os.O_CREAT:  # files that are only read exist
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, failing)
    place = tmp_path / "new" / "a.safetensors" if call == "mkdir" else path
    with pytest.raises(PredictorError, match=f"not saved: {os.strerror(number)}; free some space in"):
        keep(place, network(2))
    monkeypatch.undo()
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["dear.safetensors"]
    assert load(keep(path, network(2))[0]).spec.how == "seed 2"


def test_a_truncated_write_leaves_the_old_file(tmp_path):
    """The system writes only the first 4096 bytes."""
    save(tmp_path / "dear.safetensors", network(1))
    code = (
        "import resource, sys; from pathlib import Path; from trust.failing_models import network; "
        "from amed import save; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "save(Path(sys.argv[1]), network(2))"
    )
    process = subprocess.run(
        [faults.sys.executable, "-c", code, str(tmp_path / "dear.safetensors")],
        capture_output=True, text=True, env=faults.with_path(),
    )  # fmt: skip
    assert "UnsavedError" in process.stderr and "File too large" in process.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["dear.safetensors"]
    assert load(tmp_path / "dear.safetensors").spec.how == "seed 1"


def test_a_file_replaced_within_one_clock_tick_is_reread(tmp_path):
    library, path = Library([tmp_path]), save(tmp_path / "a.safetensors", network(1))
    os.utime(path, (1000, 1000))
    assert library.load("a.safetensors").spec.how == "seed 1"
    save(path, network(2))
    os.utime(path, (1000, 1000))
    assert library.load("a.safetensors").spec.how == "seed 2"


# --- killed, and at once -----------------------------------------------------------------------------------


def test_processes_killed_at_random_moments():
    figures = faults.kills(8, 2, 0)
    assert figures["of them in the middle of a file"] >= 1, "no kill hit the middle of a save"


def test_threads_that_save_at_once(tmp_path):
    path, begin = tmp_path / "a.safetensors", threading.Barrier(4)

    def work(mark):
        begin.wait()
        for error in (0.3, 0.2, 0.25):
            keep(path, table(error, mark * 16))

    threads = [threading.Thread(target=work, args=(mark,)) for mark in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    specs = [fitted.spec for fitted in Library([tmp_path]).fitted()]
    for mark in "abcd":
        errors = [s.metrics["error"] for s in specs if s.model_fingerprint == mark * 16]
        assert min(errors) == 0.2 and len(errors) == 2  # 0.3 was replaced, 0.25 has a numbered name


def test_two_fits_in_threads_into_one_name(tmp_path):
    target = toy_target()

    def work(seed):
        fit(target, Job((2,), budget=1340, seed=seed), lambda nfe: tmp_path / "a.safetensors", lambda p: None)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = {p.name: load(p).spec.metrics["error"] for p in tmp_path.iterdir()}
    assert errors["a.safetensors"] == min(errors.values()) and set(errors) <= {
        "a.safetensors", "a-2.safetensors"
    }  # fmt: skip


def test_a_stuck_lock_is_ignored_after_a_while(tmp_path, monkeypatch):
    """A process stopped while it holds the lock must not block every later save."""
    monkeypatch.setattr(lock, "TIMEOUT", 0.1)
    handle = lock.open_folder(tmp_path)
    lock.take_lock(handle)
    try:
        saved, _ = keep(tmp_path / "a.safetensors", table())
    finally:
        os.close(handle)
    assert load(saved)


# --- memory and numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", faults.Runs.names)
def test_out_of_memory_at_each_call_of_a_run(runs, name):
    assert runs.out_of_memory(name) >= 3


@pytest.mark.parametrize("name", faults.Runs.names)
def test_nan_at_each_call_of_a_run(runs, name):
    assert runs.not_finite(name) >= 6


@pytest.mark.parametrize("name", JOBS)
def test_out_of_memory_in_a_fit(name):
    fits, _ = faults.fits_out_of_memory(name, 150, 100)
    assert fits >= 1


def test_out_of_memory_late_in_a_fit_keeps_the_best_so_far():
    assert faults.fits_out_of_memory("outside", 200, 170) == (1, 1)


@pytest.mark.parametrize("name", JOBS)
def test_nan_in_a_fit(name):
    assert faults.fits_not_finite(name, 150, 150) >= 2


def test_a_non_finite_rival_does_not_lose_the_fit():
    """A host sampler's NaN used to stop the comparison by Fréchet distance, and nothing was saved."""
    ends = torch.zeros(4, 3, 8, 8)
    judge = Judge(None, Samples(ends, {}, ends), 4, features=lambda x: x.flatten(1)[:, :2])
    assert judge.distance(ends + 1) > 0 and judge.distance(ends * float("nan")) is None


def test_a_temporary_file_is_kept_while_it_may_be_in_use(tmp_path):
    part = tmp_path / ".a.safetensors.x.part"
    part.write_bytes(b"half")
    save(tmp_path / "b.safetensors", table())
    assert part.exists() and Library([tmp_path]).names() == ["b.safetensors"]
    os.utime(part, (part.stat().st_mtime - store.ABANDONED - 1,) * 2)
    save(tmp_path / "b.safetensors", table())
    assert not part.exists()


def test_a_machine_without_mounts_is_reported(monkeypatch, tmp_path):
    def none(*args, **kwargs):
        raise FileNotFoundError("unshare")

    monkeypatch.setattr(subprocess, "run", none)
    assert disk.command(tmp_path) is None
