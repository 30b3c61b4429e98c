"""A predictor as a text that can be pasted, and put into an image's metadata.

    from_code(code_of(fitted), "pasted")

"amed1:", then base64 (url-safe) of the zlib-compressed bytes of its safetensors file. A code is not trusted:
its sizes are bounded, and what is in it is checked as a file is."""

import base64
import binascii
import json
import zlib
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from .errors import PredictorError, brief
from .fitted import Fitted, checked, tensors_of
from .spec import from_header, to_header

MARK = "amed1:"
TEXT, BYTES = 200_000, 400_000  # most characters of a code, and bytes they unpack to: a network's are 38,000
AGAIN = "copy the whole code again (AMED Predictor Info gives it)"


def code_of(fitted: Fitted) -> str:
    """A predictor as text; the same predictor gives the same text."""
    data = safetensors.torch.save(tensors_of(fitted), metadata=to_header(fitted.spec))
    return MARK + base64.urlsafe_b64encode(zlib.compress(in_order(data), 9)).decode()


def from_code(text: str, name: str) -> Fitted:
    """The predictor of a code, whitespace anywhere in it forgiven; `name` is what it is called from then on.
    Raises PredictorError saying what is wrong."""
    try:
        data = unpacked("".join(text.split()))
        tensors = safetensors.torch.load(data)  # sees to it, too, that the header is what it should be
        return checked(from_header(header_of(data).get("__metadata__") or {}), tensors, name)
    except SafetensorError as error:
        raise PredictorError(f"{name}: not a whole predictor ({error}); {AGAIN}") from None
    except ValueError as error:
        raise PredictorError(f"{name}: {brief(error)}") from None


def unpacked(code: str) -> bytes:
    """The bytes in a code without whitespace. Raises ValueError."""
    if not code.startswith(MARK):
        raise ValueError(f"a predictor's code begins with {MARK!r}, not with {code[:12]!r}; {AGAIN}")
    if len(code) > TEXT:
        raise ValueError(f"a predictor's code has at most {TEXT} characters, this one has {len(code)}")
    try:
        packed = base64.b64decode(code[len(MARK) :], altchars=b"-_", validate=True)
        opened = zlib.decompressobj()
        data = opened.decompress(packed, BYTES + 1)
    except (binascii.Error, zlib.error):
        raise ValueError(f"this code is damaged; {AGAIN}") from None
    if len(data) > BYTES:
        raise ValueError(f"this code unpacks to more than {BYTES} bytes: it is no predictor")
    if not opened.eof or opened.unused_data:
        raise ValueError(f"this code is not whole; {AGAIN}")
    return data


def header_of(data: bytes) -> dict[str, Any]:
    """The JSON at the head of a safetensors file. Raises ValueError."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ValueError(f"not a whole predictor; {AGAIN}")
    return header


def in_order(data: bytes) -> bytes:
    """The same safetensors file with its header's entries in order: how they come differs from run to run."""
    end = 8 + int.from_bytes(data[:8], "little")
    head = json.dumps(header_of(data), sort_keys=True, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + data[end:]
