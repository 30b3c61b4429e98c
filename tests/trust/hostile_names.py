"""Names that would lead out of a folder, or that some operating system does not allow."""

import random

DEVICES = ("CON", "con", "PRN", "AUX", "NUL", "nul.txt", "COM1", "lpt9", "COM¹", "CON.tar.gz", "aux .x")
OUT = (
    "../x", "..", ".", "../../../../etc/passwd", "/etc/passwd", "/", "//server/share", "\\\\server\\share",
    "..\\x", "..\\..\\x",
    "C:\\x", "C:x", "c:/x", "a/b", "a\\b", "a/../b", "./x", "~", "~root/x", "$HOME", "%TEMP%",
    "x\0", "\0", "x\0.safetensors", "a\nb", "a\rb", "a\tb", "\x1b[2J", "", " ", "-x", "-rf",
    ".hidden", ".x.part",
    "a:b", "x:stream", "a|b", "a*b", "a?b", "<b>", "a\"b", "'", "`id`", "$(id)", ";x", "&x",
    "\u2024\u2024\u2215x", "\uff0e\uff0e\uff0fx", "a\u2044b", "a\u2215b", "a\u29f8b", "a\uff3cb", "a\u202eb",
    "a\u200bb", "\ud800", "a\udcffb", "\ufeffx", "a\u2028b", "x" * 5000, "é" * 500, "file:///etc/passwd",
    "http://localhost/x", "..%2fx", "%2e%2e%2f", "....//x", "..;/x", "x/.", "x/", "x\\", "con/../x",
    "emoji32/../../x", "x.safetensors/../../y", "\N{FULLWIDTH SOLIDUS}etc", "a" + "\u0301/" * 3,
)  # fmt: skip
GOOD = (
    "mine",
    "my predictor",
    "a.b+c_d-e",
    "x.safetensors",
    "Прогноз",
    "予測",
    "naïve 2",
    "connect",
    "com10",
    "nulls",
)


def combined(count: int, seed: int) -> list[str]:
    """Return random combinations of pieces of such names."""
    pieces = [*OUT, *DEVICES, *GOOD, "/", "\\", "..", "\0", " ", ".safetensors"]
    dice = random.Random(seed)
    return ["".join(dice.choices(pieces, k=dice.randrange(1, 5))) for _ in range(count)]
