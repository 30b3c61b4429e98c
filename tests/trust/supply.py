"""What the pack is made of and what it reaches for: dependencies, licences, Python versions, the network.

PYTHONPATH=.:tests python -m trust.supply       # seconds; writes its part of docs/TRUST.md
"""

import ast
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

from trust.page import ROOT, Part, put

RUNS = (
    *("__init__.py", "install.py", "amed", "hosts", "nodes", "webui", "scripts", "predictors"),
    "demo/model.py",
)
OF_HOSTS = {
    *("torch", "PIL", "tqdm", "gradio", "fastapi", "aiohttp"),
    *("comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths"),
    *("latent_preview", "node_helpers", "nodes", "server"),
    *("modules", "backend", "ldm_patched", "modules_forge", "launch"),
}
OURS = {"amed", "hosts", "nodes", "webui", "scripts", "predictors", "demo", "amed_webui"}
FETCHES = {"ftplib", "http", "httpx", "requests", "smtplib", "socket", "urllib", "urllib3", "websocket"}
OLDEST = (3, 10)


def files(*within: str) -> list[Path]:
    """Python files of folders, or the files themselves."""
    found = [ROOT / name for name in within]
    return sorted(f for top in found for f in ([top] if top.is_file() else top.rglob("*.py")))


def requirements() -> dict[str, str]:
    """Each requirement as it is written, and in which file."""
    found = {}
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if (line := line.partition("#")[0].strip()) and not line.startswith("-"):
                found[line] = name
    makefile = (ROOT / "Makefile").read_text()
    return found | dict.fromkeys(re.findall(r"[\w.-]+==[\w.]+", makefile), "Makefile")


def stated() -> dict[str, str]:
    """The same as SECURITY.md has it."""
    text = (ROOT / "SECURITY.md").read_text()
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+?) \| [^|]+ \| [^|]+ \|$", text, re.M))


def imported(file: Path) -> set[str]:
    """Modules that a file imports from outside of its package, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return found


def odd(is_odd: Callable[[str], bool]) -> dict[str, set[str]]:
    """Of what runs in a host, imported modules by file."""
    found = {file: {m for m in imported(file) if is_odd(m.split(".")[0])} for file in files(*RUNS)}
    return {str(file.relative_to(ROOT)): modules for file, modules in found.items() if modules}


def unstated() -> dict[str, set[str]]:
    """Modules that are neither the standard library's, nor ours, nor the host's, nor in requirements.txt."""
    lines = [line for line, name in requirements().items() if name == "requirements.txt"]
    wanted = {re.match(r"\w+", line)[0] for line in lines}
    return odd(lambda module: module not in wanted | sys.stdlib_module_names | OF_HOSTS | OURS)


def reaching() -> dict[str, set[str]]:
    """Modules that fetch."""
    return odd(lambda module: module in FETCHES)


def too_new() -> dict[str, str]:
    """Files that the oldest Python cannot parse."""
    wrong = {}
    for file in files(*RUNS, "demo", "bench", "tests"):
        try:
            ast.parse(file.read_text(), feature_version=OLDEST)
        except SyntaxError as error:
            wrong[str(file.relative_to(ROOT))] = str(error)
    return wrong


# --- a run that may reach nothing --------------------------------------------------------------------------

WORK = """
import importlib, pathlib, pkgutil, sys
import torch
import amed, hosts, predictors
from amed import Solver, SAMPLERS, load, save
from amed.evaluate import FromModule, Guided
from amed.files.code import code_of, from_code
from amed.fit import Job, Target, fit
from demo.model import UNCONDITIONAL, load_denoiser
from predictors import published
from predictors.authors import convert

for package in (amed, hosts, predictors):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
folder, pickle = map(pathlib.Path, sys.argv[1:])
files = sorted(pathlib.Path("predictors").glob("*.safetensors"))
fitted = [load(file) for file in files]
denoiser, runs = load_denoiser(), 0
ask = FromModule(denoiser.inner_model.middle_block)
none = torch.tensor([UNCONDITIONAL])
for f in fitted[::4]:
    sigmas = f.sigmas()
    args = {"cond": {"label": none}, "uncond": {"label": none}}
    x = torch.randn(1, 3, 32, 32) * sigmas[0]
    SAMPLERS[f.spec.sampler](Guided(denoiser, 1), x, sigmas, args, disable=True, predictor=f, evaluate=ask)
    runs += 1
