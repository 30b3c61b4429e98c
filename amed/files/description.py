"""What a predictor file says, as JSON and as text for people."""

import json
from typing import Any

from ..outside import Outside
from .fitted import Fitted, tensors_of, values_of
from .spec import to_header


def as_json(fitted: Fitted) -> dict[str, Any]:
    """Everything a file says, its tensors as lists."""
    unknown, header = fitted.spec.unknown, to_header(fitted.spec)
    header = {k: v if k in unknown else json.loads(v) for k, v in header.items() if k != "amed_format"}
    return header | {"tensors": {k: v.tolist() for k, v in tensors_of(fitted).items()}}


def described(fitted: Fitted) -> str:
    """Everything a file says, for people: its header, then its constants interval by interval."""
    header = {k: v for k, v in to_header(fitted.spec).items() if v not in ('""', "{}", "[]")}
    lines = [fitted.label, "", *(f"{name}: {value}" for name, value in header.items()), ""]
    sigmas, values = fitted.base.tolist(), values_of(fitted)
    if not values:
        count = sum(v.numel() for k, v in tensors_of(fitted).items() if k != "sigmas")
        what = f"a network of {count} parameters: r, c, a from the image" if count else "nothing was fitted"
        return "\n".join([*lines, "sigmas: " + ", ".join(f"{t:.5g}" for t in sigmas), what])
    if isinstance(fitted.predictor, Outside):
        lines.append("its noise levels: " + ", ".join(f"{t:.5g}" for t in sigmas))
        lines.append("asked at sigma: c, a")
        calls = zip(*(v.tolist() for v in values.values()))
        return "\n".join([*lines, *(f"{level:.5g}: {c:.4f}, {a:.4f}" for level, c, a in calls)])
    lines.append("sigma -> next: " + ", ".join(values))
    for n, (t, t_next) in enumerate(zip(sigmas, sigmas[1:])):
        row = [" ".join(f"{x:.4f}" for x in v[n].reshape(-1).tolist()) for v in values.values()]
        lines.append(f"{t:.5g} -> {t_next:.5g}: {', '.join(row)}")
    return "\n".join(lines)
