"""The attributes of the avatars, and the text that names them, e.g. "pixel art, red hair, glasses".

An avatar has at most one value of each attribute. `encode` turns values into the vector that the network
receives; `parse` finds them in a text."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

STYLES = (
    "pixel art", "open peeps", "thumbs", "lorelei", "big smile", "adventurer", "toon head", "miniavs",
)  # fmt: skip
BACKGROUNDS = ("white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink")
HAIR_COLOURS = ("black", "brown", "blond", "red", "grey", "blue", "green", "pink")
ATTRIBUTES = {
    "style": STYLES,
    "background": tuple(f"{colour} background" for colour in BACKGROUNDS),
    "hair colour": tuple(f"{colour} hair" for colour in HAIR_COLOURS),
    "hair length": ("short hair", "long hair"),
    "glasses": ("no glasses", "glasses"),
    "beard": ("no beard", "beard"),
    "mood": ("smiling", "sad"),
    "skin": ("light skin", "brown skin", "dark skin"),
}
NOT_SHOWN = {  # attributes that avatars of a style do not show
    "thumbs": ("hair colour", "hair length", "glasses", "beard", "mood", "skin"),
    "lorelei": ("hair length", "mood"),
    "big smile": ("beard",),
    "adventurer": ("beard",),
    "toon head": ("glasses", "mood"),
    "miniavs": ("mood",),
}
VALUES = tuple(value for values in ATTRIBUTES.values() for value in values)
INDEX = {value: i for i, value in enumerate(VALUES)}
ATTRIBUTE_OF = {value: attribute for attribute, values in ATTRIBUTES.items() for value in values}
SIZE = len(VALUES)

SYNONYMS = {
    "pixelart": "pixel art", "pixel": "pixel art", "8 bit": "pixel art", "open peep": "open peeps",
    "peeps": "open peeps", "thumb": "thumbs", "bigsmile": "big smile", "toon": "toon head",
    "toonhead": "toon head", "cartoon": "toon head", "miniav": "miniavs", "mini": "miniavs",
    "sunglasses": "glasses", "spectacles": "glasses", "without glasses": "no glasses",
    "bearded": "beard", "moustache": "beard", "mustache": "beard", "without beard": "no beard",
    "clean shaven": "no beard", "smile": "smiling", "happy": "smiling", "laughing": "smiling",
    "unhappy": "sad", "angry": "sad", "serious": "sad", "frowning": "sad", "pale skin": "light skin",
    "white skin": "light skin", "tan skin": "brown skin", "tanned skin": "brown skin",
    "black skin": "dark skin",
    "blonde hair": "blond hair", "yellow hair": "blond hair", "blond": "blond hair", "blonde": "blond hair",
    "gray hair": "grey hair", "white hair": "grey hair", "ginger hair": "red hair", "redhead": "red hair",
    "orange hair": "red hair", "gray background": "grey background", "violet background": "purple background",
    "longhair": "long hair", "shorthair": "short hair", "dark hair": "black hair",
}  # fmt: skip
FILLERS = {  # words that say nothing about an avatar
    "a", "an", "the", "with", "and", "of", "on", "in", "at", "front", "his", "her", "their", "wearing", "has",
    "having", "style", "avatar", "avatars", "portrait", "person", "face", "picture", "image", "drawing",
}  # fmt: skip
LONGEST = 30  # characters of an unknown word in a warning
_PHRASES = {tuple(phrase.split()): SYNONYMS.get(phrase, phrase) for phrase in (*VALUES, *SYNONYMS)}
_MOST_WORDS = max(map(len, _PHRASES))


@dataclass(frozen=True)
class Prompt:
    """What a text says about an avatar."""

    values: tuple[str, ...]  # of VALUES, in the order of VALUES, at most one per attribute
    unknown: tuple[str, ...]  # words of the text that name no attribute, in the order of the text
    replaced: tuple[str, ...]  # values that the text contradicts further on; they are not used
    hidden: tuple[str, ...] = ()  # values of attributes that the style does not show; they are not used

    def warning(self) -> str:
        """Return one line about what was not used, or "" if everything was."""
        parts = []
        if self.unknown:
            words = ", ".join(w if len(w) <= LONGEST else f"{w[:LONGEST]}..." for w in self.unknown[:8])
            more = len(self.unknown) - 8
            parts.append(f"unknown to the avatar model: {words}" + (f" and {more} more" if more > 0 else ""))
        if self.replaced:
            parts.append(f"replaced by a later value: {', '.join(self.replaced)}")
        if self.hidden:
            parts.append(f"not shown in this style: {', '.join(self.hidden)}")
        return "; ".join(parts)


def parse(text: str) -> Prompt:
    """Find the attributes that a text names.

    The order of the phrases and upper or lower case do not matter; an empty text names nothing. If a text
    names two values of one attribute, the last is used. Values that the style does not show (a mood of
    miniavs) are not used, because the model has never seen them together. Never raises an error."""
    words = re.findall(r"\w+", text.lower().replace("_", " "))
    found: dict[str, str] = {}
    unknown, replaced, i = [], [], 0
    while i < len(words):
        for length in range(min(_MOST_WORDS, len(words) - i), 0, -1):
            value = _PHRASES.get(tuple(words[i : i + length]))
            if value is not None:
                before = found.pop(ATTRIBUTE_OF[value], value)
                if before != value:
                    replaced.append(before)
                found[ATTRIBUTE_OF[value]] = value
                i += length
                break
        else:
            if words[i] not in FILLERS:
                unknown.append(words[i])
            i += 1
    lacking = NOT_SHOWN.get(found.get("style", ""), ())
    hidden = tuple(value for attribute, value in found.items() if attribute in lacking)
    values = tuple(sorted(set(found.values()) - set(hidden), key=INDEX.__getitem__))
    return Prompt(values, tuple(dict.fromkeys(unknown)), tuple(replaced), hidden)


def encode(values: tuple[str, ...] | list[str]) -> Tensor:
    """Return the vector `[SIZE]` of attribute values: 1 at each value, 0 elsewhere.

    No values give zeros, which the model was trained to read as "unconditional".

    Raises:
        KeyError: for a name that is not in VALUES."""
    vector = torch.zeros(SIZE)
    vector[[INDEX[value] for value in values]] = 1.0
    return vector
