"""float64 is made on the CPU alone: `amed.double.as_double` is the one way there from what a device may hold.

Apple's GPUs have no float64, and say so in the middle of a run. This looks for every other way in the source;
tests/engine/test_no_double.py runs the engine on a device without it."""

import ast
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
ROOMS = ("amed", "nodes", "webui", "pictures", "scripts")
HELPER = "amed/double.py"
NAMES = {"float64", "double", "complex128", "cdouble", "DoubleTensor"}
# what makes a tensor (or array) of numbers that lie on no device, where none is named
MAKES = {"tensor", "zeros", "ones", "eye", "full", "empty", "linspace", "logspace", "arange", "rand", "randn"}
DEFAULTS = {"set_default_dtype", "set_default_tensor_type", "set_default_device"}


def named(node: ast.AST) -> bool:
    """Whether this is a name of float64: torch.float64, np.double, "float64" ..."""
    if isinstance(node, ast.Attribute):
        return node.attr in NAMES
    if isinstance(node, ast.Name):
        return node.id in NAMES - {"double"}  # an import of that name is found as one
    return isinstance(node, ast.Constant) and str(node.value).removeprefix("torch.") in NAMES


def on_the_cpu(call: ast.Call) -> bool:
    """Whether it is `torch.zeros(..., dtype=torch.float64)`, or numpy's, with no device."""
    made = call.func
    return (
        isinstance(made, ast.Attribute)
        and isinstance(made.value, ast.Name)
        and made.value.id in ("torch", "np", "numpy")
        and made.attr in MAKES
        and all(key.arg not in (None, "device") for key in call.keywords)
    )


def wrong_places(source: str) -> list[tuple[int, str]]:
    """(line, what) of every way to float64 that is not the helper's."""
    tree, allowed, found = ast.parse(source), set[ast.AST](), list[tuple[int, str]]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):  # asks for a dtype, makes none
            allowed.update((node.left, *node.comparators))
        elif isinstance(node, ast.Call) and on_the_cpu(node):
            allowed.update(key.value for key in node.keywords if key.arg == "dtype")
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REAL":
            allowed.update(ast.walk(node.value))  # the dtypes that a file may have
    for node in ast.walk(tree):
        if isinstance(node, ast.alias) and (node.name in NAMES | DEFAULTS or node.asname in NAMES):
            found.append((node.lineno, f"import {node.name}"))
        elif isinstance(node, ast.Attribute) and node.attr in DEFAULTS:
            found.append((node.lineno, node.attr))
        elif named(node) and node not in allowed:
            found.append((node.lineno, ast.unparse(node)))
    return sorted(found)


def files() -> list[Path]:
    return sorted(path for room in ROOMS for path in (PACK / room).rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACK)))
def test_no_other_way_to_float64(path):
    name = str(path.relative_to(PACK))
    if name == HELPER:
        return
    places = [f"{name}:{line}: {what}" for line, what in wrong_places(path.read_text())]
    told = "a device may have no float64: use amed.double.as_double, which goes to the CPU first"
    assert not places, "\n".join([told, *places])


def test_the_helper_is_there():
    assert "def as_double(" in (PACK / HELPER).read_text()
    assert len(files()) > 60


@pytest.mark.parametrize(
    "line",
    [
        "x.double()",
        "x.cpu().double()",
        "x.to(torch.float64)",
        "x.to(dtype=torch.float64)",
        'x.to("cpu", torch.float64)',
        "x.type(torch.float64)",
        'x.type("torch.DoubleTensor")',
        "torch.as_tensor(x, dtype=torch.float64)",
        "torch.zeros_like(x, dtype=torch.float64)",
        "x.new_zeros(3, dtype=torch.double)",
        "x.new_full((2,), 1.0, dtype=torch.float64)",
        "torch.zeros(3, dtype=torch.float64, device=x.device)",
        "torch.linspace(0, 1, 3, device=device, dtype=torch.float64)",
        "torch.tensor([1.0], dtype=torch.float64, **where)",
        "torch.set_default_dtype(kind)",
        "torch.promote_types(x.dtype, torch.float64)",
        "x.mean(dtype=torch.float64)",
        "x.sum(0, dtype=torch.float64)",
        "x.cumsum(0, torch.float64)",
        "np.asarray(x, dtype=np.float64)",
        'getattr(torch, "float64")',
        "from torch import float64",
        "from torch import float64 as wide",
        "from torch import set_default_dtype",
        "dtype = torch.float64",
        "exact = torch.float32 if mps else torch.float64",
        "torch.complex(x, y).to(torch.complex128)",
        "torch.DoubleTensor(x)",
    ],
)
def test_a_new_place_is_found(line):
    assert [number for number, _ in wrong_places(f"import torch\n{line}")] == [2]


@pytest.mark.parametrize(
    "line",
    [
        "as_double(x)",
        "torch.zeros(3, dtype=torch.float64)",
        "torch.tensor([1.0, 2.0], dtype=torch.float64)",
        "np.linspace(0, 1, 3, dtype=np.float64)",
        "v.dtype == torch.float64",
        "v.dtype in (torch.float32, torch.float16)",
        "x.to(torch.float32)",
    ],
)
def test_what_is_right_is_left_alone(line):
    assert not wrong_places(line)
