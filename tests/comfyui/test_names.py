"""No name given to a node leaves the folder of predictors, and no broken file there breaks a node."""

import os
import shutil

import pytest
from trust import hostile_names as names

from demo.comfyui import RunError

SOME = [
    "../x",
    "/etc/passwd",
    "..\\x",
    "C:\\x",
    "a/b",
    "\0",
    "",
    "x" * 5000,
    "NUL",
    "\uff0e\uff0e\uff0fx",
    ".hidden",
]
assert {*SOME} <= {*names.OUT, *names.DEVICES, "NUL"}
FIT = {
    "nfe": "4",
    "sampler": "amed_multistep",
    "guidance": 1.0,
    "budget": "custom",
    "evaluations": 1000,
    "seed": 0,
}
TRAIN = {
    "sampler": "amed",
    "nfe": 4,
    "guidance": 1.0,
    "images": 16,
    "batch": 8,
    "teacher_points": 1,
    "learning_rate": 5e-3,
    "seed": 0,
}


def folder(server):
    return server.base / "models" / "amed_predictors"


def all_files(server):
    """Return all files of the host's folder except those that it writes itself."""
    return {p for p in server.base.rglob("*") if "models" in p.parts or p.parent == server.base}


@pytest.mark.parametrize("name", SOME, ids=ascii)
def test_saving_and_loading_stay_in_the_folder(server, graph, name):
    before = all_files(server)
    g = graph()
    loaded = g.add("AMEDLoadPredictor", name="test_amed.safetensors")
    g.add("AMEDSavePredictor", predictor=[loaded, 0], name=name)
    with pytest.raises(RunError, match="not a valid file name"):
        server.run(g.nodes)
    g = graph()
    loaded = g.add("AMEDLoadPredictor", name=name)
    g.add("AMEDPredictorInfo", predictor=[loaded, 0])
    with pytest.raises(RunError, match="there is no predictor"):
        server.run(g.nodes)
    assert all_files(server) == before


@pytest.mark.parametrize("node, inputs", [("AMEDCalibrate", FIT), ("AMEDTrainPredictor", TRAIN)])
def test_a_fits_name_stays_in_the_folder(server, graph, node, inputs):
    """The name is refused before any work."""
    before = all_files(server)
    for name in ("../x", "/tmp/x", "..\\x", "x" * 5000):
        g = graph()
        g.add(node, **g.around() | inputs | {"name": name})
        with pytest.raises(RunError, match="not a valid file name"):
            server.run(g.nodes)
    assert all_files(server) == before


def test_links_pipes_and_broken_files_break_no_node(server, graph):
    """A dangling link used to be an error in every node that checks files for changes."""
    odd = folder(server) / "odd"
    odd.mkdir()
    try:
        (odd / "gone.safetensors").symlink_to(odd / "nothing")
        (odd / "loop.safetensors").symlink_to(odd / "loop.safetensors")
        (odd / "out.safetensors").symlink_to("/etc/passwd")
        (odd / "folder.safetensors").mkdir()
        os.mkfifo(odd / "pipe.safetensors")
        with open(bytes(odd) + b"/\xff.safetensors", "wb") as file:
            file.write(b"x")
        with (odd / "large.safetensors").open("wb") as file:
            file.truncate(2**40)
        assert "test_amed.safetensors" in str(server.object_info()["AMEDLoadPredictor"])
        g = graph()
        applied = g.add("AMEDApplyPredictor", model=g.model, sampler="amed", nfe=4, guidance=1.0)
        g.show(g.ksampler("amed", "amed", steps=2, model=[applied, 0]))
        assert "4 evaluations" in server.run(g.nodes).text(applied)
        for name in ("gone", "out", "pipe", "large"):
            g = graph()
            g.add(
                "AMEDPredictorInfo", predictor=[g.add("AMEDLoadPredictor", name=f"odd/{name}.safetensors"), 0]
            )
            with pytest.raises(RunError, match=name):
                server.run(g.nodes)
    finally:
        shutil.rmtree(odd)
