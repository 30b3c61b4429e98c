"""How results are shown: one measured line, a table of them, an image as a tile."""

from dataclasses import asdict, dataclass

from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """solver and schedule as one would name them; nfe counted; guidance scale; rmse_ref, fd_ref: error and
    Fréchet distance to the converged reference; fd_data: to the training data; seconds for all samples."""

    solver: str
    schedule: str
    nfe: int
    guidance: float
    rmse_ref: float
    fd_ref: float
    fd_data: float
    seconds: float

    def as_dict(self) -> dict:
        return {k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(self).items()}


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| solver | schedule | evaluations | guidance | error | FD to reference | FD to data | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.solver} | {r.schedule} | {r.nfe} | {r.guidance:g} | {r.rmse_ref:.3f} | {r.fd_ref:.2f} | "
        f"{r.fd_data:.2f} | {r.seconds:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def tile(image: Tensor, side: int) -> Image.Image:
    """An image `[3, H, W]` in [-1, 1] as a square of `side` pixels."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
