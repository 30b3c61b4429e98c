"""The authors' pickles are read without executing anything; hostile ones are refused."""

import contextlib
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from amed import PredictorError, load, save
from predictors.authors import convert

AUTHORS = {  # a stand-in for the authors' packages, as far as it affects the pickle
    "torch_utils/__init__.py": "",
    "torch_utils/persistence.py": """
        import copyreg

        def _reconstruct_persistent_obj(meta):
            raise SystemExit("must never run")

        class Meta(dict):
            pass

        def persistent(cls):
            class Persistent(cls):
                def __reduce__(self):
                    meta = dict(type="class", version=6, module_src="", class_name=cls.__name__)
                    meta["state"] = self.__dict__
                    return _reconstruct_persistent_obj, (meta,), None
            Persistent.__name__ = Persistent.__qualname__ = cls.__name__
            return Persistent
        """,
    "training/__init__.py": "",
    "training/networks.py": """
        import torch
        from torch_utils.persistence import persistent

        class PositionalEmbedding(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.num_channels, self.endpoint = 8, True

        class Predictor(torch.nn.Module):
            def __init__(self, **settings):
                super().__init__()
                self.__dict__.update(settings)
                self.map_noise, self.sigmoid = PositionalEmbedding(), torch.nn.Sigmoid()
                self.map_layer0 = torch.nn.Linear(8, 8)
                self.enc_layer0, self.enc_layer1 = torch.nn.Linear(64, 128), torch.nn.Linear(128, 4)
                self.fc_r = torch.nn.Linear(20, 1)
                if self.scale_dir:
                    self.fc_scale_dir = torch.nn.Linear(20, 1)
                if self.scale_time:
                    self.fc_scale_time = torch.nn.Linear(20, 1)

        class Loss:
            def __init__(self):
                self.sigma_min, self.sigma_max, self.buffer = 0.01, 50.0, None

        AMED_predictor, AMED_loss = persistent(Predictor), persistent(Loss)
        """,
    "write.py": """
        import pickle, sys, torch
        from training.networks import AMED_loss, AMED_predictor
        for name in sys.argv[1:]:
            student, scale_dir = name.removesuffix(".pkl").split("-")
            torch.manual_seed(0)
            model = AMED_predictor(num_steps=4, sampler_stu=student, sampler_tea="heun", M=1,
                schedule_type="time_uniform", schedule_rho=1, afs=True, scale_dir=float(scale_dir),
                scale_time=0.2,
                max_order=3, predict_x0=True, lower_order_final=False, guidance_type=None, guidance_rate=2.0,
                dataset_name="cifar10", img_resolution=32).eval().requires_grad_(False)
            with open(name, "wb") as file:
                pickle.dump(dict(model=model, loss_fn=AMED_loss()), file)
            torch.save(model.state_dict(), name + ".pt")
        """,
}


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """`authors(student, scale_dir)` returns a file in the authors' format and its tensors, written by another
    process."""
    folder = tmp_path_factory.mktemp("authors")
    for name, text in AUTHORS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    names = [*(f"{student}-0.01.pkl" for student in ("amed", "dpm", "dpmpp", "euler", "ipndm")), "amed-0.pkl"]
    subprocess.run([sys.executable, "write.py", *names], cwd=folder, check=True)

    def written(student, scale_dir=0.01):
        file = folder / f"{student}-{scale_dir}.pkl"
        return file, torch.load(f"{file}.pt", weights_only=True)

    return written


@pytest.mark.parametrize(
    ("student", "solver", "order"),
    [
        ("amed", "amed", 1),
        ("dpm", "dpm_2", 1),
        ("dpmpp", "dpmpp", 3),
        ("euler", "euler", 1),
        ("ipndm", "ipndm", 3),
    ],
)
def test_every_tensor_and_setting_is_converted(authors, tmp_path, student, solver, order):
    file, tensors = authors(student)
    fitted = load(save(tmp_path / "out.safetensors", convert(file)))
    spec = fitted.spec
    assert (spec.solver, spec.max_order, spec.num_steps, spec.afs) == (solver, order, 4, True)
    assert (spec.schedule, spec.sigma_min, spec.sigma_max) == (
        "time_uniform",
        pytest.approx(0.01),
        pytest.approx(50),
    )
    assert (spec.scale_dir, spec.scale_time, spec.guidance, spec.lower_order_final) == (0.01, 0.2, 2.0, False)
    assert spec.features == "bottleneck" and spec.model_name == "cifar10"
    state = fitted.predictor.state_dict()
    assert state.keys() == tensors.keys() and all(torch.equal(state[k], tensors[k]) for k in state)


