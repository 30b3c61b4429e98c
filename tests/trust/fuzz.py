"""Thousands of broken predictor files, codes and folders, and hostile pickles, and their effects.

    PYTHONPATH=.:tests python -m trust.fuzz [FILES] [PICKLES] [SEED]

Each file is made from a valid one by its number (broken_files.py): `check_file(good, NUMBER, FOLDER, result)`
repeats it."""

import argparse
import base64
import json
import math
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from trust import broken_files as broken
from trust import pickles
from trust.page import Part, put

from amed import SAMPLERS, Fitted, Library, PredictorError, load, save
from amed.choose import Identity, Request, choose
from amed.evaluate import Guided, evaluate_guided
from amed.files.code import MARK, code_of, from_code
from amed.files.description import as_json, describe
from amed.files.keep import keep
from amed.files.spec import CONTROL
from amed.loop import Evaluation
from amed.outside import Outside, ScaledDenoiser

MOST, SECONDS, BATCH = (
    1500,
    5.0,
    200,
)  # limits: characters of a message, CPU seconds per file; files per folder
OTHERS = {"sigmas", "weights", "offset", "alone", "levels", "g", "r", "c", "a", "tensor", "field"}
WHOLE = "incomplete, or not a safetensors file"


@dataclass
class Findings:
    """The results of some files."""

    files: int = 0  # files tried
    outcomes: Counter = field(default_factory=Counter)  # number of files by outcome
    faults: list[str] = field(default_factory=list)  # forbidden outcomes, with the number that repeats each
    slowest: float = 0.0  # CPU seconds
    exact: int = 0  # refusals that name exactly the changed field or tensor
    single: int = 0  # refused files with a single change


def denoiser(x: Tensor, sigma: Tensor, **_args) -> Tensor:
    """The denoiser of a Gaussian of standard deviation 0.5."""
    return x * (0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2)).to(x.dtype)


def evaluate(model, x, sigma, extra_args, wants) -> Evaluation:
    evaluation = evaluate_guided(model, x, sigma, extra_args, wants)
    return replace(evaluation, bottleneck=x.new_ones(len(x), 8, 8, 8))


def sampled(fitted: Fitted) -> Tensor:
    """Return the end of a run with a predictor. Raises ValueError if the run is impossible."""
    channels = fitted.spec.channels or 3
    noise = torch.randn(2, min(channels, 64), 8, 8, generator=torch.Generator().manual_seed(0))
    x, sigmas = noise * fitted.spec.sigma_max, torch.cat([fitted.sigmas().float(), torch.zeros(1)])
    if isinstance(fitted.predictor, Outside):
        model = ScaledDenoiser(denoiser, fitted.predictor.at)
        for t, t_next in zip(sigmas, sigmas[1:]):
            x = x + (t_next - t) * (x - model(x, t.expand(len(x)))) / t
        return x
    model = Guided(denoiser, 2.0)
    args = {"cond": {}, "uncond": {}}
    return SAMPLERS[fitted.spec.sampler](
        model, x, sigmas, args, disable=True, predictor=fitted, evaluate=evaluate
    )


def faults_of_text(text: str, most: int = MOST) -> Iterator[str]:
    """Yield what is wrong with a message."""
    if len(text) > most:
        yield f"{len(text)} characters"
    if CONTROL.search(text):
        yield "control characters in it"
    try:
        text.encode()
    except UnicodeEncodeError:
        yield "no text"


def use(fitted: Fitted, folder: Path) -> Iterator[str]:
    """Do everything that can be done with a loaded predictor; yield what is wrong."""
    yield from faults_of_text(fitted.label, 25_000)
    describe(fitted).encode()
    json.dumps(as_json(fitted)).encode()
    again = load(save(folder / "again.safetensors", fitted))
    same = again.spec == fitted.spec or "nan" in repr(fitted.spec.metrics)  # NaN is not equal to itself
    if not (same and torch.equal(again.base, fitted.base)):
        yield "saved and loaded, it is another"
    code = code_of(fitted)
    try:
        from_code(code, "pasted")
    except PredictorError as error:
        if "at most" not in str(error) and "more than" not in str(error):
            yield f"its code does not load: {str(error)[:200]}"
    if fitted.nfe > 300:
        return
    try:
        end = sampled(fitted)
    except ValueError as error:
        yield from faults_of_text(str(error), 30_000)
    else:
        if not end.isfinite().all():
            yield "its image is not finite, and nobody said so"


