"""A fit no better than no sampling at all is marked, and runs only if it is named."""

import math
from dataclasses import replace

import pytest
import torch

from amed import Fitted, PredictorError, Solver, Spec, load, save, schedules
from amed.choose import Identity, Request, choose
from amed.constants import as_multistep
from amed.files import Library
from amed.files.keep import keep
from amed.fit.compare import Judge, verdict
from amed.fit.samples import Samples

ME = Identity("sd15", "a" * 16)


def fitted(**metrics):
    times = schedules.make("polynomial", 6, 0.03, 14.6)
    spec = Spec.on("multistep", times, model_family="sd15", model_fingerprint=ME.fingerprint, metrics=metrics)
    return Fitted(spec, as_multistep(Solver("ipndm", 2), times), times)


def test_the_error_of_no_sampling_is_the_distance_between_references():
    ends = torch.tensor([0.0, 2.0, 4.0]).view(3, 1, 1, 1)
    judge = Judge(None, Samples(ends, {}, ends), 4)
    others = torch.tensor([4.0, 0.0, 2.0]).view(3, 1, 1, 1)
    assert judge.verdict(others)["no_sampling_error"] == pytest.approx(judge.error(others), abs=1e-5)
    assert judge.verdict(ends) == {}
    assert judge.verdict(others)["usable"] is False


@pytest.mark.parametrize(("error", "usable"), [(0.5, True), (1.0, False), (112.0, False), (math.nan, False)])
def test_the_mark_in_a_file(error, usable):
    assert verdict(error, 1.0).get("usable", True) is usable


def test_auto_skips_a_marked_fit_and_its_name_runs_it_with_a_remark(tmp_path):
    save(tmp_path / "bad.safetensors", fitted(error=112.0, usable=False, no_sampling_error=3.0))
    library, request = Library([tmp_path]), Request(ME, nfe=5)
    with pytest.raises(PredictorError, match=r"bad\S* is left out"):
        choose(library, request)
    choice = choose(library, replace(request, fitted=load(tmp_path / "bad.safetensors")))
    assert any("no better than no sampling" in remark for remark in choice.remarks)
    save(tmp_path / "old.safetensors", fitted(error=112.0))  # an older file without the mark
    assert choose(Library([tmp_path]), request).fitted.name.startswith("old")


@pytest.mark.parametrize("error", [112.0, 0.1])
def test_a_marked_fit_never_replaces_a_usable_one(tmp_path, error):
    path = tmp_path / "one.safetensors"
    keep(path, fitted(error=1.0))
    saved, remark = keep(path, fitted(error=error, usable=False, no_sampling_error=0.05))
    assert saved.name == "one-2.safetensors" and "not usable" in remark
    assert keep(saved, fitted(error=200.0))[0] == saved
