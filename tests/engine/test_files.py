import dataclasses
import gc
import json
import os
import pickle
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

import amed
from amed import BottleneckPredictor, Constants, Fitted, Library, PredictorError, Spec, schedules
from amed.choose import Identity, Request, choose
from amed.evaluate import Guided, evaluate_guided
from amed.files import description, store
from amed.fit.measures import Counter
from predictors import published


def table(**changes) -> Fitted:
    base = schedules.make("time_uniform", 4, 0.002, 80)
    spec = Spec(
        solver="amed", num_steps=4, schedule="time_uniform", sigma_min=0.002, sigma_max=80.0, afs=True
    )
    spec = dataclasses.replace(spec, **changes)
    return Fitted(spec, Constants(base, r=[0.3, 0.4, 0.5], c=[1.0, 0.99, 0.98], a=[1.0, 1.1, 0.9]), base)


def network() -> Fitted:
    torch.manual_seed(3)
    base = schedules.make("polynomial", 3, 0.03, 14)
    spec = Spec(
        solver="ipndm",
        max_order=3,
        num_steps=3,
        schedule="polynomial",
        rho=7.0,
        sigma_min=0.03,
        sigma_max=14.0,
        features="bottleneck",
        scale_dir=0.01,
        scale_time=0.2,
        guidance=2.0,
        model_family="sd15",
    )
    return Fitted(spec, BottleneckPredictor(0.01, 0.2), base)


@pytest.mark.parametrize("fitted", [table(), network(), published.sd15()], ids=["table", "network", "sd15"])
def test_round_trip(tmp_path, fitted):
    path = store.save(tmp_path / "sub" / "p.safetensors", fitted)
    again = store.load(path)
    assert (
        again.spec == fitted.spec
        and torch.equal(again.sigmas(), fitted.sigmas())
        and again.name == "p.safetensors"
    )
    h = torch.randn(2, 4, 8, 8)
    for i in range(len(fitted.base) - 1):
        t, s = fitted.base[i : i + 2].tolist()
        for mine, theirs in zip(again.predictor(t, s, h), fitted.predictor(t, s, h), strict=True):
            assert torch.allclose(torch.as_tensor(mine), torch.as_tensor(theirs))
    assert [f.name for f in (tmp_path / "sub").iterdir()] == ["p.safetensors"]


# --- format 2: what is absent, required, unknown; format 1


def test_absent_fields_have_their_defaults(tmp_path):
    """A header needs only the solver and its times."""
    path = store.save(tmp_path / "p.safetensors", table(guidance=4.0, model_family="sd15", afs=False))
    with store.safe_open(path, framework="pt") as file:
        header = file.metadata()
    required = {"amed_format", "solver", "num_steps", "schedule", "sigma_min", "sigma_max"}
    rewrite(path, dict.fromkeys(header.keys() - required))
    again = store.load(path)
    assert again.spec == Spec("amed", 4, "time_uniform", 0.002, 80.0)
    assert (again.spec.guidance, again.spec.rho, again.spec.metrics, again.spec.afs) == (1.0, 1.0, {}, False)
    assert again.predictor.values["r"].tolist() == [0.3, 0.4, 0.5]


@pytest.mark.parametrize("lacking", ["parts:colours", "constant:q", "lookahead"])
def test_requirements_for_a_reader_are_named(tmp_path, lacking):
    path = store.save(tmp_path / "newer.safetensors", table())
    rewrite(path, {"requires": json.dumps(["plain", lacking])})
    with pytest.raises(
        PredictorError, match=rf"newer\.safetensors: .*'requires' names {lacking}, .*: update AMED"
    ):
        store.load(path)
    rewrite(path, {"requires": json.dumps(["plain"])})
    assert store.load(path).nfe == 5


def test_unknown_fields_are_kept(tmp_path):
    """Fields of a newer version, of any kind, are kept; they used to be dropped."""
    path, unknown = store.save(tmp_path / "p.safetensors", table()), {"tempo": '"slow"', "odd": "not json"}
    rewrite(path, unknown)
    fitted = store.load(path)
    assert fitted.spec.unknown == unknown
    again = store.load(store.save(tmp_path / "q.safetensors", fitted))
    assert again.spec == fitted.spec and again.spec.unknown == unknown
    with store.safe_open(tmp_path / "q.safetensors", framework="pt") as file:
        assert unknown.items() <= file.metadata().items()
    assert "tempo" in description.describe(again) and description.as_json(again)["solver"] == "amed"