def check_file(good: dict[str, bytes], number: int, folder: Path, findings: Findings) -> None:
    """Load a broken file, and use it if it loads."""
    file = broken.broken(good, random.Random(number))
    data, path = file.bytes(), folder / "broken.safetensors"
    path.write_bytes(data)

    def fault(text: str) -> None:
        findings.faults.append(f"file {number} {file.changes}: {text}")

    begun = time.process_time()
    fitted, outcome = None, "loads"
    try:
        with alarm(300):
            fitted = load(path)
    except PredictorError as error:
        text, outcome = str(error), "refused"
        for wrong in faults_of_text(text):
            fault(f"message: {wrong}")
        if "broken.safetensors" not in text:
            fault(f"no file is named: {text[:200]}")
        outcome = count_names(file, text, findings, fault)
    except BaseException as error:
        outcome = "crash"
        fault(f"{type(error).__name__}: {str(error)[:200]}")
    took = time.process_time() - begun
    if fitted is not None:
        try:
            with alarm(300):
                for wrong in use(fitted, folder):
                    fault(wrong)
        except BaseException as error:
            fault(f"in use, {type(error).__name__}: {str(error)[:200]}")
    if took > SECONDS:
        fault(f"{took:.2f} s to load")
    findings.files, findings.slowest = findings.files + 1, max(findings.slowest, took)
    findings.outcomes[outcome] += 1


def count_names(file: broken.Draft, text: str, findings: Findings, fault: Callable[[str], None]) -> str:
    """Count whether a refusal names the field or tensor at fault."""
    if WHOLE in text:
        return "refused as incomplete"
    if "not an AMED predictor" in text:
        return "refused as not a predictor"
    names = {*broken.FIELDS, *OTHERS, *filter(None, file.names())}
    if not any(name in text for name in names):
        fault(f"no field is named: {text[:200]}")
    changes = [change for change in file.changes if change[0] != "from"]
    if len(changes) == 1 and changes[0][0] in ("set_field", "number_field", "one_number"):
        findings.single += 1
        findings.exact += changes[0][1] in text
    return "refused, with the field or tensor named"


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in code that hangs."""

    def ring(*_args) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def files(count: int, seed: int, findings: Findings) -> None:
    good = broken.seeds()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(seed, seed + count):
            check_file(good, number, Path(folder), findings)


# --- folders -----------------------------------------------------------------------------------------------


def folders(count: int, seed: int, findings: Findings) -> None:
    """List `BATCH` broken files beside the valid ones, as nodes and the WebUI list them."""
    good = broken.seeds()
    for start in range(seed, seed + count, BATCH):
        with tempfile.TemporaryDirectory() as temporary:
            folder, library = Path(temporary) / "models", Library([Path(temporary) / "models"])
            (folder / "deep").mkdir(parents=True)
            for name, data in good.items():
                (folder / "deep" / f"{name}.safetensors").write_bytes(data)
            alone = request_all(library)
            wrong = {}
            for number in range(start, min(start + BATCH, seed + count)):
                file = broken.broken(good, random.Random(number))
                path = folder / f"{number}.safetensors"
                path.write_bytes(file.bytes())
                wrong[path.name] = path
            findings.files += len(wrong)
            findings.outcomes["folders"] += 1
            try:
                findings.faults += listed(library, good, wrong, alone)
            except BaseException as error:
                findings.faults.append(f"folder from {start}: {type(error).__name__}: {str(error)[:200]}")


def request_all(library: Library) -> dict[str, str]:
    """Return the answer to each valid predictor's own request."""
    answers = {}
    for name, fitted in library.named().items():
        spec = fitted.spec
        identity = Identity(spec.model_family, spec.model_fingerprint)
        sampler = "auto" if spec.of else spec.sampler
        request = Request(identity, sampler, spec.guidance, fitted.nfe, of=spec.of)
        answers[name] = choose(library, request).fitted.name
    return answers


def listed(library: Library, good: dict, wrong: dict[str, Path], alone: dict[str, str]) -> Iterator[str]:
    """Return what is wrong with a list of valid and broken files."""
    named, problems = library.named(), library.problems()
    names = library.names()
    lost = {f"deep/{name}.safetensors" for name in good} - named.keys()
    if lost:
        yield f"good files are lost: {sorted(lost)}"
    if len(names) != len(good) + len(wrong):
        yield f"{len(names)} names of {len(good) + len(wrong)} files"
    for name in wrong.keys() - named.keys():
        if not any(name in problem for problem in problems):
            yield f"{name} is refused without a word"
    listing = {"predictors": {name: f.label for name, f in named.items()}, "broken": problems}
    json.dumps(listing, ensure_ascii=False).encode()  # in the form that the WebUI's API sends
    if request_all_of(library, alone) != alone.keys():
        yield "a good predictor can no longer be asked for by name"
    for name in named:  # any best file: broken numbers in a file's metrics must not break the choice
        fitted = named[name]
        choose(
            library,
            Request(Identity(fitted.spec.model_family, ""), "auto", 1.0, fitted.nfe, of=fitted.spec.of),
        )


