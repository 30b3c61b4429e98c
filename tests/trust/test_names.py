"""No name leaves its folder: the doors of the engine, that all hosts go through. Theirs are tried in
tests/webui/test_names.py and tests/comfyui/test_names.py."""

import pathlib
import re
import subprocess

import pytest
import torch
from trust import names

from amed import Fitted, Library, PredictorError, Spec, save
from amed.files.store import file_name, saved_as

WINDOWS = re.compile(r"(con|prn|aux|nul|com[1-9¹²³]|lpt[1-9¹²³])", re.IGNORECASE)


def plain() -> Fitted:
    times = torch.tensor([40.0, 1.0, 0.1], dtype=torch.float64)
    return Fitted(Spec.on("euler", times, features="plain"), None, times)


def inside(name: str) -> None:
    """What any system's folder can have, and only there."""
    for kind in (pathlib.PurePosixPath, pathlib.PureWindowsPath):
        path = kind("folder") / name
        assert path.parts == ("folder", name) and not kind(name).is_absolute(), name
    assert not WINDOWS.fullmatch(name.split(".")[0].strip()) and len(name.encode()) < 230
    assert name.isprintable() and not name.startswith((".", "-", "~")) and name == name.strip(" .")


@pytest.mark.parametrize("name", [*names.OUT, *names.DEVICES], ids=ascii)
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="no file name") as caught:
        file_name(name)
    assert len(str(caught.value)) < 800
    if name not in names.DEVICES:  # of these saved_as makes another name
        for passes in (None, 3):
            try:
                inside(saved_as(name, 5, 1.0, passes))
            except ValueError as error:
                assert "no file name" in str(error)


def test_what_is_taken_stays_inside():
    taken = 0
    for name in names.made(2000, 0):
        try:
            inside(file_name(name))
            inside(saved_as(name, 5, 7.5))
            taken += 1
        except ValueError as error:
            assert "no file name" in str(error)
    assert taken > 50


@pytest.mark.parametrize("name", names.GOOD)
def test_names_that_people_give_are_taken(tmp_path, name):
    path = save(tmp_path / file_name(name), plain())
    inside(path.name)
    assert Library([tmp_path]).names() == [path.name]


def test_the_longest_name_can_be_saved_and_numbered(tmp_path):
    longest = next(n for n in range(250, 0, -1) if not refused("x" * n))
    assert longest > 150
    path = save(tmp_path / file_name("x" * longest), plain())
    assert save(path.with_name(f"{path.stem}-999{path.suffix}"), plain()).is_file()


def refused(name: str) -> bool:
    try:
        file_name(name)
    except ValueError:
        return True
    return False


def test_a_library_gives_only_what_it_lists(tmp_path):
    """By whatever name: the file beside the folder is a good one, which would load."""
    folder = tmp_path / "models"
    save(folder / "deep" / "good.safetensors", plain())
    outside = save(tmp_path / "x.safetensors", plain())
    asked = [*names.OUT, *names.made(200, 1), str(outside), "../x.safetensors", "deep/../../x.safetensors"]
    library = Library([folder])
    assert library.load("deep/good.safetensors").name == "good.safetensors"
    for name in {*asked, *(f"{n}.safetensors" for n in asked)}:
        with pytest.raises(PredictorError):
            library.load(name)


def test_a_name_in_the_way_is_not_followed(tmp_path):
    """A link where a fit is saved is replaced, what it names stays as it was."""
    target = tmp_path / "precious.txt"
    target.write_text("mine")
    (tmp_path / "models").mkdir()
    link = tmp_path / "models" / "p.safetensors"
    link.symlink_to(target)
    save(link, plain())
    assert target.read_text() == "mine" and link.is_file() and not link.is_symlink()


def test_every_door_is_known():
    """A new place that makes a path of a name has to be added here, and tried."""
    root = pathlib.Path(__file__).parents[2]
    listed = subprocess.run(["git", "ls-files", "nodes", "webui", "hosts", "scripts"], cwd=root, text=True,
                            capture_output=True, check=True).stdout.split()  # fmt: skip
    used = r"user_folder\(\) /|library\(\)\.load\(|output_folder\(\)|Path\(|\bopen\("
    doors = {
        f"{name}: {match}"
        for name in listed
        if name.endswith(".py")
        for match in re.findall(used, (root / name).read_text())
    }
    assert doors == {
        "nodes/calibration.py: user_folder() /",  # saved_as
        "nodes/train_predictor.py: user_folder() /",  # saved_as
        "nodes/save_predictor.py: user_folder() /",  # file_name
        "nodes/choice/workflow.py: library().load(",  # a name of the list
        "nodes/compare.py: output_folder()",  # a number
        "nodes/host/folders.py: output_folder()",
        "nodes/host/folders.py: Path(",
        "webui/calibrate.py: user_folder() /",  # saved_as
        "webui/host.py: Path(",
        "webui/run.py: library().load(",
        "webui/outside.py: library().load(",
        "scripts/amed_webui.py: Path(",
    }
