"""The quick form of fuzz.py and pickles.py, and a check that both can fail."""

import random
import warnings

import pytest
import torch
from trust import broken_files as broken
from trust import fuzz, pickles

from amed import Library, PredictorError, load
from amed.files import spec, store

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def good():
    torch.set_num_threads(1)
    return broken.seeds()


def test_valid_files_load_and_run(good, tmp_path):
    kinds = set()
    for name, data in good.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        fitted = load(path)
        kinds.add((fitted.spec.solver, fitted.spec.features, fitted.spec.parts, fitted.spec.channels > 0))
        assert fuzz.sampled(fitted).isfinite().all() and list(fuzz.use(fitted, tmp_path)) == []
    assert len(kinds) >= 10


def test_the_same_number_gives_the_same_file(good):
    files = [[broken.broken(good, random.Random(n)).bytes() for n in range(50)] for _ in range(2)]
    assert files[0] == files[1] and len(set(files[0])) > 45


def test_every_kind_of_change_is_made(good):
    changes = {name for n in range(400) for name, _ in broken.broken(good, random.Random(n)).changes}
    assert broken.CHANGES.keys() <= changes


def test_broken_files(good):
    findings = fuzz.Findings()
    fuzz.files(300, 10**6, findings)
    assert findings.faults == [] and findings.files == 300
    assert (
        findings.outcomes["loads"] > 10 and findings.outcomes["refused, with the field or tensor named"] > 100
    )


def test_lists_with_broken_files_and_non_files():
    findings = fuzz.Findings()
    fuzz.folders(60, 2 * 10**6, findings)
    fuzz.special(findings)
    fuzz.check_saving(20, 3 * 10**6, findings)
    assert findings.faults == []


def test_broken_codes():
    findings = fuzz.Findings()
    fuzz.codes(150, 4 * 10**6, findings)
    assert findings.faults == []


def test_the_fuzz_detects_removed_checks(monkeypatch):
    """Without the checks for links, errors and field lengths, the same files count as faults."""
    monkeypatch.setattr(store, "shortened", str)
    monkeypatch.setattr(spec, "MAX_CHARACTERS", 10**9)
    monkeypatch.setattr(Library, "links_outside", lambda self, path: False)
    findings = fuzz.Findings()
    fuzz.special(findings)
    assert any("link out" in fault for fault in findings.faults)
    findings = fuzz.Findings()
    fuzz.files(300, 10**6, findings)
    assert any("characters" in fault for fault in findings.faults)


# --- faults that the fuzz found, one by one ----------------------------------------------------------------


