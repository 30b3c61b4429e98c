"""The avatars' pictures: which DiceBear options draw which attributes, and the drawing with Node.js."""

import json
import random
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .attributes import ATTRIBUTES, BACKGROUNDS, HAIR_COLOURS, NOT_SHOWN

PACKAGES = ("@dicebear/core@9.4.3", "@dicebear/collection@9.4.3", "@resvg/resvg-js@2.6.2")
SCRIPT = Path(__file__).with_name("draw.mjs")
RESOLUTION = 32
DRAWN = 64  # pixels per side of the drawing, which is averaged to RESOLUTION

BACKGROUND_HEX = dict(
    zip(
        BACKGROUNDS,
        ("ffffff", "b4bac4", "e5484d", "f59e42", "ffdb5c", "6fcf7c", "6cb8f0", "9f7aea", "f9a8d4"),
        strict=True,
    )
)
HAIR_HEX = dict(
    zip(
        HAIR_COLOURS,
        ("17161a", "6a4324", "e8c66a", "b5341f", "b4b7bd", "3f7fe0", "37a35a", "ee7fb4"),
        strict=True,
    )
)
SKIN_HEX = {"light skin": "f6d3b3", "brown skin": "c08552", "dark skin": "6b4226"}


def numbered(prefix: str, numbers: Iterable[int]) -> list[str]:
    """Return DiceBear's names of variants: `prefix` and a number of two digits."""
    return [f"{prefix}{number:02d}" for number in numbers]


# Per style: the name in DiceBear's collection, and for each attribute the options that its values set. A
# style that is not listed under an attribute does not show it.
COLLECTION = {
    "pixel art": "pixelArt",
    "open peeps": "openPeeps",
    "thumbs": "thumbs",
    "lorelei": "lorelei",
    "big smile": "bigSmile",
    "adventurer": "adventurer",
    "toon head": "toonHead",
    "miniavs": "miniavs",
}
HAIR_COLOUR_OPTION = {style: "hairColor" for style in COLLECTION if style != "thumbs"}
HAIR_COLOUR_OPTION["open peeps"] = "headContrastColor"
SKIN_OPTION = {style: "skinColor" for style in COLLECTION if style != "thumbs"}
HAIR = {  # style: (option, styles of short hair, styles of long hair)
    "pixel art": ("hair", numbered("short", range(1, 25)), numbered("long", range(1, 22))),
    "open peeps": (
        "head",
        ["grayShort", "mohawk", "mohawk2", "short4"],
        ["bangs", "grayMedium", "mediumBangs2"],
    ),
    "big smile": (
        "hair",
        ["shortHair", "mohawk", "shavedHead", "curlyShortHair", "halfShavedHead"],
        ["wavyBob", "curlyBob", "straightHair", "bangs"],
    ),
    "adventurer": ("hair", numbered("short", range(1, 19)), numbered("long", range(1, 27))),
    "miniavs": ("hair", ["curly", "stylish", "elvis", "classic01", "classic02"], ["long", "ponyTail"]),
}  # fmt: skip
GLASSES = {  # style: (option, variants)
    "pixel art": ("glasses", numbered("dark", range(1, 8))),
    "open peeps": ("accessories", ["glasses", "glasses2", "glasses3", "sunglasses", "sunglasses2"]),
    "lorelei": ("glasses", numbered("variant", range(1, 6))),
    "big smile": ("accessories", ["glasses", "sunglasses"]),
    "adventurer": ("glasses", numbered("variant", range(1, 6))),
    "miniavs": ("glasses", ["normal"]),
}
BEARD = {
    "pixel art": ("beard", numbered("variant", range(1, 9))),
    "open peeps": ("facialHair", ["full", "full2", "full3", "full4", "goatee1", "moustache2"]),
    "lorelei": ("beard", numbered("variant", (1, 2))),
    "toon head": ("beard", ["fullBeard", "longBeard"]),
    "miniavs": ("mustache", ["horshoe", "freddy"]),
}
MOOD = {  # style: options of a smile, options of a sad face
    "pixel art": ({"mouth": numbered("happy", (6, 7, 8, 9, 12))}, {"mouth": numbered("sad", (1, 2, 3, 8))}),
    "open peeps": (
        {"face": ["lovingGrin1", "lovingGrin2", "smileBig", "smileLOL", "smileTeethGap"]},
        {"face": ["concerned", "concernedFear", "solemn", "serious", "angryWithFang", "tired"]},
    ),
    "big smile": (
        {"mouth": ["openedSmile", "gapSmile", "teethSmile"], "eyes": ["cheery", "normal", "winking"]},
        {"mouth": ["unimpressed", "openSad"], "eyes": ["sad", "angry", "confused"]},
    ),
    "adventurer": (
        {"mouth": numbered("variant", (1, 5, 24, 26, 27, 28)), "eyebrows": numbered("variant", (5, 6, 7))},
        {"mouth": numbered("variant", (4, 6, 10, 13, 14, 18)), "eyebrows": numbered("variant", (1, 2, 3))},
    ),
}
ALWAYS = {  # options that keep the drawings simple, and draw a happy pair of eyes where mood is not shown
    "pixel art": {"accessoriesProbability": 0, "hatProbability": 0},
    "open peeps": {"maskProbability": 0},
    "thumbs": {"shapeColor": ["0a5b83", "69d2e7", "f1f4dc", "f88c49", "d64550", "5b8c3a"]},
    "lorelei": {"earringsProbability": 0, "frecklesProbability": 0, "hairAccessoriesProbability": 0},
    "adventurer": {"earringsProbability": 0, "featuresProbability": 0},
    "toon head": {"eyes": ["happy", "wide"], "mouth": ["smile", "laugh"], "eyebrows": ["happy", "neutral"]},
    "miniavs": {"blushesProbability": 0},
}