def request_all_of(library: Library, alone: dict[str, str]) -> set[str]:
    return {name for name in alone if library.load(name).name == Path(name).name}


def special(findings: Findings) -> None:
    """Check paths named as predictors that are not files of the folder."""
    good = broken.seeds()["constants"]
    with tempfile.TemporaryDirectory() as temporary:
        top, folder = Path(temporary), Path(temporary) / "models"
        folder.mkdir()
        (folder / "good.safetensors").write_bytes(good)
        (top / "secret.safetensors").write_bytes(good)
        refused = odd_files(folder, top, good)
        library = Library([folder])
        with alarm(300):
            named, problems = library.named(), library.problems()
        for name in refused:
            if name in named:
                findings.faults.append(f"{name} was taken")
            if not any(name in problem for problem in problems):
                findings.faults.append(f"{name} is refused without a word")
        if "good.safetensors" not in named:
            findings.faults.append("the good one is lost")
        if "inside.safetensors" not in named:
            findings.faults.append("a link within the folder is lost")
        listing = json.dumps({"names": library.names(), "broken": problems}, ensure_ascii=False).encode()
        findings.faults += [f"special: {wrong}" for wrong in faults_of_text(listing.decode(), 10**6)]
        findings.files += len(refused)
        findings.outcomes["not files of the folder"] += len(refused)


def odd_files(folder: Path, top: Path, good: bytes) -> list[str]:
    """Create them; return their names."""

    def at(name: str) -> Path:
        return folder / f"{name}.safetensors"

    at("link out").symlink_to(top / "secret.safetensors")
    at("link up").symlink_to("../secret.safetensors")
    at("inside").symlink_to("good.safetensors")
    at("dangling").symlink_to(top / "nothing")
    at("loop").symlink_to(at("loop"))
    at("zero").symlink_to("/dev/zero")
    at("passwd").symlink_to("/etc/passwd")
    at("folder").mkdir()
    (at("folder") / "x.txt").write_text("x")
    os.mkfifo(at("pipe"))
    door = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket must be short
    door.bind("socket.safetensors")
    os.chdir(here)
    door.close()
    sizes = {"sparse": good, "empty huge": b"", "big header": (10**8).to_bytes(8, "little") + b"{"}
    for name, data in sizes.items():
        with at(name).open("wb") as file:
            file.write(data)
            file.truncate(2**40)  # a sparse file of a terabyte
    draft = broken.draft(good)
    draft.put("r", "F64", [2**36], b"")
    draft.header["r"]["data_offsets"] = [len(draft.data), len(draft.data) + 2**39]
    content = draft.bytes()
    with at("whole").open("wb") as file:  # a valid header, and half a terabyte of zeros
        file.write(content)
        file.truncate(len(content) + 2**39)
    (folder / "linked").symlink_to(top, target_is_directory=True)
    with open(os.fsencode(folder) + b"/bytes\xff\xfe.safetensors", "wb") as file:
        file.write(b"x")
    at("line\nbreak").write_bytes(b"x")
    names = [
        "link out",
        "link up",
        "dangling",
        "loop",
        "zero",
        "passwd",
        "folder",
        "pipe",
        "socket",
        *sizes,
        "whole",
    ]
    return [f"{name}.safetensors" for name in names]


