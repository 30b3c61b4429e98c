"""float64 tensors are made on the CPU alone, through `amed.double.as_double`.

Apple's GPUs have no float64 and would fail in the middle of a run. These tests search the source for any
other conversion; tests/engine/test_no_float64.py runs the engine on a device without float64."""

import ast
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
ROOMS = ("amed", "nodes", "webui", "pictures", "scripts")
HELPER = "amed/double.py"
NAMES = {"float64", "double", "complex128", "cdouble", "DoubleTensor"}
# functions that create a tensor or array on the CPU if no device is given
MAKES = {"tensor", "zeros", "ones", "eye", "full", "empty", "linspace", "logspace", "arange", "rand", "randn"}
DEFAULTS = {"set_default_dtype", "set_default_tensor_type", "set_default_device"}


def names_float64(node: ast.AST) -> bool:
    """Return whether a node names float64, e.g. torch.float64, np.double or "float64"."""
    if isinstance(node, ast.Attribute):
        return node.attr in NAMES
    if isinstance(node, ast.Name):
        return node.id in NAMES - {"double"}  # an imported name is found at its import
    return isinstance(node, ast.Constant) and str(node.value).removeprefix("torch.") in NAMES


def creates_on_cpu(call: ast.Call) -> bool:
    """Return whether a call creates a float64 array on the CPU, e.g. `torch.zeros(...,
    dtype=torch.float64)`."""
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id in ("torch", "np", "numpy")
        and function.attr in MAKES
        and all(key.arg not in (None, "device") for key in call.keywords)
    )


def conversions(source: str) -> list[tuple[int, str]]:
    """Return (line, text) of every conversion to float64 that bypasses the helper."""
    tree, allowed, places = ast.parse(source), set[ast.AST](), list[tuple[int, str]]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):  # compares a dtype, converts nothing
            allowed.update((node.left, *node.comparators))
        elif isinstance(node, ast.Call) and creates_on_cpu(node):
            allowed.update(key.value for key in node.keywords if key.arg == "dtype")
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REAL":
            allowed.update(ast.walk(node.value))  # the dtypes allowed in a file
    for node in ast.walk(tree):
        if isinstance(node, ast.alias) and (node.name in NAMES | DEFAULTS or node.asname in NAMES):
            places.append((node.lineno, f"import {node.name}"))
        elif isinstance(node, ast.Attribute) and node.attr in DEFAULTS:
            places.append((node.lineno, node.attr))
        elif names_float64(node) and node not in allowed:
            places.append((node.lineno, ast.unparse(node)))
    return sorted(places)


def files() -> list[Path]:
    return sorted(path for room in ROOMS for path in (PACK / room).rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACK)))
def test_float64_is_made_only_by_the_helper(path):
    name = str(path.relative_to(PACK))
    if name == HELPER:
        return
    places = [f"{name}:{line}: {code}" for line, code in conversions(path.read_text())]
    advice = "a device may have no float64: use amed.double.as_double, which goes to the CPU first"
    assert not places, "\n".join([advice, *places])


def test_the_helper_exists():
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
def test_a_new_conversion_is_found(line):
    assert [number for number, _ in conversions(f"import torch\n{line}")] == [2]


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
def test_correct_code_is_not_reported(line):
    assert not conversions(line)
