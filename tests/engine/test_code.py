"""A predictor as a text code: pasting restores the copied file, and nothing else is accepted."""

import base64
import json
import math
import struct
import zlib
from pathlib import Path

import pytest
import torch

from amed import PredictorError, load
from amed.files import code
from amed.files.code import MARK, code_of, from_code
from amed.files.fitted import tensors_of

FOLDER = Path(__file__).resolve().parents[2] / "predictors"
TABLE = FOLDER / "emoji32-multistep-nfe5-cfg1.safetensors"
EACH = [TABLE, FOLDER / "sd15-dpmpp-2m-nfe10.safetensors", FOLDER / "emoji32-amed-nfe5-cfg1.safetensors"]


def packed(data: bytes) -> str:
    return MARK + base64.urlsafe_b64encode(zlib.compress(data)).decode()


def data_of(text: str) -> bytes:
    return zlib.decompress(base64.urlsafe_b64decode(text.removeprefix(MARK)))


def with_head(change) -> str:
    """Return the table's code with other JSON at its head."""
    data = data_of(code_of(load(TABLE)))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return packed(len(head).to_bytes(8, "little") + head + data[end:])


@pytest.mark.parametrize("path", EACH, ids=lambda path: path.stem)
def test_a_pasted_code_is_the_file(path):
    fitted = load(path)
    text = code_of(fitted)
    lines = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    again = from_code(f"  {lines}\r\n ", path.name)
    assert again.spec == fitted.spec and again.name == path.name and code_of(again) == text
    mine, theirs = tensors_of(fitted), tensors_of(again)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_a_fitted_table_is_a_few_kilobytes():
    assert len(code_of(load(TABLE))) < 4096


def test_an_invalid_code_is_refused_in_one_line(monkeypatch):
    text = code_of(load(TABLE))
    cases = {
        "": "begins with",
        "amed2:" + text[6:]: "begins with",
        text[:-40]: "damaged|incomplete",
        text[:200] + "!" + text[201:]: "damaged",
        packed(b"\x10\0\0\0\0\0\0\0{not a header"): "not hold a complete predictor",
        packed(b"\xff" * 64): "not hold a complete predictor",
        packed(b""): "not hold a complete predictor",
        MARK + "A" * code.MAX_CHARACTERS: "at most",
        packed(bytes(50_000_000)): "unpacks to more",
        packed(data_of(text)[:-8]): "not hold a complete predictor",
        with_head(lambda head: head.pop("__metadata__")): "not an AMED predictor",
        with_head(lambda head: head["__metadata__"].update(amed_format="9")): "update AMED",
        with_head(lambda head: head["__metadata__"].update(num_steps="4")): "num_steps",
        with_head(lambda head: head.update(__metadata__=3)): "not hold a complete predictor",
    }
    for bad, expected in cases.items():
        with pytest.raises(PredictorError, match=expected) as refused:
            from_code(bad, "pasted")
        assert str(refused.value).startswith("pasted: ") and str(refused.value).count("\n") < 3


def test_values_are_checked_as_in_a_file():
    data = data_of(code_of(load(TABLE)))  # its last tensor is the weights
    with pytest.raises(PredictorError, match="finite"):
        from_code(packed(data[:-8] + struct.pack("<d", math.nan)), "pasted")