def test_no_direction_scale_means_no_layer_for_it(authors):
    file, _ = authors("amed", 0)
    fitted = convert(file, sigma_min=0.1, sigma_max=14.0)
    assert fitted.predictor.fc_scale_dir is None
    assert (fitted.spec.sigma_min, fitted.spec.sigma_max) == (pytest.approx(0.1), pytest.approx(14))


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def hostile(marker):
    import copyreg
    import functools
    import importlib

    touch = f"touch {marker}"
    yield "system", pickle.dumps({"model": Calls(os.system, touch)})
    yield "eval", pickle.dumps({"model": Calls(eval, f"__import__('os').system({touch!r})")})
    yield "exec", pickle.dumps(Calls(exec, f"import os; os.system({touch!r})"), 4)
    yield "popen", pickle.dumps(Calls(subprocess.Popen, ["touch", str(marker)]))
    yield "import", pickle.dumps(Calls(importlib.import_module, "antigravity"))
    yield "partial", pickle.dumps(functools.partial(os.system, touch))
    yield (
        "getattr",
        pickle.dumps(Calls(getattr, os, "system"))
        if False
        else b"cos\nsystem\n(V" + touch.encode() + b"\ntR.",
    )
    yield "reconstructor", pickle.dumps(Calls(copyreg._reconstructor, subprocess.Popen, object, None))
    yield "dotted", b"\x80\x04\x8c\x0ctorch.nn.modules\x94\x8c\x05os.system\x94\x93."
    yield "hub", b"ctorch.hub\nload\n(Vx\nVy\ntR."
    yield "load", b"ctorch.serialization\nload\n(V" + str(marker).encode() + b"\ntR."
    inner = pickle.dumps(Calls(os.system, touch))
    yield "bytes", b"\x80\x04ctorch.storage\n_load_from_bytes\n" + pickle.dumps(inner, 4)[2:-1] + b"\x85R."
    yield "persistent", b"Pkey\n."
    yield "attribute", b"ctorch_utils.persistence\n_reconstruct_persistent_obj.__globals__\n."
    yield "truncated", pickle.dumps({"model": [1.0] * 99})[:40]
    yield "empty", b""
    yield "text", b"hello, this is no pickle"
    yield "zip", b"PK\x03\x04" + b"\0" * 60
    yield "memory", b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"x."
    yield "depth", b"(" * 100_000
    yield "list", pickle.dumps([1, 2, 3])


@pytest.mark.parametrize("number", range(21))
def test_hostile_files_execute_nothing(tmp_path, number):
    marker = tmp_path / "ran"
    name, data = list(hostile(marker))[number]
    file = tmp_path / f"{name}.pkl"
    file.write_bytes(data)
    with pytest.raises(PredictorError, match=f"{name}.pkl"):
        convert(file)
    assert not marker.exists()


def test_source_code_in_a_file_is_never_run(authors, tmp_path):
    file, _ = authors("amed")
    marker = tmp_path / "ran"
    source = f"open({str(marker)!r}, 'w')".encode()
    data = file.read_bytes()
    at = data.index(b"module_src")
    empty = data.index(b"\x8c\x00", at)  # the empty string that follows it
    changed = data[:empty] + b"\x8c" + bytes([len(source)]) + source + data[empty + 2 :]
    # frames state their length, so the pickle must have none
    changed = b"".join([changed[:2], changed[11:]] if changed[2:3] == b"\x95" else [changed])
    (tmp_path / "sourced.pkl").write_bytes(changed)
    with contextlib.suppress(PredictorError):
        convert(tmp_path / "sourced.pkl")
    assert not marker.exists()


def test_a_too_large_or_missing_file_is_refused(tmp_path):
    with pytest.raises(PredictorError, match="no such file"):
        convert(tmp_path / "none.pkl")
    big = tmp_path / "big.pkl"
    with big.open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(PredictorError, match="too many for an authors' predictor"):
        convert(big)
