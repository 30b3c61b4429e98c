"""Hostile pickles made by a seed, and a process whose audit hook records everything that Python does while
they are converted.

    made = hostile(7, marker)  # name, bytes
    watched(folder)  # {file name: outcome}, from a process with an audit hook

If it succeeded, each would create `marker`, or exhaust the machine's memory or time."""

import io
import json
import math
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import torch
from trust.page import ROOT, Part, put

SECONDS, MEGABYTES, MOST = (
    5.0,
    600,
    2000,
)  # limits: CPU seconds per file, memory for all, characters of a message


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"I" + str(value).encode() + b"\n"


def name(module: str, attribute: str, dice: random.Random) -> bytes:
    """Write a global, in one of the possible ways."""
    kind = dice.randrange(4)
    if kind == 0 and "\n" not in module + attribute:
        return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"
    if kind == 1:  # by the memo
        return text(module) + b"q\x07" + text(attribute) + b"q\x08" + b"h\x07h\x08\x93"
    if kind == 2:
        raw = [part.encode() for part in (module, attribute)]
        return b"".join(b"\x8c" + bytes([len(part)]) + part for part in raw) + b"\x93"
    return text(module) + text(attribute) + b"\x93"


def call(function: bytes, args: list[bytes], dice: random.Random) -> bytes:
    """Write a call of a global."""
    packed = b"(" + b"".join(args) + b"t"
    kind = dice.randrange(5)
    if kind == 0:
        return function + packed + b"\x81"  # NEWOBJ
    if kind == 1:
        return function + packed + b"}\x92"  # NEWOBJ_EX
    if kind == 2:
        return b"(" + function + b"".join(args) + b"o"  # OBJ
    return function + packed + b"R"


def inst(module: str, attribute: str, args: list[bytes]) -> bytes:
    return b"(" + b"".join(args) + b"i" + module.encode() + b"\n" + attribute.encode() + b"\n"