FORMAT_1 = {  # every field of format 1, all required
    "amed_format": "1", "solver": '"multistep"', "num_steps": "4", "schedule": '"custom"', "sigma_min": "0.1",
    "sigma_max": "40.0", "rho": "1.0", "afs": "false", "max_order": "1", "predict_x0": "false",
    "lower_order_final": "true", "thresholding": "false", "scales_timestep": "false",
    "prediction_type": '"eps"', "guidance": "4.0", "model_family": '"toy"', "model_fingerprint": '""',
    "model_name": '"a toy"', "features": '"none"', "scale_dir": "0.0", "scale_time": "0.0", "how": '""',
    "source": '""', "metrics": '{"error": 0.25}',
}  # fmt: skip
TIMES = torch.tensor([40.0, 10.0, 2.0, 0.1], dtype=torch.float64)
WEIGHTS = torch.tensor([[1.0, 0.0], [1.4, -0.4], [1.3, -0.3]], dtype=torch.float64)


SCALES = torch.tensor([1.0, 1.01, 0.99], dtype=torch.float64)


def format_1(path, g, **header):
    tensors = {"sigmas": TIMES, "weights": WEIGHTS, "a": SCALES, "g": g}
    save_file(tensors, path, metadata=FORMAT_1 | header)
    return path


def test_a_format_1_file_loads(tmp_path):
    path = format_1(tmp_path / "old.safetensors", torch.ones(3, dtype=torch.float64))
    fitted = store.load(path)
    spec = fitted.spec
    assert (spec.guidance, spec.model_name, spec.metrics, spec.parts) == (4.0, "a toy", {"error": 0.25}, "")
    assert fitted.nfe == 3 and spec.variant == "bh1" and spec.unknown == {}
    assert torch.equal(fitted.predictor.weights[..., 0], WEIGHTS)
    newer = store.save(tmp_path / "new.safetensors", fitted)
    with store.safe_open(newer, framework="pt") as file:
        assert file.metadata()["amed_format"] == "2" and set(file.keys()) == {"sigmas", "weights", "a"}
    assert store.load(newer).spec == spec
    constants = {"sigmas": TIMES, **{k: torch.full((3,), 0.6, dtype=torch.float64) for k in "rca"}}
    save_file(constants, path, metadata=FORMAT_1 | {"solver": '"amed"', "afs": "true"})
    assert store.load(path).predictor(10.0, 2.0) == (0.6, 0.6, 0.6) and store.load(path).nfe == 5


class Labelled(torch.nn.Module):
    def forward(self, x, sigma, shift):
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2) + shift.view(-1, 1, 1, 1)


@pytest.mark.parametrize("afs", [False, True])
def test_format_1_guidance_factors_become_weights_of_the_guidance_part(tmp_path, afs):
    """The images stay the same: each evaluation's guidance is scaled by its factor."""
    factors = [0.7, 0.5, 1.2]
    path = format_1(
        tmp_path / "g.safetensors", torch.tensor(factors, dtype=torch.float64), afs=json.dumps(afs)
    )
    fitted = store.load(path)
    assert fitted.spec.parts == "guidance" and fitted.spec.requires == ["parts:guidance"]
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 40
    args = {"cond": {"shift": torch.full((2,), 0.5)}, "uncond": {"shift": torch.zeros(2)}}
    again = store.load(store.save(tmp_path / "g2.safetensors", fitted))
    ends = [
        amed.sample_amed_multistep(
            Guided(Labelled(), 4.0), x, TIMES, args, disable=True, predictor=f, evaluate=evaluate_guided
        )
        for f in (fitted, again)
    ]
    assert torch.equal(*ends)
    slopes = []
    for n, (t, s) in enumerate(zip(TIMES.tolist(), TIMES.tolist()[1:])):
        if afs and n == 0:
            d = x / (1 + t * t) ** 0.5
        else:
            timestep = x.new_full((2,), float(SCALES[n]) * t)
            d = (x - Guided(Labelled(), 4.0 * factors[n])(x, timestep, **args)) / t
        slopes.insert(0, d)
        x = x + (s - t) * sum(w * d for w, d in zip(WEIGHTS[n].tolist(), slopes))
    assert torch.allclose(ends[0], x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("g", [[1.0, 1.2], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0]])
