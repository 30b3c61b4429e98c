"""The pack's dependencies, licences, Python versions and network access.

PYTHONPATH=.:tests python -m trust.supply # seconds; writes its part of docs/TRUST.md"""

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
    *("__init__.py", "install.py", "amed", "pictures", "nodes", "webui", "scripts", "predictors"),
    "demo/model.py",
)
OF_HOSTS = {
    *("torch", "PIL", "tqdm", "gradio", "fastapi", "aiohttp"),
    *("comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths"),
    *("latent_preview", "node_helpers", "nodes", "server"),
    *("modules", "backend", "ldm_patched", "modules_forge", "launch"),
}
OURS = {"amed", "pictures", "nodes", "webui", "scripts", "predictors", "demo", "amed_webui", "amed_pictures"}
FETCHES = {"ftplib", "http", "httpx", "requests", "smtplib", "socket", "urllib", "urllib3", "websocket"}
OLDEST = (3, 10)


def files(*within: str) -> list[Path]:
    """Return Python files in folders, or the named files themselves."""
    paths = [ROOT / name for name in within]
    return sorted(f for top in paths for f in ([top] if top.is_file() else top.rglob("*.py")))


def requirements() -> dict[str, str]:
    """Return {requirement as written: its file}."""
    result = {}
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if (line := line.partition("#")[0].strip()) and not line.startswith("-"):
                result[line] = name
    makefile = (ROOT / "Makefile").read_text()
    return result | dict.fromkeys(re.findall(r"[\w.-]+==[\w.]+", makefile), "Makefile")


def stated_requirements() -> dict[str, str]:
    """Return the same from SECURITY.md."""
    text = (ROOT / "SECURITY.md").read_text()
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+?) \| [^|]+ \| [^|]+ \|$", text, re.M))


def imported(file: Path) -> set[str]:
    """Return modules that a file imports from outside its package, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module or "")
    return modules


def unusual_imports(is_odd: Callable[[str], bool]) -> dict[str, set[str]]:
    """Return imported modules by file, for the files that run in a host."""
    by_file = {file: {m for m in imported(file) if is_odd(m.split(".")[0])} for file in files(*RUNS)}
    return {str(file.relative_to(ROOT)): modules for file, modules in by_file.items() if modules}


def unstated_imports() -> dict[str, set[str]]:
    """Return modules that are not of the standard library, this pack, the host or requirements.txt."""
    lines = [line for line, name in requirements().items() if name == "requirements.txt"]
    wanted = {re.match(r"\w+", line)[0] for line in lines}
    return unusual_imports(lambda module: module not in wanted | sys.stdlib_module_names | OF_HOSTS | OURS)


def network_imports() -> dict[str, set[str]]:
    """Return imports of modules that can access the network."""
    return unusual_imports(lambda module: module in FETCHES)


def too_new() -> dict[str, str]:
    """Return files that the oldest supported Python cannot parse."""
    wrong = {}
    for file in files(*RUNS, "demo", "bench", "tests"):
        try:
            ast.parse(file.read_text(), feature_version=OLDEST)
        except SyntaxError as error:
            wrong[str(file.relative_to(ROOT))] = str(error)
    return wrong


# --- a run without network access --------------------------------------------------------------------------

WORK = """
import importlib, pathlib, pkgutil, sys
import torch
import amed, pictures, predictors
from amed import Solver, SAMPLERS, load, save
from amed.evaluate import FromModule, Guided
from amed.files.code import code_of, from_code
from amed.fit import Job, Target, fit
from demo.model import UNCONDITIONAL, load_denoiser
from predictors import published
from predictors.authors import convert

for package in (amed, pictures, predictors):
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
    """Write a weight file in the format of the method's authors."""
    where = importlib.util.spec_from_file_location("authors", ROOT / "tests" / "engine" / "test_convert.py")
    module = importlib.util.module_from_spec(where)
    where.loader.exec_module(module)
    for name, text in module.AUTHORS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    subprocess.run([sys.executable, "write.py", "amed-0.01.pkl"], cwd=folder, check=True)
    return folder / "amed-0.01.pkl"


def offline_environment(folder: Path) -> dict[str, str]:
    """Return an environment whose processes may access only this machine; the log is folder/network.log."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("loopback.py"), site / "sitecustomize.py")
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "AMED_NETWORK_LOG": str(folder / "network.log")}


def requested(folder: Path) -> list[list[str]]:
    """Return the log's entries: kind, request, files on the call stack.

    ldconfig, with which torch's import finds libraries, is left out. Raises AssertionError if there is no
    log."""
    lines = [line.split("\t") for line in (folder / "network.log").read_text().splitlines()]
    assert any(kind == "watching" for kind, *_ in lines), "the process did not load the hook: there is no log"
    theirs = [line for line in lines if line[1].endswith("ldconfig") and "/torch/__init__.py" in line[2]]
    return [line for line in lines if line[0] != "watching" and line not in theirs]


def run_offline(folder: Path, code: str = WORK) -> tuple[str, list[list[str]]]:
    """Run code in a process without network access; return its output, and what it requested.

    Raises CalledProcessError."""
    arguments = [str(folder), str(pickle_in(folder))] if code is WORK else []
    environment = os.environ | offline_environment(folder) | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, check=True,
                         capture_output=True, text=True)  # fmt: skip
    return run.stdout, requested(folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        output, sought = run_offline(Path(folder))
    count, runs, saved = output.split()[-3:]
    differ = set(stated_requirements().items()) ^ set(requirements().items())
    rows = [
        (f"each module of the engine imported, {count} predictor files read, {runs} sampled with, one fitted "
         f"({saved} kept), one pickle converted: addresses requested, programs started", str(len(sought))),
        (f"modules with network access, in {len(files(*RUNS))} files that run in a host",
         str(len(network_imports()))),
        ("modules imported there that neither a requirement nor the host provides",
         str(len(unstated_imports()))),
        ("requirements, each with range, licence and reason in SECURITY.md",
         f"{len(stated_requirements())}, of which {len(differ)} differ from the files"),
        ("files that Python 3.10 cannot parse", str(len(too_new()))),
        ("Python of this run", platform.python_version()),
    ]  # fmt: skip
    about = (
        "The pack's dependencies and network access; in a real ComfyUI, from its start through an "
        "example, by tests/comfyui/test_network.py. Connections are refused by a Python hook, which "
        "does not see those of compiled libraries. SECURITY.md lists the licences, and which are "
        "unknown."
    )
    put(Part("supply", "Supply chain", "make supply", about, rows))


if __name__ == "__main__":
    main()