# module: function with arguments (of `words` below, else a text), ...
HARM = """
os: system TOUCH, popen TOUCH, execv /bin/sh LIST, mkdir PATH, remove PATH, rename PATH PATH, putenv PATH PATH
os: kill ONE ZERO, _exit ONE, abort, fork, open PATH 65, symlink /etc/passwd PATH, chmod PATH ZERO
posix: system TOUCH
nt: system TOUCH
builtins: eval SOURCE, exec SOURCE, compile SOURCE x exec, open PATH w, __import__ antigravity
builtins: getattr x __class__
builtins: setattr, breakpoint, input, type x, map, bytearray HUGE, range HUGE, print x, exit, memoryview
__builtin__: eval SOURCE
io: open PATH w, FileIO PATH w
_io: open PATH w
codecs: open PATH w
tempfile: mkstemp
pathlib: Path PATH, Path.touch PATH, Path.write_text PATH w, PosixPath PATH
importlib: import_module antigravity, reload
runpy: run_path PATH, run_module this
subprocess: Popen TOUCH, run TOUCH, getoutput TOUCH, check_output TOUCH
shutil: rmtree PATH, copyfile /etc/passwd PATH, unpack_archive PATH
socket: socket, create_connection
urllib.request: urlopen file:///etc/passwd
ctypes: CDLL libc.so.6, cdll.LoadLibrary libc.so.6
webbrowser: open file:///x
code: InteractiveInterpreter, interact
timeit: timeit SOURCE
pdb: run SOURCE
bdb: Bdb.run x SOURCE
profile: run SOURCE
cProfile: run SOURCE
doctest: debug_script SOURCE
pty: spawn sh
operator: attrgetter system, methodcaller system TOUCH
functools: partial x, reduce
types: FunctionType, CodeType
marshal: loads x
pickle: loads x, Unpickler
_pickle: loads x
dill: loads
joblib: load PATH
copyreg: _reconstructor SYSTEM OBJECT NONE, _reconstructor ORDERED SET NONE, __newobj__ POPEN, __newobj__ SET
copyreg: pickle, add_extension os system ONE
torch: load PATH, save DICT PATH, from_file PATH, _dynamo, ops, compile, classes
torch.serialization: load PATH
torch.hub: load x y, _load_local PATH y
torch.utils.cpp_extension: load x PATH
torch.utils.model_zoo: load_url http://localhost
torch.jit: load PATH
torch._utils: _rebuild_tensor, _import_dotted_name os.system, _rebuild_device_tensor_from_numpy
torch._utils: _rebuild_wrapper_subclass
torch.ops: load_library PATH
torch._C: PyTorchFileWriter PATH
torch.storage: UntypedStorage.from_file PATH ONE ONE
torch.distributed.rpc.internal: _run_function
torch.fx.graph_module: _forward_from_src SOURCE DICT
torch.package: PackageImporter PATH
torch.nn.modules: container.Sequential
torch.nn.modules.module: torch.os.system TOUCH
torch.nn.modules.linear: __reduce__
training: x.__class__
training..os: system TOUCH
training.networks: os, __import__ antigravity
torch_utils.persistence: _module_to_src_dict, exec SOURCE
dnnlib: EasyDict
dnnlib.util: open_url file:///etc/passwd, call_func_by_name os.system
collections: OrderedDict.__init__, namedtuple x y, _sys
logging: os.system TOUCH, FileHandler PATH
logging.config: listen
site: main
sys: exit, modules, settrace
numpy: load PATH, fromfile PATH
numpy.testing._private.utils: runstring SOURCE DICT
numpy.core.multiarray: _reconstruct
numpy.f2py.crackfortran: myeval SOURCE
lib2to3.pgen2.grammar: Grammar.loads
asyncio.unix_events: _UnixSubprocessTransport._start
multiprocessing.util: spawnv_passfds
signal: raise_signal 9
gc: get_objects
inspect: currentframe
readline: write_history_file PATH
sqlite3: connect PATH
zipfile: ZipFile PATH w
tarfile: open PATH w
venv: create PATH
distutils.file_util: write_file PATH
_xxsubinterpreters: run_string ZERO SOURCE
"""


def targets(marker: str) -> list[tuple[str, str, list[bytes]]]:
    """Return functions that would do harm, with arguments that would show it."""
    words = {
        "TOUCH": text(f"touch {marker}"), "SOURCE": text(f"open({marker!r}, 'w').close()"),
        "PATH": text(marker),
        "ONE": number(1), "ZERO": number(0), "HUGE": number(2**40), "DICT": b"}", "NONE": b"N",
        "LIST": b"]" + text("sh") + b"a", "SYSTEM": b"cos\nsystem\n", "OBJECT": b"cbuiltins\nobject\n",
        "POPEN": b"csubprocess\nPopen\n", "SET": b"cbuiltins\nset\n",
        "ORDERED": b"ccollections\nOrderedDict\n",
    }  # fmt: skip
    functions = []
    for line in HARM.split("\n")[1:-1]:
        module, _, calls = line.partition(": ")
        for function, *args in map(str.split, calls.split(", ")):
            functions.append((module, function, [words.get(arg, text(arg)) for arg in args]))
    return functions


def dressed(value: bytes, dice: random.Random) -> bytes:
    """Put a value somewhere into what looks like the authors' file, or into its beginning."""
    kind = dice.randrange(7)
    if kind == 0:
        return value + b"."
    if kind == 1:
        return b"}" + text("model") + value + b"s."
    if kind == 2:  # into the model's state
        state = b"}" + text("num_steps") + number(4) + b"s" + text("_parameters") + value + b"s"
        return b"}" + text("model") + persistent(state) + b"s."
    if kind == 3:
        return b"(" + text("loss_fn") + value + text("model") + b"}d."
    if kind == 4:
        return value + b"0}."  # made and dropped
    if kind == 5:
        return b"\x80\x04\x95" + struct.pack("<Q", len(value) + 1) + value + b"."
    return b"ctraining.networks\nx\n)\x81" + value + b"b."