def test_bad_factors_are_named(tmp_path, g):
    path = format_1(tmp_path / "g.safetensors", torch.tensor(g).double())
    with pytest.raises(PredictorError, match=r"g\.safetensors: cannot be loaded: tensor 'g'"):
        store.load(path)


def test_a_student_that_no_sampler_runs_is_refused(tmp_path):
    """Heun has no mid time to learn; such a file used to break every listing of its library."""
    with pytest.raises(ValueError, match="field 'solver' of the predictor is 'heun'.*no sampler runs"):
        table(solver="heun")
    path = store.save(tmp_path / "p.safetensors", table())
    rewrite(path, {"solver": '"heun"'})
    library = Library([tmp_path])
    assert library.fitted() == [] and "heun" in library.problems()[0]


def test_nfe_counts():
    assert table().nfe == 5 and network().nfe == 4 and published.sd15().nfe == 10


def rewrite(path, header=None, tensors=None):
    """Write the same file with other header fields (None removes one) or other tensors."""
    with store.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    all_tensors = load_file(path) | (tensors or {})
    metadata = {k: v for k, v in (metadata | (header or {})).items() if v is not None}
    save_file({k: v for k, v in all_tensors.items() if v is not None}, path, metadata=metadata)


@pytest.mark.parametrize(
    "header, tensors, word",
    [
        ({"amed_format": None}, {}, "amed_format"),
        ({"amed_format": "9"}, {}, "amed_format"),
        ({"solver": None}, {}, "solver"),
        ({"sigma_min": None}, {}, "sigma_min"),
        ({"guidance": '"high"'}, {}, "guidance"),
        ({"afs": "1"}, {}, "afs"),
        ({"num_steps": "true"}, {}, "num_steps"),
        ({"num_steps": "{"}, {}, "num_steps"),
        ({"num_steps": "5"}, {}, "num_steps"),
        ({"solver": '"magic"'}, {}, "solver"),
        ({"max_order": "7"}, {}, "max_order"),
        ({"sigma_max": "0.001"}, {}, "sigma_max"),
        ({"sigma_max": "70.0"}, {}, "sigma_max"),
        ({"rho": "3.0"}, {}, "schedule"),
        ({"schedule": '"polynomial"'}, {}, "schedule"),
        ({"prediction_type": '"z"'}, {}, "prediction_type"),
        ({"features": '"bottleneck"'}, {}, "tensor"),
        ({}, {"sigmas": None}, "sigmas"),
        ({}, {"r": None}, "'r'"),
        ({}, {"r": torch.tensor([0.5])}, "r must have"),
        ({}, {"c": torch.tensor([1.0, float("nan"), 1.0])}, "c is not finite"),
    ],
)
def test_an_inconsistent_files_error_names_file_and_field(tmp_path, header, tensors, word):
    path = store.save(tmp_path / "bad.safetensors", table())
    rewrite(path, header, tensors)
    with pytest.raises(PredictorError, match=r"bad\.safetensors") as caught:
        store.load(path)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "name, tensor, word",
    [
        ("fc_r.weight", None, "fc_r.weight"),
        ("fc_r.weight", torch.zeros(2, 20), "fc_r.weight"),
        ("extra", torch.zeros(1), "extra"),
        ("enc_layer0.bias", torch.full((128,), float("inf")), "enc_layer0.bias"),
    ],
)
def test_a_broken_networks_error_names_the_tensor(tmp_path, name, tensor, word):
    path = store.save(tmp_path / "net.safetensors", network())
    rewrite(path, tensors={name: tensor})
    with pytest.raises(PredictorError, match=word):
        store.load(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not safetensors", pickle.dumps({"r": 1}), b"\x10\x00\x00\x00\x00\x00\x00\x00{}"],
    ids=range(4),
)
def test_foreign_and_truncated_files_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(PredictorError, match="x.safetensors"):
        store.load(path)
    complete = store.save(tmp_path / "y.safetensors", table()).read_bytes()
    path.write_bytes(complete[:-9])
    with pytest.raises(PredictorError, match="incomplete"):
        store.load(path)
    with pytest.raises(PredictorError, match="no such"):
        store.load(tmp_path / "none.safetensors")


