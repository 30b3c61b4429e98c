"""Run the tests in other hosts: `python -m trust.hosts FOLDER ...`.

Each FOLDER is a ComfyUI whose requirements this Python has (none: the ComfyUI of `make test`). WebUIs are
named by A1111_PATH, FORGE_PATH and REFORGE_PATH (docs/WEBUI.md); `--webuis` runs only these.

Writes the part "hosts" of docs/TRUST.md, one row per host; rows of hosts that did not run are not changed.
`--tests` names files or folders of tests; `--only` is pytest's -k."""

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
MISSING_FEATURES = "test_missing_features"  # tests that take an attribute of a host away
NAMED = "attributes of a host taken away"
WEBUIS = {"A1111_PATH": "AUTOMATIC1111", "FORGE_PATH": "Forge", "REFORGE_PATH": "reForge"}
FEW = 4  # files named in the rows
REAL = "tests/webui/test_real_hosts.py"


Found = list[tuple[str, str, str]]


def run(tests: list[str], only: str = "", **environment: str) -> tuple[Found, str]:
    """Return (file, test, outcome) of every test, and the end of pytest's output.

    Raises RuntimeError if pytest could not run."""
    with tempfile.TemporaryDirectory() as folder:
        report_file = Path(folder) / "tests.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report_file}",
            *tests,
        ]
        command += ["-k", only] if only else []
        run_environment = os.environ | environment
        process = subprocess.run(
            command, cwd=ROOT, env=run_environment, capture_output=True, text=True, check=False
        )
        if not report_file.is_file():
            raise RuntimeError(f"{' '.join(command)}:\n{process.stdout}{process.stderr}")
        return outcomes(report_file), process.stdout


def outcomes(report_file: Path) -> Found:
    """Read pytest's JUnit file."""
    results = []
    for case in ElementTree.parse(report_file).iter("testcase"):
        kinds = {child.tag for child in case}
        worst = next((k for k in ("error", "failure", "skipped") if k in kinds), "passed")
        outcome = {"error": "failed", "failure": "failed"}.get(worst, worst)
        results.append((case.get("classname", "").rpartition(".")[2], case.get("name", ""), outcome))
    return results


def figure(results: Found) -> str:
    counts = Counter(outcome for *_, outcome in results)
    files = sorted({file for file, *_ in results})
    named = ", ".join(files) if len(files) <= FEW else f"{len(files)} files"
    parts = [f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped")]
    failed = [f"{file}::{name}" for file, name, outcome in results if outcome == "failed"]
    return ", ".join(parts) + f" ({named})" + "".join(f"; failed: {name}" for name in failed)


def rows(old_rows: list, host: str, results: Found) -> list[tuple[str, str]]:
    """Return the page's rows with those of one host's run replaced."""
    by_host = dict(tuple(row) for row in old_rows)
    by_host[host] = figure(results)
    for kind, name in (("ComfyUI", "comfyui"), ("the WebUIs' restated hosts", "webui")):
        mine = [
            (file, test, outcome) for file, test, outcome in results if file == f"{MISSING_FEATURES}_{name}"
        ]
        if mine:
            by_host[f"{NAMED}, {kind}"] = figure(mine).split(" (")[0]
    hosts = sorted((k for k in by_host if k.startswith("ComfyUI ")), key=number)
    webuis = [name for name in WEBUIS.values() if name in by_host]
    return [(k, by_host[k]) for k in [*hosts, *webuis, *(k for k in by_host if k not in (*hosts, *webuis))]]


def number(row: str) -> list[int]:
    return [int(digits) for digits in row.split()[1].split(".")]


def put(host: str, results: Found) -> None:
    trust_figures = json.loads(page.FIGURES.read_text()) if page.FIGURES.is_file() else {}
    about = (
        "The tests in the oldest ComfyUI that `requires-comfyui` names, in the version that `make "
        "test` installs, and in a recent one; in real WebUIs, whose versions docs/WEBUI.md names; "
        "and with each optional attribute of a host removed once: at most one warning, that feature "
        "off, the rest working."
    )
    new_rows = rows(trust_figures.get("hosts", {}).get("rows", []), host, results)
    page.put(page.Part("hosts", "Other hosts and versions", "make hosts ARGS='FOLDER ...'", about, new_rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hosts", nargs="*", type=Path)
    parser.add_argument("--tests", nargs="+", default=list(TESTS))
    parser.add_argument("--only", default="")
    parser.add_argument("--webuis", action="store_true")
    options = parser.parse_args()
    for host in [] if options.webuis else options.hosts or [find()]:
        results, output = run(options.tests, options.only, COMFYUI_PATH=str(host))
        print(output, flush=True)
        put(f"ComfyUI {version(host)}", results)
    for variable, label in WEBUIS.items():
        if os.environ.get(variable):
            others = [name for name in WEBUIS if variable in name and name != variable]
            results, output = run([REAL], " and not ".join([variable, *others]))
            print(output, flush=True)
            put(label, results)


if __name__ == "__main__":
    main()