def persistent(state: bytes) -> bytes:
    meta = b"}" + text("class_name") + text("AMED_predictor") + b"s" + text("state") + state + b"s"
    return b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + meta + b"\x85R"


def model(changed: dict[str, bytes]) -> bytes:
    """Write the authors' layout, with some values replaced."""
    entries = {
        "num_steps": number(4),
        "sampler_stu": text("amed"),
        "schedule_type": text("time_uniform"),
        "scale_time": b"G" + struct.pack(">d", 0.2),
        "afs": b"\x88",
        "sampler_tea": text("heun"),
    } | changed
    return (
        b"}"
        + text("model")
        + persistent(b"}(" + b"".join(text(k) + v for k, v in entries.items()) + b"u")
        + b"s."
    )


def doubled(times: int) -> bytes:
    """Nest a list of the same list twice, and so on: small in memory, but endless to print or walk
    through."""
    return text("x") + b"q\x00" + b"".join(b"0(h\x00h\x00lq\x00" for _ in range(times))


def modules(times: int) -> bytes:
    """The same for modules in modules."""
    return b"}q\x00" + b"".join(
        b"0}(" + text("_modules") + b"}(" + text("a") + b"h\x00" + text("b") + b"h\x00uuq\x00"
        for _ in range(times)
    )


def tensor(size: bytes, stride: bytes, offset: bytes = b"K\x00") -> bytes:
    """Write a tensor of a small storage, with a shape that does not fit."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # typed storages are old, like the authors' files
        torch.save(torch.zeros(8).storage(), file, _use_new_zipfile_serialization=False)
    data = file.getvalue()
    storage = b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(data)) + data + b"\x85R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + b"\x89}tR"


def of_bytes(data: bytes) -> bytes:
    return b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(data)) + data + b"\x85R"


def packed(files: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for inner, data in files.items():
            archive.writestr(inner, data)
    return buffer.getvalue()


def torch_zip(data: bytes, more: dict[str, bytes] | None = None, kind: int = zipfile.ZIP_STORED) -> bytes:
    members = {"x/data.pkl": data, "x/byteorder": b"little", "x/version": b"3\n", "x/data/0": b"\0" * 32}
    return packed(members | (more or {}), kind)


def tar(marker: str, data: bytes) -> bytes:
    """Write the oldest layout that torch reads, which unpacks `storages` into a folder; here with paths out
    of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        for inner in ("storages", "tensors", "pickle", f"../../{marker}", marker):
            info = tarfile.TarInfo(inner)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    return buffer.getvalue()


