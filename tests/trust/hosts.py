"""The tests in other hosts: `python -m trust.hosts FOLDER ...`, each a ComfyUI whose requirements this Python
has (without one: the ComfyUI of `make test`), and in the WebUIs that A1111_PATH, FORGE_PATH and REFORGE_PATH
name (docs/WEBUI.md; `--webuis`: in these alone).

Writes the part "hosts" of docs/TRUST.md, a row a host; those of hosts not run now stay as they are. `--tests`
names files or folders of tests; `--only` is pytest's -k."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from trust import page
from trust.soak import version

from demo.comfyui import ROOT, find

TESTS = ("tests/comfyui", "tests/webui/test_missing_features.py")
WITHOUT = "test_missing_features"  # those that take an attribute of a host away
NAMED = "attributes of a host taken away"
WEBUIS = {"A1111_PATH": "AUTOMATIC1111", "FORGE_PATH": "Forge", "REFORGE_PATH": "reForge"}
FEW = 4  # files that are named
REAL = "tests/webui/test_real_hosts.py"


Found = list[tuple[str, str, str]]


def run(tests: list[str], only: str = "", **environment: str) -> tuple[Found, str]:
    """(file, test, outcome) of every test, and what pytest printed last. Raises RuntimeError where pytest
    could not run."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "tests.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={made}",
            *tests,
        ]
        command += ["-k", only] if only else []
        own = os.environ | environment
        done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
        if not made.is_file():
            raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
        return outcomes(made), done.stdout


def outcomes(made: Path) -> Found:
    """Of pytest's JUnit file."""
    found = []
    for case in ElementTree.parse(made).iter("testcase"):
        kinds = {child.tag for child in case}
        worst = next((k for k in ("error", "failure", "skipped") if k in kinds), "passed")
        outcome = {"error": "failed", "failure": "failed"}.get(worst, worst)
        found.append((case.get("classname", "").rpartition(".")[2], case.get("name", ""), outcome))
    return found


def figure(found: Found) -> str:
    counts = Counter(outcome for *_, outcome in found)
    files = sorted({file for file, *_ in found})
    named = ", ".join(files) if len(files) <= FEW else f"{len(files)} files"
    said = [f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped")]
    failed = [f"{file}::{name}" for file, name, outcome in found if outcome == "failed"]
    return ", ".join(said) + f" ({named})" + "".join(f"; failed: {name}" for name in failed)


def rows(known: list, host: str, found: Found) -> list[tuple[str, str]]:
    """The page's rows with those of one host's run put in."""
    kept = dict(tuple(row) for row in known)
    kept[host] = figure(found)
    for kind, name in (("ComfyUI", "comfyui"), ("the WebUIs' restated hosts", "webui")):
        mine = [(file, test, outcome) for file, test, outcome in found if file == f"{WITHOUT}_{name}"]
        if mine:
            kept[f"{NAMED}, {kind}"] = figure(mine).split(" (")[0]
    hosts = sorted((k for k in kept if k.startswith("ComfyUI ")), key=number)
    webuis = [name for name in WEBUIS.values() if name in kept]
    return [(k, kept[k]) for k in [*hosts, *webuis, *(k for k in kept if k not in (*hosts, *webuis))]]


def number(row: str) -> list[int]:
    return [int(one) for one in row.split()[1].split(".")]


def put(host: str, found: Found) -> None:
    known = json.loads(page.FIGURES.read_text()) if page.FIGURES.is_file() else {}
    about = (
        "The tests in the oldest ComfyUI that `requires-comfyui` names, in the one that `make test` fetches "
        "and in a recent one; in real WebUIs, whose versions docs/WEBUI.md names; and each optional "
        "attribute of a host taken away once: at most one warning, that feature off, the rest working."
    )
    made = rows(known.get("hosts", {}).get("rows", []), host, found)
    page.put(page.Part("hosts", "Other versions of the hosts", "make hosts ARGS='FOLDER ...'", about, made))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hosts", nargs="*", type=Path)
    parser.add_argument("--tests", nargs="+", default=list(TESTS))
    parser.add_argument("--only", default="")
    parser.add_argument("--webuis", action="store_true")
    options = parser.parse_args()
    for host in [] if options.webuis else options.hosts or [find()]:
        found, said = run(options.tests, options.only, COMFYUI_PATH=str(host))
        print(said, flush=True)
        put(f"ComfyUI {version(host)}", found)
    for variable, label in WEBUIS.items():
        if os.environ.get(variable):
            others = [name for name in WEBUIS if variable in name and name != variable]
            found, said = run([REAL], " and not ".join([variable, *others]))
            print(said, flush=True)
            put(label, found)


if __name__ == "__main__":
    main()
