"""How the demo's results are shown: a measured row, a table of rows, an image as a tile."""

from dataclasses import asdict, dataclass

from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One solver of the demo with its measured figures."""

    solver: str  # its name for people
    schedule: str  # its schedule and settings for people, or the file of its predictor
    nfe: int  # evaluations counted around the network
    guidance: float  # guidance scale; 1 is none
    rmse_ref: float  # root mean square distance to the converged reference, pixels in [-1, 1]
    fd_ref: float  # Fréchet distance to the reference's images
    fd_data: float | None  # Fréchet distance to the training data; None for images of chosen prompts
    seconds: float  # sampling time of all samples

    def as_dict(self) -> dict:
        """Return the solver's measured figures by name, with floats rounded to five decimals."""
        return {k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(self).items()}


def table(rows: list[Row]) -> str:
    """Return a Markdown table with one line of measured figures per solver."""
    lines = [
        "| solver | schedule | evaluations | guidance | error | FD to reference | FD to data | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.solver} | {r.schedule} | {r.nfe} | {r.guidance:g} | {r.rmse_ref:.3f} | {r.fd_ref:.2f} | "
        f"{'' if r.fd_data is None else f'{r.fd_data:.2f}'} | {r.seconds:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def tile(image: Tensor, side: int) -> Image.Image:
    """Return an image `[3, H, W]` in [-1, 1] as a square of `side` pixels."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