def bombs(dice: random.Random) -> bytes:
    """Use up memory and time: memo indices, declared sizes, nesting, sharing, shapes, zips."""
    huge = dice.choice([2**31 - 1, 2**31, 2**32 - 1, 2**28, 2**30])
    endless = 2 ** dice.choice([31, 33, 40, 62, 63])
    return dice.choice(
        [
            lambda: b"Nr" + struct.pack("<I", huge) + b".",
            lambda: b"Np" + str(endless).encode() + b"\n.",
            lambda: b"j" + struct.pack("<I", huge) + b".",
            lambda: b"\x80\x04\x8e" + struct.pack("<Q", endless) + b"x.",
            lambda: b"\x80\x04\x8d" + struct.pack("<Q", endless) + b"x.",
            lambda: b"\x80\x05\x96" + struct.pack("<Q", 2 ** dice.choice([31, 33, 36])) + b"x.",
            lambda: b"\x80\x04\x95" + struct.pack("<Q", endless) + b"N.",
            lambda: b"\x8b" + struct.pack("<i", dice.choice([2**31 - 1, -1, 2**28])) + b"x.",
            lambda: b"B" + struct.pack("<I", huge) + b"x.",
            lambda: b"T" + struct.pack("<i", dice.choice([2**31 - 1, -5])) + b"x.",
            lambda: b"I" + b"9" * 100_000 + b"\n.",
            lambda: b"L" + b"9" * 100_000 + b"L\n.",
            lambda: b"(" * dice.choice([10_000, 1_000_000]),
            lambda: b"]" * 10_000 + b"a" * 9_999 + b".",
            lambda: b"]" * dice.choice([100_000, 2_000_000]) + b".",
            lambda: b"N" + b"\x85" * dice.choice([10_000, 1_000_000]) + b".",
            lambda: b"}" + text("model") + b"N" + b"\x85" * 100_000 + b"s.",
            lambda: doubled(dice.choice([30, 60, 5000])) + b".",
            lambda: model(
                {
                    dice.choice(
                        ["sampler_tea", "M", "dataset_name", "sampler_stu", "schedule_type", "num_steps"]
                    ): doubled(60)
                }
            ),
            lambda: model({"_modules": b"}" + text("a") + modules(60) + b"s"}),
            lambda: (
                b"}q\x00"
                + text("_modules")
                + b"}"
                + text("a")
                + b"h\x00ss"
                + b"0"
                + model({"_modules": b"}" + text("a") + b"h\x00s"})
            ),
            lambda: model({"num_steps": number(dice.choice([10**9, 10**18, -1, 0, 10**400]))}),
            lambda: model(
                {
                    dice.choice(
                        ["scale_time", "scale_dir", "schedule_rho", "max_order", "guidance_rate", "afs"]
                    ): dice.choice(
                        [
                            b"G" + struct.pack(">d", dice.choice([math.nan, math.inf, 1e308, -1.0, 5e-324])),
                            text("x"),
                            b"]",
                            number(10**400),
                            b"N",
                        ]
                    )
                }
            ),
            lambda: model(
                {
                    "_parameters": b"}"
                    + text("fc_r.weight")
                    + tensor(
                        *dice.choice(
                            [
                                (b"J\xff\xff\xff\x7f\x85", b"K\x00\x85"),
                                (b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft", b"(K\x00K\x00t"),
                                (b"K\x09\x85", b"K\x01\x85"),
                                (b"K\x02\x85", b"J\xff\xff\xff\x7f\x85"),
                                (b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
                                (b"G" + struct.pack(">d", 2.0) + b"\x85", b"K\x01\x85"),
                                (b"]", b"]"),
                                (b"N", b"N"),
                            ]
                        )
                    )
                    + b"s"
                }
            ),
            lambda: model(
                {
                    "_parameters": b"}"
                    + text("fc_r.weight")
                    + tensor(b"K\x02\x85", b"K\x01\x85", b"J\xff\xff\xff\x7f")
                    + b"s"
                }
            ),
            lambda: (
                b"}"
                + text("model")
                + of_bytes(torch_zip(b"\x80\x02N.", {"x/data/1": b"\0" * 20_000_000}, zipfile.ZIP_DEFLATED))
                + b"s."
            ),
            lambda: torch_zip(b"\x80\x02N.", {"x/data/1": b"\0" * 20_000_000}, zipfile.ZIP_DEFLATED),
            lambda: torch_zip(b"\x80\x02" + text("x") * 100_000 + b"."),
        ]
    )()


def tricks(marker: str, dice: random.Random) -> bytes:
    """Use no refused global: change admitted objects, extensions, persistent ids."""
    admitted = dice.choice(
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch.storage\n_load_from_bytes\n",
            b"ccopyreg\n_reconstructor\n",
            b"ctorch._utils\n_rebuild_parameter\n",
            b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n",
            b"ccollections\nOrderedDict\n",
            b"cbuiltins\nset\n",
            b"cbuiltins\nobject\n",
            b"ctorch\nSize\n",
            b"ctorch\nfloat32\n",
            b"cdnnlib.util\nEasyDict\n",
            b"ctraining.networks\nx\n",
        ]
    )
    attribute = dice.choice(
        [
            "__defaults__",
            "__kwdefaults__",
            "__code__",
            "__globals__",
            "__class__",
            "__doc__",
            "__wrapped__",
            "__dict__",
            "__setstate__",
            "__reduce__",
            "find_class",
            "dispatch",
            "state",
        ]
    )
    return dice.choice(
        [
            lambda: admitted + b"(N}" + text(attribute) + text(marker) + b"s\x86b.",
            lambda: (
                admitted
                + b"N}"
                + text(attribute)
                + dice.choice([text(marker), b")", b"}", admitted])
                + b"s\x86b."
            ),
            lambda: admitted + b"}" + text(attribute) + admitted + b"sb.",
            lambda: admitted + b"(" + text(marker) + b"tR}" + text(attribute) + admitted + b"sb.",
            lambda: admitted + b"(tR" + admitted + b"b.",
            lambda: admitted + b"(" + admitted + text(marker) + b"tR.",
            lambda: admitted + b")\x81}" + text("__class__") + admitted + b"sb.",
            lambda: b"\x82" + bytes([dice.randrange(256)]) + b".",
            lambda: b"\x83" + struct.pack("<H", dice.randrange(2**16)) + b".",
            lambda: b"\x84" + struct.pack("<i", dice.choice([1, 2**31 - 1, -1, 0])) + b".",
            lambda: b"P" + dice.choice([b"storage", marker.encode(), b"../x"]) + b"\n.",
            lambda: (
                dice.choice(
                    [
                        text(marker),
                        b"(" + text("storage") + admitted + text("0") + text("cpu") + b"K\x08t",
                        b"N",
                    ]
                )
                + b"Q."
            ),
            lambda: b"\x97.",
            lambda: b"N\x98.",
            lambda: (
                of_bytes(
                    dice.choice(
                        [
                            pickle.dumps(marker),
                            b"",
                            b"PK\x03\x04",
                            tar(marker, b"\x80\x02N."),
                            dice.randbytes(99),
                        ]
                    )
                )
                + b"."
            ),
            lambda: of_bytes(b"\x80\x02cos\nsystem\n" + text(f"touch {marker}") + b"\x85R.") + b".",
            lambda: b"]" + text("x") + b"a" + b"}" + text("y") + b"sb.",
            lambda: tensor(b"K\x02\x85", b"K\x01\x85") + b"(K\x01K\x02K\x03t" + b"b.",
            lambda: tensor(b"K\x02\x85", b"K\x01\x85") + b"(" + text("x") + b"\x90.",
            lambda: b"ccollections\nOrderedDict\n)R(" + text("x") + b"\x90.",
        ]
    )()


def archives(marker: str, value: bytes, dice: random.Random) -> bytes:
    """Write files of torch's other layouts."""
    slips = [
        "../../" + marker,
        marker,
        "x/data/../../../" + marker,
        "C:\\x",
        "x/\x01",
        "x/data.pkl/../y",
        "x" * 60_000,
    ]
    script = {"x/constants.pkl": value, "x/code/__torch__.py": f"open({marker!r}, 'w')".encode()}
    return dice.choice(
        [
            lambda: torch_zip(value),
            lambda: torch_zip(value, {dice.choice(slips): b"x"}),
            lambda: torch_zip(value, script),
            lambda: packed({"data.pkl": value}),
            lambda: packed({"x/data.pkl": value, "y/data.pkl": value}),
            lambda: packed({dice.choice(slips): value}),
            lambda: torch_zip(value)[: dice.randrange(400)],
            lambda: tar(marker, value),
            lambda: tar(marker, value) + packed({"x": b""}),
            lambda: torch_zip(value) + tar(marker, value),
            lambda: b"PK\x03\x04" + dice.randbytes(200),
            lambda: b"x" * 99 + torch_zip(value),
            lambda: (
                pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + value
            ),
        ]
    )()


def hostile(number: int, marker: str) -> tuple[str, bytes]:
    """Return (kind, bytes) of a file."""
    dice = random.Random(number)
    kind = dice.choices(
        ["call", "inst", "nested", "trick", "bomb", "archive", "damaged"], [8, 2, 2, 4, 5, 4, 2]
    )[0]
    module, attribute, args = dice.choice(targets(marker))
    value = call(name(module, attribute, dice), args, dice)
    if kind == "call":
        return kind, dressed(value, dice)
    if kind == "inst":
        return kind, dressed(inst(module, attribute, args), dice)
    if kind == "nested":  # a pickle inside the bytes of a storage
        return kind, dressed(of_bytes(dressed(value, dice)), dice)
    if kind == "trick":
        return kind, tricks(marker, dice)
    if kind == "bomb":
        return kind, bombs(dice)
    if kind == "archive":
        return kind, archives(marker, dressed(value, dice), dice)
    data = bytearray(dice.choice([dressed(value, dice), model({}), torch_zip(b"\x80\x02" + value + b".")]))
    for _ in range(dice.randrange(1, 9)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return kind, bytes(data[: dice.randrange(len(data))] if dice.random() < 0.5 else data)


# --- the process that is watched ---------------------------------------------------------------------------

WATCHED = """
import json, os, pickle, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from amed import PredictorError
from predictors.authors import ADMITTED, Reader, convert

folder = Path(sys.argv[1])
exec(sys.argv[2])
FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "exec", "compile",
             "code.__new__", "tempfile.", "import", "pickle.find_class", "urllib.", "webbrowser.", "signal.",
             "marshal.", "sys.set", "builtins.", "fcntl.", "glob.", "mmap.", "pathlib.", "sqlite3.",
             "syslog.", "function.__new__", "object.__setattr__", "object.__delattr__", "gc.")
heard, current, listening = [], None, False

def hear(event, args):
    if not listening:
        return
    if event == "open":
        if str(args[0]) != str(current) or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            heard.append(f"open {args[0]!r} {args[1]!r}"[:200])
    elif event.startswith(FORBIDDEN):
        heard.append(f"{event} {str(args)[:200]}")

def megabytes():
    # the most this process has had; getrusage's would begin with its parent's
    said = open("/proc/self/status").read() if os.path.exists("/proc/self/status") else "VmHWM: 0 kB"
    return int(said.split("VmHWM:")[1].split()[0]) // 1024

def state():
    # what stays of a file in this process
    own = [v for v in ADMITTED.values() if hasattr(v, "__dict__")]
    defaults = [(getattr(v, "__defaults__", 0), getattr(v, "__kwdefaults__", 0)) for v in own]
    return repr([sorted(vars(v)) for v in own]), repr(defaults), len(os.listdir("."))

def tried(path):
    global current, listening
    current, heard[:] = path, []
    begun = time.process_time()
    listening = True
    try:
        convert(path)
        outcome = "converted"
    except PredictorError as error:
        outcome = "refused" if path.name in str(error) else "refused, unnamed"
        if len(str(error)) > 2000:
            outcome = "refused at length"
    except BaseException as error:
        outcome = f"crash: {type(error).__name__}: {str(error)[:200]}"
    listening = False
    return [outcome, list(heard), time.process_time() - begun, megabytes()]

sys.addaudithook(hear)
listening = True
exec("0")
os.listdir(".")
listening = False
if len(heard) < 2:
    sys.exit("the hook hears nothing")
warm, *files = sorted(folder.glob("*.pkl"))
for _ in range(2):  # what torch itself imports at its first load
    for path in sorted(folder.glob("warm*")):
        tried(path)
before, results = state(), {}
start = megabytes()
for path in [warm, *files]:
    results[path.name] = tried(path)
    if state() != before:
        results[path.name][1].append("something of this process was changed")
        before = state()
print(json.dumps({"start": start, "results": results}))
"""


def watched(folder: Path, first: str = "") -> dict:
    """Convert each *.pkl in a folder; return [outcome, recorded events, CPU seconds, MB at the end] of each.

    Files named `warm*` come first. first: Python code to run before; as a control it removes the reader's
    guards, and the hook must then record something."""
    here = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as empty:
        run = [sys.executable, "-c", WATCHED, str(folder), first]
        ran = subprocess.run(run, capture_output=True, text=True, env=here, cwd=empty, timeout=3600)
        remaining = os.listdir(empty)
    if ran.returncode:
        raise RuntimeError(f"the watched process ended with {ran.returncode}: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1]) | {"left": remaining}


def warm(folder: Path) -> None:
    """Write files that torch itself reads, so that its imports on first use are done."""
    (folder / "warm1").write_bytes(torch_zip(b"\x80\x02}."))
    (folder / "warm2").write_bytes(b"}" + text("model") + tensor(b"K\x02\x85", b"K\x01\x85") + b"s.")
    file = io.BytesIO()
    torch.save({"model": torch.zeros(3)}, file)
    (folder / "warm3").write_bytes(file.getvalue())
    (folder / "warm4").write_bytes(model({}))


def faults(count: int, seed: int = 0) -> tuple[list[str], dict]:
    """Return what is wrong with the converter under this many files, and figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, kinds = Path(temporary) / "files", Counter()
        folder.mkdir()
        marker = Path(temporary) / "ran"
        warm(folder)
        for n in range(seed, seed + count):
            kind, data = hostile(n, str(marker))
            kinds[kind] += 1
            (folder / f"{n}-{kind}.pkl").write_bytes(data)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        result = watched(folder)
        problems = [f"{path} was left" for path in result["left"]]
        problems += ["a marker was made: something ran"] * marker.exists()
        problems += ["files were touched"] * (before != {p.name: p.read_bytes() for p in folder.iterdir()})
        problems += [f"beside the files: {p}" for p in Path(temporary).iterdir() if p not in (folder, marker)]
    results = result["results"]
    for which, (outcome, events, seconds, _) in results.items():
        if outcome != "refused":
            problems.append(f"{which}: {outcome}")
        problems += [f"{which}: heard {event}" for event in events]
        if seconds > SECONDS:
            problems.append(f"{which}: {seconds:.1f} s")
    grown = max(row[3] for row in results.values()) - result["start"]
    if grown > MEGABYTES:
        most = max(results, key=lambda k: results[k][3])
        problems.append(f"memory grew by {grown} MB, first by {most}")
    slowest = max(row[2] for row in results.values())
    return problems, {"files": len(results), "kinds": kinds, "slowest": slowest, "grown": grown}


def report(count: int, seed: int = 0) -> int:
    """Run, print, and write the figures into the page; return 0 if nothing was wrong."""
    problems, figures = faults(count, seed)
    for line in problems[:40]:
        print("FAULT", line)
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in figures["kinds"].most_common())
    rows = [
        ("files", f"{figures['files']:,}: {kinds}"),
        (
            "code executed, other files opened, modules imported, anything changed in the process",
            f"{len([f for f in problems if 'heard' in f or 'ran' in f or 'touched' in f])}",
        ),
        ("faults of any kind (not refused by name, a crash, too slow, too large)", f"{len(problems)}"),
        ("slowest", f"{figures['slowest']:.2f} s CPU"),
        ("growth of peak memory over all files", f"{figures['grown']} MB"),
    ]
    about = (
        f"Pickles that would call {len(targets(''))} functions of Python, torch and numpy, change "
        "admitted objects, declare sizes, nest, share, or hide in torch's zip and tar files, are "
        "given to `amed convert`, in a process whose audit hook records everything that Python "
        "opens, imports, executes or starts."
    )
    put(Part("pickles", "Hostile pickles", "make fuzz", about, rows))
    print("\n".join(f"{row_name}: {figure}" for row_name, figure in rows))
    return bool(problems)
