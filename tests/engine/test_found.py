"""What a fit saved is found under what was asked, by several threads at once too."""

import random
import threading
import time
from dataclasses import replace

import pytest
import torch

from amed import SAMPLERS, Constants, Fitted, Library, PredictorError, Solver, Spec, load, save, schedules
from amed.choose import Identity, Request, choose
from amed.constants import as_multistep
from amed.files.keep import keep
from amed.files.store import as_name, saved_as
from amed.fit.target import seeded
from amed.kdiffusion import solver_of
from amed.outside import Outside

LOW, HIGH = 0.03, 14.6
A, UNREAD = Identity("sd15", "a" * 16), Identity("sd15", "")


def plain(sampler, nfe=5, model=A, **said):
    """What a fit for `sampler` keeps where nothing beat a plain solver."""
    times = schedules.make("time_uniform", nfe + 1, LOW, HIGH)
    metrics = {k: said.pop(k) for k in ("rmse_ref", "error") if k in said}
    spec = Spec.on(
        Solver("ipndm", 2), times, features="plain", fitted_for=sampler, metrics=metrics,
        model_family=model.family, model_fingerprint=model.fingerprint, **said,
    )  # fmt: skip
    return Fitted(spec, None, times)


def learned(sampler="amed", count=4, model=A, afs=True, **metrics):
    times, solver = schedules.make("polynomial", count, LOW, HIGH), solver_of(sampler)
    spec = Spec.on(solver, times, afs=afs, metrics=metrics, model_family=model.family,
                   model_fingerprint=model.fingerprint)  # fmt: skip
    table = as_multistep(Solver("ipndm", 2), times, afs) if sampler == "amed_multistep" else Constants(times)
    return Fitted(spec, table, times)


def outside():
    times, ones = schedules.make("polynomial", 6, LOW, HIGH), torch.ones(5)
    spec = Spec.on("outside", times, of="dpmpp_2m", calls=5, model_family="sd15")
    return Fitted(spec, Outside(times, times[:-1].clone(), ones, ones), times)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("model", [A, UNREAD], ids=["known", "unreadable"])
def test_a_plain_solver_is_found_under_the_sampler_it_was_fitted_for(tmp_path, sampler, model):
    save(tmp_path / "kept.safetensors", plain(sampler, model=model))
    found = choose(Library([tmp_path]), Request(model, sampler, nfe=5))
    assert found.fitted.name == "kept.safetensors" and found.sampler == "amed_multistep" and not found.remarks
    assert choose(Library([tmp_path]), Request(model, sampler, fitted=found.fitted)).fitted is found.fitted
    on_its_levels = Request(model, sampler, times=found.sigmas)
    assert choose(Library([tmp_path]), on_its_levels).fitted.name == "kept.safetensors"
    other = "amed_euler" if sampler != "amed_euler" else "amed"
    with pytest.raises(PredictorError, match="no predictor"):
        choose(Library([tmp_path]), Request(model, other, nfe=5))


def test_a_saved_plain_solver_is_the_last_resort_where_only_the_number_of_levels_is_given(tmp_path):
    """A predictor of the sampler itself comes first, and no other number of levels is stretched onto it."""
    save(tmp_path / "plain.safetensors", plain("amed"))
    library, asked = Library([tmp_path]), Request(A, "amed", times=6)
    choice = choose(library, asked)
    assert choice.fitted.name == "plain.safetensors" and len(choice.sigmas) == 6 and not choice.remarks
    for other in (replace(asked, times=5), replace(asked, sampler="amed_euler"), replace(asked, exact=True)):
        with pytest.raises(PredictorError, match="no predictor"):
            choose(library, other)
    save(tmp_path / "table.safetensors", learned(count=6))
    assert choose(library, asked).fitted.name == "table.safetensors"