def test_a_safetensors_file_without_a_predictor_is_refused(tmp_path):
    save_file({"lora.weight": torch.zeros(3)}, tmp_path / "lora.safetensors")
    with pytest.raises(PredictorError, match="not an AMED predictor"):
        store.load(tmp_path / "lora.safetensors")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = store.save(tmp_path / "p.safetensors", table())
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(PredictorError, match="disk full"):
        store.save(path, network())
    monkeypatch.undo()
    with pytest.raises(PredictorError, match="not saved"):
        store.save(
            path, dataclasses.replace(table(), base=torch.tensor([80.0, 1.0, 0.002], dtype=torch.float64))
        )
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["p.safetensors"]


def test_a_library_finds_and_lists_its_files(tmp_path):
    user, bundled = tmp_path / "user", tmp_path / "bundled"
    store.save(bundled / "a.safetensors", table(model_family="sd15", model_fingerprint="A", guidance=1.0))
    store.save(bundled / "b.safetensors", table(model_family="sd15", model_fingerprint="A", guidance=7.0))
    store.save(user / "c.safetensors", table(model_family="sd15", model_fingerprint="B", guidance=5.0))
    store.save(user / "deep" / "d.safetensors", network())
    library = Library([user, bundled])
    assert library.names() == ["a.safetensors", "b.safetensors", "c.safetensors", "deep/d.safetensors"]

    def find(nfe, guidance=1.0, family="", fingerprint=""):
        return choose(library, Request(Identity(family, fingerprint), "amed", guidance, nfe)).fitted

    assert find(5, 6.0, "sd15", "A").name == "b.safetensors"
    assert find(5, 1.2, fingerprint="A").name == "a.safetensors"
    assert find(5, 1.0, "sd15", "C").spec.model_fingerprint in ("A", "B")
    with pytest.raises(PredictorError) as caught:
        find(6, 1.0, "sd15")
    assert "nfe 6" in str(caught.value) and "nearest is a.safetensors" in str(caught.value)
    with pytest.raises(PredictorError, match="sdxl"):
        find(5, family="sdxl", fingerprint="Z")
    with pytest.raises(PredictorError, match="deep/d"):
        library.load("nope")


def test_a_broken_file_affects_no_other_and_is_reread_once_repaired(tmp_path):
    store.save(tmp_path / "good.safetensors", table())
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nonsense")
    library = Library([tmp_path, tmp_path / "not there"])
    assert [f.name for f in library.fitted()] == ["good.safetensors"]
    assert len(library.problems()) == 1 and "bad.safetensors" in library.problems()[0]
    with pytest.raises(PredictorError, match=r"bad\.safetensors"):
        library.load("bad.safetensors")
    store.save(bad, network())
    os.utime(bad, (1, 1))
    assert library.problems() == []


def test_a_broken_files_error_holds_no_memory_of_its_callers(tmp_path):
    """Its stored error used to hold the frames of every run that had raised it."""
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    library, callers = Library([tmp_path]), []

    def read():
        image = torch.zeros(9)
        callers.append(weakref.ref(image))
        library.load("bad.safetensors")

    for _ in range(2):
        with pytest.raises(PredictorError) as caught:
            read()
        del caught
    gc.collect()
    assert [image() for image in callers] == [None, None]


def test_a_fitted_file_sets_its_solver(tmp_path):
    def model(x, sigma):
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)

    x, fitted = torch.randn(1, 3, 8, 8) * 80, table()
    with pytest.raises(ValueError, match="fitted for the solver 'amed'"):
        amed.sample_amed_ipndm(model, x, fitted.sigmas(), predictor=fitted, disable=True)
    with pytest.raises(ValueError, match="max_order"):
        amed.sample_amed(model, x, fitted.sigmas(), predictor=fitted, disable=True, max_order=2)
    for sigmas, afs, expected in (
        (fitted.sigmas(), None, 5),
        (fitted.sigmas(), False, 6),
        (fitted.sigmas()[1:], None, 4),
    ):
        counter = Counter(model)
        amed.sample_amed(counter, x, sigmas, predictor=fitted, disable=True, afs=afs)
        assert counter.evaluations == expected
