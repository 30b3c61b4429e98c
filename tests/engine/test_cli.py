"""The command line, `python -m amed`."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from amed import Fitted, Solver, Spec, load, save, schedules
from amed.__main__ import main
from amed.fit import Calibration

TOY = """
import torch
from golden import Toy
from amed.evaluate import FromModule
from amed.fit.target import Target

def target(guidance):
    toy = Toy(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    def draw(generator, count):
        return torch.randn(count, 3, 8, 8, generator=generator), {}
    listen = FromModule(toy.middle_block)
    return Target(toy, draw, 0.01, 40.0, "edm", "toy", "f" * 16, "a toy", evaluate=listen)

def other(guidance):
    from dataclasses import replace
    return replace(target(guidance), fingerprint="e" * 16, name="another", evaluate=None)

def wrong(guidance):
    return 3
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_model.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    yield "toy_model:target"
    sys.modules.pop("toy_model", None)


def test_calibrate_inspect_evaluate(toy, tmp_path, capsys):
    out = tmp_path / "my.safetensors"
    assert main(["calibrate", "--model", toy, "--nfe", "4", "5", "--budget", "2500", "--out", str(out)]) == 0
    files = [tmp_path / f"my-nfe{nfe}.safetensors" for nfe in (4, 5)]
    assert [load(f).nfe for f in files] == [4, 5]
    assert load(files[0]).spec.model_fingerprint == "f" * 16
    assert "of the best plain solver" in capsys.readouterr().out
    assert main(["inspect", *map(str, files)]) == 0
    assert "weights" in capsys.readouterr().out
    assert main(["inspect", "--json", str(files[0])]) == 0
    assert json.loads(capsys.readouterr().out)["solver"] == "multistep"
    rows_file = tmp_path / "rows.json"
    assert (
        main(["evaluate", "--model", toy, *map(str, files), "--noises", "32", "--json", str(rows_file)]) == 0
    )
    rows = json.loads(rows_file.read_text())
    assert {"solver", "schedule", "nfe", "guidance", "rmse_ref", "seconds"} <= rows[0].keys()
    for nfe, ours in zip((4, 5), rows):
        assert ours["nfe"] == nfe
        assert ours["rmse_ref"] < min(r["rmse_ref"] for r in rows[2:] if r["nfe"] == nfe)
    again = [
        "calibrate",
        "--model",
        toy,
        "--nfe",
        "5",
        "--budget",
        "2500",
        "--start",
        str(files[1]),
        "--seed",
        "1",
    ]
    assert main([*again, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--model", "toy_model:other", str(files[1]), "--noises", "4"]) == 0
    noted = capsys.readouterr().err  # a file of another model runs only with a remark
    assert "note: my-nfe5.safetensors: fitted for another checkpoint of this family (a toy)" in noted


def test_evaluate_draws_other_noise_than_calibrate(toy, monkeypatch):
    """Both begin at seed 0; `evaluate` used to draw the noises that the calibration had held out."""
    import toy_model

    target, drawn = toy_model.target(1.0), []

    def draw(generator, count):
        drawn.append(generator.initial_seed())
        return target.draw(generator, count)

    monkeypatch.setattr(toy_model, "target", lambda guidance: dataclasses.replace(target, draw=draw))
    out = Path(toy_model.__file__).parent / "my.safetensors"
    assert main(["calibrate", "--model", toy, "--nfe", "3", "--budget", "1560", "--out", str(out)]) == 0
    calibrated = set(drawn)
    drawn.clear()
    assert main(["evaluate", "--model", toy, str(out), "--noises", "2"]) == 0
    assert calibrated and drawn and not calibrated & set(drawn)


def test_a_plain_solvers_file_can_be_inspected(tmp_path, capsys):
    times = schedules.make("polynomial", 4, 0.01, 40)
    spec = Spec.on(Solver("heun"), times, features="plain", how="the fit did not beat it")
    path = save(tmp_path / "heun.safetensors", Fitted(spec, None, times))
    assert main(["inspect", str(path)]) == 0
    output = capsys.readouterr().out
    assert "heun, 6 evaluations" in output and "nothing was fitted" in output and '"plain"' in output


def test_train(toy, tmp_path):
    out = tmp_path / "mlp.safetensors"
    assert (
        main(["train", "--model", toy, "--nfe", "5", "--images", "32", "--batch", "8", "--out", str(out)])
        == 0
    )
    assert load(out).nfe == 5 and load(out).wants_bottleneck
    assert main(["inspect", str(out)]) == 0


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["inspect", "nowhere.safetensors"], "no such predictor file"),
        (["convert", "nowhere.pkl", "x.safetensors"], "no such file"),
        (["calibrate", "--nfe", "1", "--out", "x.safetensors", "--model", "toy_model:target"], "at least 2"),
        (
            [
                "calibrate",
                "--nfe",
                "5",
                "--budget",
                "10",
                "--out",
                "x.safetensors",
                "--model",
                "toy_model:target",
            ],
            "10",
        ),
        (["calibrate", "--nfe", "5", "--out", "x.safetensors", "--model", "nowhere:target"], "nowhere"),
        (["calibrate", "--nfe", "5", "--out", "x.safetensors", "--model", "toy_model:wrong"], "int"),
        (["calibrate", "--nfe", "5", "--out", "x.safetensors", "--model", "toy_model"], "module:function"),
        (
            [
                "calibrate",
                "--nfe",
                "5",
                "--out",
                "x.safetensors",
                "--model",
                "toy_model:target",
                "--features",
            ],
            "Target.features",
        ),
        (["train", "--nfe", "5", "--out", "x.safetensors", "--model", "toy_model:other"], "Target.evaluate"),
    ],
)
def test_an_error_is_one_line_and_exits_with_1(toy, argv, expected, capsys):
    assert main(argv) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and expected in error[-1]


@pytest.mark.parametrize("command", ["calibrate", "train", "evaluate", "inspect", "convert"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0 and command in capsys.readouterr().out


def test_wrong_usage_exits_with_2():
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate"])
    assert stopped.value.code == 2


def test_an_interrupted_calibration_keeps_the_best_so_far(toy, tmp_path, monkeypatch):
    original_run = Calibration.run

    def stopped(self):
        for progress in original_run(self):
            if progress.stage == "fit":
                raise KeyboardInterrupt
            yield progress

    monkeypatch.setattr(Calibration, "run", stopped)
    out = tmp_path / "my.safetensors"
    assert main(["calibrate", "--model", toy, "--nfe", "5", "--budget", "2500", "--out", str(out)]) == 130
    spec = load(out).spec
    assert "did not beat" in spec.how and not spec.metrics["finished"]