def test_other_files_stay_as_they_are_byte_for_byte(tmp_path):
    """The field is not written where it says nothing, and an older version keeps it as an unknown one."""
    path = save(tmp_path / "table.safetensors", learned())
    assert b"fitted_for" not in path.read_bytes()
    path = save(tmp_path / "kept.safetensors", plain("amed"))
    assert load(path).spec.fitted_for == "amed"


def test_for_a_named_sampler_the_stated_error_decides(tmp_path):
    save(tmp_path / "a first.safetensors", plain("amed", rmse_ref=0.5))
    save(tmp_path / "b better.safetensors", learned(rmse_ref=0.2))
    save(tmp_path / "c worse.safetensors", learned(rmse_ref=0.4))
    assert choose(Library([tmp_path]), Request(A, "amed", nfe=5)).fitted.name == "b better.safetensors"


def test_a_checkpoint_that_cannot_be_told_takes_what_is_for_none_in_particular(tmp_path):
    save(tmp_path / "a other.safetensors", learned(rmse_ref=0.1))
    save(tmp_path / "b own.safetensors", learned(model=UNREAD, rmse_ref=0.2))
    assert choose(Library([tmp_path]), Request(UNREAD, "amed", nfe=5)).fitted.name == "b own.safetensors"


def test_fits_for_two_samplers_do_not_overwrite_each_other(tmp_path):
    path = tmp_path / "calibrated.safetensors"
    for fitted in (learned(error=0.5), plain("amed_ipndm", error=0.1), plain("amed_deis", error=0.05)):
        keep(path, fitted)
    names = {load(p).spec.fitted_for or load(p).spec.sampler: p.name for p in tmp_path.glob("*.safetensors")}
    assert names == {
        "amed": "calibrated.safetensors", "amed_ipndm": "calibrated-2.safetensors",
        "amed_deis": "calibrated-3.safetensors",
    }  # fmt: skip
    keep(path, plain("amed", error=0.01))  # a better one for the same sampler, of another kind
    assert load(path).spec.fitted_for == "amed" and len(list(tmp_path.glob("*.safetensors"))) == 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_predictor_for_a_hosts_sampler_is_refused_in_words(name):
    x, sigmas = torch.zeros(1, 3, 4, 4), torch.tensor([5.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="fitted for the host's sampler 'dpmpp_2m'"):
        SAMPLERS[name](lambda x, sigma: x, x, sigmas, predictor=outside())


@pytest.mark.parametrize(
    "family", ["sd15", "a/b\\c:d", "", ".hidden", "con", "nul.x", "x" * 300, "é" * 200, "-"]
)
def test_any_family_makes_a_file_name(family):
    assert saved_as(f"{as_name(family)}-unknown-multistep", 12, 7.5)


@pytest.mark.parametrize(
    "seed", [0, 2**31 - 1, 2**63, 2**64 - 1, 2**64 - 1 + 10**9, (2**64 - 1) * 1_000_003, -1]
)
def test_any_seed_draws(seed):
    assert len(torch.randn(3, generator=seeded(seed)).unique()) == 3
    small = torch.Generator().manual_seed(5)
    assert torch.equal(torch.randn(3, generator=small), torch.randn(3, generator=seeded(5)))


def test_threads_share_a_library(tmp_path):
    """Two read and list while a third writes and deletes: nothing but what a deleted file explains."""
    library, wrong, stop = Library([tmp_path]), [], time.monotonic() + 2.0
    for n in range(30):
        save(tmp_path / f"{n}.safetensors", learned())

    def use():
        drawn = random.Random(1)
        while time.monotonic() < stop:
            try:
                library.fitted()
                library.problems()
                library.load(f"{drawn.randrange(30)}.safetensors")
            except PredictorError:
                pass
            except Exception as error:
                wrong.append(error)

    def change():
        drawn = random.Random(2)
        while time.monotonic() < stop:
            path = tmp_path / f"{drawn.randrange(30)}.safetensors"
            path.unlink(missing_ok=True)
            save(path, learned())

    threads = [threading.Thread(target=work) for work in (use, use, change)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