@pytest.mark.parametrize(
    "field, value, word",
    [
        ("metrics", "[" * 100_000, "metrics"),
        ("metrics", '{"a":' * 400 + "1" + "}" * 400, "deep"),
        ("guidance", "9" * 400, "float"),
        ("sigma_max", "9" * 400, "sigma_max"),
        ("model_name", '"\\ud800"', "model_name"),
        ("model_name", '"\\u001b[2J"', "control"),
        ("how", '"' + "x" * 50_000 + '"', "characters"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(good, tmp_path, field, value, word):
    file = broken.draft(good["constants"])
    file.meta[field] = value
    path = tmp_path / "bad.safetensors"
    path.write_bytes(file.bytes())
    with pytest.raises(
        PredictorError, match=rf"bad\.safetensors: cannot be loaded: field '?{field}.*|{field}"
    ) as caught:
        load(path)
    assert word in str(caught.value) and len(str(caught.value)) < 1000


def test_a_too_large_rho_is_refused(good, tmp_path):
    file = broken.draft(good["polynomial"])
    file.meta["rho"] = "1e-300"
    (tmp_path / "bad.safetensors").write_bytes(file.bytes())
    with pytest.raises(PredictorError, match="'rho'"):
        load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("kind", ["emoji32-dpmpp-nfe5-cfg2", "sd15-dpmpp-2m-nfe10", "polynomial"])
def test_an_r_that_leaves_no_step_is_an_error(good, tmp_path, kind):
    """A network's sigmoid can reach 0, which used to be a division by zero during sampling."""
    file = broken.draft(good[kind])
    name, value = ("fc_r.bias", -1e9) if "fc_r.bias" in file.names() else ("r", 1e-300)
    broken.put(file, name, torch.full_like(broken.values(file, name), value))
    (tmp_path / "p.safetensors").write_bytes(file.bytes())
    with pytest.raises(ValueError, match="two noise levels are too close"):
        fuzz.sampled(load(tmp_path / "p.safetensors"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize("kind, tensor", [("emoji32-amed-nfe3-cfg1", "fc_r.weight"), ("constants", "sigmas")])
def test_non_finite_numbers_are_named(good, tmp_path, dtype, kind, tensor):
    file = broken.draft(good[kind])
    broken.put(file, tensor, broken.values(file, tensor).to(dtype))
    (tmp_path / "bad.safetensors").write_bytes(file.bytes())
    with pytest.raises(PredictorError, match=f"tensor '{tensor}' is {str(dtype)[6:]}"):
        load(tmp_path / "bad.safetensors")


def test_a_network_of_mixed_precision_runs(good, tmp_path):
    """Half precision in one of its layers used to be an error in the first run."""
    file = broken.draft(good["emoji32-amed-nfe3-cfg1"])
    broken.put(file, "fc_r.weight", broken.values(file, "fc_r.weight").half())
    (tmp_path / "half.safetensors").write_bytes(file.bytes())
    fitted = load(tmp_path / "half.safetensors")
    assert {p.dtype for p in fitted.predictor.parameters()} == {torch.float32}
    assert fuzz.sampled(fitted).isfinite().all()


def test_a_file_with_incomparable_metrics_is_not_chosen(good, tmp_path):
    """A file with an error of NaN, or of 400 digits, must neither be chosen nor break the choice."""
    from amed.choose import Identity, Request, choose

    for name, value in {"a": "NaN", "b": "9" * 400, "c": "0.5"}.items():
        file = broken.draft(good["constants"])
        file.meta["metrics"] = f'{{"rmse_ref": {value}, "error": {value}}}'
        (tmp_path / f"{name}.safetensors").write_bytes(file.bytes())
    library = Library([tmp_path])
    nfe = library.load("c.safetensors").nfe
    assert choose(library, Request(Identity("", ""), "auto", 1.0, nfe)).fitted.name == "c.safetensors"
    _, remark = fuzz.keep(tmp_path / "b.safetensors", library.load("c.safetensors"))
    assert "saved as b.safetensors" in remark


def test_a_large_file_is_not_read(good, tmp_path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(good["constants"])
        file.truncate(2**40)
    with pytest.raises(PredictorError, match=r"large\.safetensors: cannot be loaded: \d+ bytes"):
        load(path)


def test_links_within_the_folders_are_followed_and_others_named(good, tmp_path):
    """The user's folder may link into another folder of the library."""
    for folder in ("user", "other", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.safetensors").write_bytes(good["constants"])
    (tmp_path / "user" / "near.safetensors").symlink_to(tmp_path / "other" / "other.safetensors")
    (tmp_path / "user" / "far.safetensors").symlink_to(tmp_path / "elsewhere" / "elsewhere.safetensors")
    library = Library([tmp_path / "user", tmp_path / "other"])
    assert list(library.named()) == ["near.safetensors", "user.safetensors", "other.safetensors"]
    assert "far.safetensors: a link to a place outside the predictor folders" in library.problems()[0]
    with pytest.raises(PredictorError, match="a link to a place outside"):
        library.load("far.safetensors")


# --- pickles -----------------------------------------------------------------------------------------------


def test_hostile_pickles():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problems, figures = pickles.faults(200, 10**6)
    assert problems == [] and figures["files"] == 200


def test_the_hook_records_executed_code(tmp_path):
    """A reader that looks names up as pickle does creates a folder, and the hook must record it."""
    pickles.warm(tmp_path)
    (tmp_path / "0.pkl").write_bytes(b"cos\nmkdir\n" + pickles.text(str(tmp_path / "ran")) + b"\x85R.")
    result = pickles.watched(tmp_path, "Reader.find_class = pickle._Unpickler.find_class")
    outcome, events, *_ = result["results"]["0.pkl"]
    assert (tmp_path / "ran").is_dir() and any(event.startswith("os.mkdir") for event in events), outcome


@pytest.mark.parametrize(
    "data, word",
    [
        (b"Nr\xff\xff\xff\x7f.", "no 'model'"),  # a memo of 34 GB, in the C unpickler
        (b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86b.", "changes a function"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.", "empty memory"),
        (
            pickles.model({"sampler_tea": pickles.doubled(60), "num_steps": pickles.number(10**9)}),
            "has no num_steps",
        ),
        (
            b"}" + pickles.text("model") + b"cbuiltins\nobject\n)\x81s.",
            "no 'model'",
        ),  # an object that is never initialised
        (pickles.model({"num_steps": pickles.number(10**5)}), "num_steps is 100000"),
        (pickles.model({"sampler_stu": b"]"}), "has no sampler_stu"),
        (
            pickles.model({"_modules": b"}" + pickles.text("a") + pickles.modules(60) + b"s"}),
            "larger than a predictor",
        ),
        (
            b"}" + pickles.text("model") + pickles.tensor(b"J\xff\xff\xff\x7f\x85", b"K\x00\x85") + b"s.",
            "shape",
        ),
    ],
)
def test_faults_found_by_hostile_pickles(tmp_path, data, word):
    from predictors.authors import convert

    (tmp_path / "bad.pkl").write_bytes(data)
    with pytest.raises(PredictorError, match=r"bad\.pkl") as caught:
        convert(tmp_path / "bad.pkl")
    assert word in str(caught.value)
