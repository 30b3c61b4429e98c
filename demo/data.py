"""The demo's training data: Noto emoji on white, 32x32 RGB, with their categories.

    python -m demo.data            # needs npm; or --tgz emoji-datasource-google-16.0.0.tgz
    python -m demo.data avatars32  # the avatar model's data (avatars/data.py); needs Node.js and npm

The images come from npm's `emoji-datasource-google`. They are downloaded and built, never committed;
demo/README.md states their licence.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

PACKAGE = "emoji-datasource-google@16.0.0"
CATEGORIES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
    "Component",
)
UNMIRRORED = ("Symbols", "Flags")  # contain writing and heraldry, which mirroring would change
RESOLUTION = 32
DEFAULT_FILE = Path(__file__).parent / "data" / "emoji32.safetensors"


def fetch(folder: Path) -> Path:
    """Download the emoji package's archive (.tgz) into `folder` with `npm pack`; return its path.

    Raises RuntimeError if npm is missing or fails."""
    try:
        run = subprocess.run(
            ["npm", "pack", PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise RuntimeError(
            f"npm was not found: install Node.js, or pass a downloaded archive of {PACKAGE} with --tgz"
        ) from None
    if run.returncode:
        raise RuntimeError(
            f"`npm pack {PACKAGE}` failed ({run.stderr.strip()}): check the network, or pass a downloaded "
            "archive with --tgz"
        )
    return folder / run.stdout.strip().splitlines()[-1]


def build(tgz: Path) -> dict[str, torch.Tensor]:
    """Build the data set from the emoji package's archive, sorted by the emoji's `sort_order`.

    Returns `images` uint8 [N, 3, 32, 32] and `labels` int64 [N]."""
    images, labels = [], []
    with tarfile.open(tgz) as tar:
        files = {m.name: m for m in tar.getmembers()}
        entries = json.load(tar.extractfile("package/emoji.json"))
        for entry in sorted((e for e in entries if e["has_img_google"]), key=lambda e: e["sort_order"]):
            png = tar.extractfile(files[f"package/img/google/64/{entry['image']}"]).read()
            rgba = Image.open(io.BytesIO(png)).convert("RGBA")
            page = Image.new("RGBA", rgba.size, "white")
            page.alpha_composite(rgba)
            small = page.convert("RGB").resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX)
            images.append(np.asarray(small).transpose(2, 0, 1).copy())
            labels.append(CATEGORIES.index(entry["category"]))
    return {"images": torch.from_numpy(np.stack(images)), "labels": torch.tensor(labels)}


def load(file: Path = DEFAULT_FILE) -> tuple[torch.Tensor, torch.Tensor]:
    """Load the data set: images [N, 3, 32, 32] in [-1, 1] and labels [N].

    Raises FileNotFoundError if it has not been built yet."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} does not exist: build it with `python -m demo.data`")
    data = load_file(file)
    return data["images"].float() / 127.5 - 1, data["labels"]


def mirrored(
    images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Mirror each image [B, 3, H, W] with probability 1/2, except symbols and flags (UNMIRRORED)."""
    fixed = torch.isin(labels, torch.tensor([CATEGORIES.index(c) for c in UNMIRRORED]))
    flip = (torch.rand(len(images), generator=generator) < 0.5) & ~fixed
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def emoji(tgz: Path | None) -> tuple[dict[str, torch.Tensor], str]:
    """Build the emoji data set, from a downloaded archive if given; return it and a description."""
    with tempfile.TemporaryDirectory() as folder:
        data = build(tgz or fetch(Path(folder)))
    counts = torch.bincount(data["labels"], minlength=len(CATEGORIES)).tolist()
    return data, ", ".join(f"{c} {n}" for c, n in zip(CATEGORIES, counts))


def avatars(tgz: Path | None) -> tuple[dict[str, torch.Tensor], str]:
    """Draw the avatar data set; return it and a description."""
    from .avatars import attributes
    from .avatars import data as recipe

    data = recipe.build()
    counts = data["labels"].sum(dim=0, dtype=torch.int64).tolist()
    return data, ", ".join(f"{value} {n}" for value, n in zip(attributes.VALUES, counts))


def main(argv: list[str] | None = None) -> int:
    from .recipe import MODULES, recipe  # not needed by those who only read the categories

    parser = argparse.ArgumentParser(prog="python -m demo.data", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="emoji32", choices=list(MODULES), help="the demo model")
    parser.add_argument("--tgz", type=Path, help="an archive of the emoji that was already downloaded")
    parser.add_argument("--out", type=Path, help="file to write, if not the usual one")
    args = parser.parse_args(argv)
    out = args.out or recipe(args.model).data
    try:
        data, counts = (emoji if args.model == "emoji32" else avatars)(args.tgz)
    except (RuntimeError, OSError, KeyError, tarfile.TarError) as error:
        print(f"demo.data: {error}", file=sys.stderr)
        return 1
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(data, out)
    print(f"{out}: {len(data['labels'])} images; {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