def has(style: str, attribute: str) -> bool:
    """Whether avatars of a style show an attribute."""
    return attribute not in NOT_SHOWN.get(style, ())


def drawn(draw: random.Random, style: str) -> dict[str, str]:
    """Draw a value of each attribute that a style shows: attribute to value. One in four has glasses or a
    beard."""
    values = {"style": style}
    for attribute, choices in ATTRIBUTES.items():
        if attribute != "style" and has(style, attribute):
            rare = attribute in ("glasses", "beard")
            values[attribute] = choices[draw.random() < 0.3] if rare else draw.choice(choices)
    return values


def options(values: dict[str, str], seed: str) -> dict[str, Any]:
    """Return DiceBear's options for an avatar of these values; `seed` decides everything else."""
    style = values["style"]
    chosen = {"seed": seed, **ALWAYS.get(style, {})}
    chosen["backgroundColor"] = [BACKGROUND_HEX[values["background"].removesuffix(" background")]]
    if has(style, "hair colour"):
        chosen[HAIR_COLOUR_OPTION[style]] = [HAIR_HEX[values["hair colour"].removesuffix(" hair")]]
        chosen[SKIN_OPTION[style]] = [SKIN_HEX[values["skin"]]]
    long_hair = values.get("hair length") == "long hair"
    if style == "toon head":
        chosen |= {
            "rearHair": ["longStraight", "longWavy", "shoulderHigh"],
            "rearHairProbability": 100 * long_hair,
        }
        chosen["hair"] = ["sideComed", "undercut"] if long_hair else ["sideComed", "undercut", "spiky"]
    elif style in HAIR:
        chosen[HAIR[style][0]] = HAIR[style][1 + long_hair]
    for attribute, table in (("glasses", GLASSES), ("beard", BEARD)):
        if has(style, attribute):
            option, variants = table[style]
            chosen |= {option: variants, f"{option}Probability": 100 * (values[attribute] == attribute)}
    if has(style, "mood"):
        chosen |= MOOD[style][values["mood"] == "sad"]
    return chosen


def install(folder: Path) -> None:
    """Install DiceBear and its renderer into `folder` with npm.

    Raises RuntimeError if npm is missing or fails."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}\n')
    shutil.copy(SCRIPT, folder)
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", *PACKAGES]
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError("npm was not found: install Node.js 18 or newer") from None
    if run.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed ({run.stderr.strip()}): check the network")


def draw(jobs: Iterable[tuple[str, dict[str, Any]]], folder: Path) -> Iterator[np.ndarray]:
    """Draw avatars, each a pair of a style and DiceBear's options; yield uint8 `[3, 32, 32]` each.

    folder: where `install` has put DiceBear.

    Raises:
        RuntimeError: if Node.js fails, with what it says."""
    lines = "".join(json.dumps({"style": COLLECTION[s], "options": o}) + "\n" for s, o in jobs).encode()
    with subprocess.Popen(
        ["node", SCRIPT.name, str(DRAWN)],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        out, errors = process.communicate(lines)
    size = DRAWN * DRAWN * 4
    if process.returncode or len(out) != size * lines.count(b"\n"):
        raise RuntimeError(
            f"Node.js could not draw the avatars: {errors.decode(errors='replace').strip()[-500:]}"
        )
    for start in range(0, len(out), size):
        rgba = np.frombuffer(out, np.uint8, size, start).reshape(DRAWN, DRAWN, 4)[..., :3]
        step = DRAWN // RESOLUTION
        mean = rgba.reshape(RESOLUTION, step, RESOLUTION, step, 3).mean(axis=(1, 3))
        yield np.ascontiguousarray(mean.round().astype(np.uint8).transpose(2, 0, 1))
