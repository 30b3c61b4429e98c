"""A predictor as text, to paste into a node or to store in an image's metadata.

    text = code_of(fitted)
    fitted = from_code(text, "pasted")

The text is "amed1:" and the predictor's safetensors file, compressed with zlib, in URL-safe base64. Its size
is bounded, and its content is checked like that of a file."""

import base64
import binascii
import json
import zlib
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from .errors import PredictorError, shortened
from .fitted import Fitted, fitted_from, tensors_of
from .spec import from_header, to_header

MARK = "amed1:"
MAX_CHARACTERS = 200_000  # of a code
MAX_BYTES = 400_000  # of an unpacked code; the paper's network has 38,000


def code_of(fitted: Fitted) -> str:
    """Return a predictor as a text to copy and paste, its code; equal predictors give equal codes."""
    data = safetensors.torch.save(tensors_of(fitted), metadata=to_header(fitted.spec))
    return MARK + base64.urlsafe_b64encode(zlib.compress(with_sorted_header(data), 9)).decode()


def from_code(text: str, name: str) -> Fitted:
    """Load a predictor from its code, the text that AMED Predictor Info shows.

    Args:
        text: the code; whitespace in it is ignored.
        name: name of the predictor, for messages.

    Raises:
        PredictorError: if the code is damaged, or its predictor is invalid.
    """
    try:
        data = unpack("".join(text.split()))
        tensors = safetensors.torch.load(data)  # checks the header's syntax, too
        return fitted_from(from_header(header_of(data).get("__metadata__") or {}), tensors, name)
    except SafetensorError as error:
        raise PredictorError(
            f"{name}: the code (a predictor as text) does not hold a complete predictor ({error}): "
            "copy the whole code again from AMED Predictor Info"
        ) from None
    except ValueError as error:
        problem_and_remedy = shortened(error)
        raise PredictorError(
            f"{name}: the code (a predictor as text) cannot be loaded: {problem_and_remedy}"
        ) from None


def unpack(code: str) -> bytes:
    """Return the safetensors file, as bytes, that a predictor's code (the predictor as text) contains.

    Args:
        code: the code, without whitespace.

    Raises:
        ValueError: if the code is too long, damaged or incomplete.
    """
    if not code.startswith(MARK):
        raise ValueError(
            f"the code of a predictor begins with {MARK!r}, not with {code[:12]!r}: "
            "copy the whole code again from AMED Predictor Info"
        )
    if len(code) > MAX_CHARACTERS:
        raise ValueError(
            f"the code of a predictor has at most {MAX_CHARACTERS} characters, this one has {len(code)}: "
            "copy the code again from AMED Predictor Info, or load the predictor's file"
        )
    try:
        packed = base64.b64decode(code[len(MARK) :], altchars=b"-_", validate=True)
        decompressor = zlib.decompressobj()
        data = decompressor.decompress(packed, MAX_BYTES + 1)
    except (binascii.Error, zlib.error):
        raise ValueError(
            "the predictor's code is damaged: copy the whole code again from AMED Predictor Info"
        ) from None
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"the predictor's code unpacks to more than {MAX_BYTES} bytes: copy the code again from AMED "
            "Predictor Info, or load the predictor's file"
        )
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError(
            "the predictor's code is incomplete: copy the whole code again from AMED Predictor Info"
        )
    return data


def header_of(data: bytes) -> dict[str, Any]:
    """Return the JSON object at the start of a safetensors file. Raises ValueError if there is none."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ValueError(
            "the code (a predictor as text) does not hold a complete predictor: "
            "copy the whole code again from AMED Predictor Info"
        )
    return header


def with_sorted_header(data: bytes) -> bytes:
    """Return a safetensors file with sorted header keys, because safetensors writes them in varying order."""
    end = 8 + int.from_bytes(data[:8], "little")
    head = json.dumps(header_of(data), sort_keys=True, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + data[end:]