def unreadable(findings: Findings) -> None:
    """Check files and folders without read permission, in a process that is not root's."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom amed import Library\n"
        "os.getuid() or os.setuid(65534)\n"
        "folder = Path(sys.argv[1])\nlibrary = Library([folder, folder / 'closed' / 'in'])\n"
        "assert list(library.named()) == ['good.safetensors'], library.named()\n"
        "assert 'mine.safetensors' in library.problems()[0], library.problems()\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        good = broken.seeds()["constants"]
        for name, mode in (("good", 0o644), ("mine", 0)):
            path = Path(folder) / f"{name}.safetensors"
            path.write_bytes(good)
            path.chmod(mode)
        (Path(folder) / "closed").mkdir(mode=0)
        here = os.environ | {"PYTHONPATH": str(broken.ROOT), "OMP_NUM_THREADS": "1"}
        ran = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, env=here)
        (Path(folder) / "closed").chmod(0o755)
    findings.files += 2
    findings.outcomes["without permission"] += 2
    if ran.returncode:
        findings.faults.append(f"without permission: {ran.stderr[-400:]}")


# --- codes -------------------------------------------------------------------------------------------------


def codes(count: int, seed: int, findings: Findings) -> None:
    """Check broken files as pasted codes, and damaged codes."""
    good = broken.seeds()
    for number in range(seed, seed + count):
        dice = random.Random(number)
        data = broken.broken(good, dice).bytes()[: 2 * 10**6]
        text = MARK + base64.urlsafe_b64encode(zlib.compress(data)).decode()
        if dice.random() < 0.3:
            at = dice.randrange(len(text))
            text = dice.choice(
                [text[:at], text[:at] + dice.choice("é\0!=~ ") + text[at:], text[at:], text * 2]
            )
        begun = time.process_time()
        try:
            from_code(text, "pasted")
        except PredictorError as error:
            findings.faults += [f"code {number}: {wrong}" for wrong in faults_of_text(str(error))]
        except BaseException as error:
            findings.faults.append(f"code {number}: {type(error).__name__}: {str(error)[:200]}")
        if (took := time.process_time() - begun) > SECONDS:
            findings.faults.append(f"code {number}: {took:.2f} s")
        findings.slowest, findings.files = max(findings.slowest, took), findings.files + 1
    findings.outcomes["codes"] += count


# --- fits saved beside a broken file -----------------------------------------------------------------------


def check_saving(count: int, seed: int, findings: Findings) -> None:
    """Save a fit where a broken file is: that file stays, and the fit gets another name."""
    good = broken.seeds()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "fit.safetensors").write_bytes(good["constants"])
        fitted = load(folder / "fit.safetensors")
        for number in range(seed, seed + count):
            data = broken.broken(good, random.Random(number)).bytes()
            path = folder / "p.safetensors"
            path.write_bytes(data)
            try:
                saved, _ = keep(path, fitted)
            except BaseException as error:
                findings.faults.append(f"keep {number}: {type(error).__name__}: {str(error)[:200]}")
                continue
            if saved == path and path.read_bytes() == data:
                findings.faults.append(f"keep {number}: nothing was saved")
            load(saved)
            for other in folder.glob("p*.safetensors"):
                other.unlink()
    findings.outcomes["keep"] += count


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Return 0 if there was no fault."""
    parser = argparse.ArgumentParser(prog="python -m trust.fuzz")
    parser.add_argument("files", type=int, nargs="?", default=12_000)
    parser.add_argument("pickles", type=int, nargs="?", default=1_500)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    files(20, args.seed, Findings())  # imports and caches of the first use do not count as growth
    before, begun = megabytes(), time.monotonic()
    file_findings, lists, pasted = Findings(), Findings(), Findings()
    files(args.files, args.seed, file_findings)
    grown = megabytes() - before
    folders(args.files // 10, args.seed, lists)
    beside = lists.files
    special(lists)
    unreadable(lists)
    check_saving(args.files // 20, args.seed, lists)
    codes(args.files // 5, args.seed, pasted)
    minutes = (time.monotonic() - begun) / 60
    faults = [*file_findings.faults, *lists.faults, *pasted.faults]
    for text in faults[:40]:
        print("FAULT", text)
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in file_findings.outcomes.most_common())
    rows = [
        (f"files, made from {len(broken.seeds())} valid ones", f"{file_findings.files:,}"),
        ("outcomes", outcomes),
        (
            "refused with one changed field or number: the message names exactly that one",
            f"{file_findings.exact:,} of {file_findings.single:,} (the others name what contradicts it)",
        ),
        ("slowest to load", f"{file_findings.slowest:.2f} s CPU"),
        ("growth of peak memory over all files", f"{grown:.0f} MB"),
        ("such files listed beside valid ones", f"{beside:,} in {lists.outcomes['folders']} folders"),
        (
            "links out of the folder, pipes, sockets, devices, folders and sparse terabytes with a "
            "predictor's name",
            f"{lists.outcomes['not files of the folder']}, each refused by name",
        ),
        ("fits saved under the name of a broken file", f"{lists.outcomes['keep']:,}"),
        ("such files pasted as codes", f"{pasted.files:,}, the slowest {pasted.slowest:.2f} s CPU"),
        (
            "faults: a crash, more than a second, a refusal without a name, a black image, a lost valid file",
            f"{len(faults)}",
        ),
        ("seed, time", f"{args.seed}, {math.ceil(minutes)} minutes"),
    ]
    about = (
        "Bundled predictor files, and small ones of every other kind, are changed in one to three "
        "places: bytes, header, fields, types, shapes, numbers. Each file is loaded; if it loads, "
        "it is described, saved, pasted as a code, and used for sampling."
    )
    put(Part("fuzz", "Broken predictor files", "make fuzz", about, rows))
    print("\n".join(f"{outcome}: {figure}" for outcome, figure in rows))
    return bool(faults) | pickles.report(args.pickles, args.seed)


if __name__ == "__main__":
    sys.exit(main())