assert from_code(code_of(fitted[0]), "code").spec == fitted[0].spec
save(folder / "converted.safetensors", convert(pickle))
save(folder / "published.safetensors", published.sd15())
model = lambda x, sigma: x / (1 + sigma.view(-1, 1, 1, 1) ** 2)
draw = lambda generator, count: (torch.randn(count, 3, 8, 8, generator=generator), {})
target = Target(model, draw, 0.01, 40.0, family="toy", fingerprint="f" * 16, name="a toy")
made = lambda nfe: folder / "fitted.safetensors"
outcome = fit(target, Job((4,), budget=2500), made, lambda progress: None)
print("done", len(fitted), runs, len(outcome.fits))
"""


def pickle_in(folder: Path) -> Path:
    """A weight file as the method's authors write theirs."""
    where = importlib.util.spec_from_file_location("authors", ROOT / "tests" / "engine" / "test_convert.py")
    module = importlib.util.module_from_spec(where)
    where.loader.exec_module(module)
    for name, text in module.AUTHORS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    subprocess.run([sys.executable, "write.py", "amed-0.01.pkl"], cwd=folder, check=True)
    return folder / "amed-0.01.pkl"


def watched(folder: Path) -> dict[str, str]:
    """Of an environment whose processes may reach this machine alone; the log is folder/network.log."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("loopback.py"), site / "sitecustomize.py")
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "AMED_NETWORK_LOG": str(folder / "network.log")}


def asked(folder: Path) -> list[list[str]]:
    """What the log has: kind, what was asked for, the files that led there; but for ldconfig, by which
    torch's own import looks for libraries. Raises AssertionError where nothing watched."""
    lines = [line.split("\t") for line in (folder / "network.log").read_text().splitlines()]
    assert any(kind == "watching" for kind, *_ in lines), "nothing watched"
    theirs = [line for line in lines if line[1].endswith("ldconfig") and "/torch/__init__.py" in line[2]]
    return [line for line in lines if line[0] != "watching" and line not in theirs]


def alone(folder: Path, code: str = WORK) -> tuple[str, list[list[str]]]:
    """Run code in a process that may reach nothing; what it printed, and what it asked for. Raises
    CalledProcessError."""
    arguments = [str(folder), str(pickle_in(folder))] if code is WORK else []
    environment = os.environ | watched(folder) | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, check=True,
                         capture_output=True, text=True)  # fmt: skip
    return run.stdout, asked(folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        said, sought = alone(Path(folder))
    count, runs, kept = said.split()[-3:]
    differ = set(stated().items()) ^ set(requirements().items())
    rows = [
        (f"each module of the engine imported, {count} predictor files read, {runs} sampled with, one fitted "
         f"({kept} kept), one pickle converted: addresses asked for, programs started", str(len(sought))),
        (f"modules that fetch, in {len(files(*RUNS))} files that run in a host", str(len(reaching()))),
        ("modules there that no requirement names and no host brings", str(len(unstated()))),
        ("requirements, each with range, licence and reason in SECURITY.md",
         f"{len(stated())}, of which {len(differ)} differ from the files"),
        ("files that Python 3.10 cannot parse", str(len(too_new()))),
        ("Python of this run", platform.python_version()),
    ]  # fmt: skip
    about = (
        "What the pack is made of and reaches for; in a real ComfyUI, from its start through an example, by "
        "tests/comfyui/test_network.py. Connections are refused by a hook of Python's own: it does not see "
        "what a compiled library would do by itself. Licences, and which are unknown, stand in SECURITY.md."
    )
    put(Part("supply", "Supply chain", "make supply", about, rows))


if __name__ == "__main__":
    main()
