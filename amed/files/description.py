"""The content of a predictor file, as JSON and as text for people."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ..outside import Outside
from .fitted import Fitted, constants_of, tensors_of
from .spec import to_header

# (parts, weights of a row [slopes, parts]) -> a name and a list of weights for each part of a slope
PartWeights = Callable[[str, Tensor], Iterable[tuple[str, list[float]]]]


def as_json(fitted: Fitted) -> dict[str, Any]:
    """Return everything in a predictor file as JSON values: the header's fields, and the tensors as lists."""
    unknown, header = fitted.spec.unknown, to_header(fitted.spec)
    header = {k: v if k in unknown else json.loads(v) for k, v in header.items() if k != "amed_format"}
    return header | {"tensors": {k: v.tolist() for k, v in tensors_of(fitted).items()}}


def describe(fitted: Fitted, part_weights: PartWeights | None = None) -> str:
    """Return the content of a predictor file as text: the header, then the constants of each interval.

    Args:
        part_weights: for predictors that weigh parts of the slope dx/dsigma separately, e.g. its frequency
            bands: a function that is given the kind of split (e.g. "bands") and the weights of one step,
            `[slopes, parts]`, and returns the name and the weights of each part, to print one part per
            line. Default: all weights of a step in one line.
    """
    spec, constants = fitted.spec, dict(constants_of(fitted))
    header = {name: text for name, text in to_header(spec).items() if text not in ('""', "{}", "[]")}
    lines = [fitted.label, "", *(f"{name}: {text}" for name, text in header.items()), ""]
    sigmas = fitted.base.tolist()
    levels = ", ".join(f"{sigma:.5g}" for sigma in sigmas)
    if not constants:
        count = sum(value.numel() for name, value in tensors_of(fitted).items() if name != "sigmas")
        learned = (
            f"a network of {count} parameters: r, c, a from the image" if count else "nothing was fitted"
        )
        return "\n".join([*lines, f"sigmas: {levels}", learned])
    if isinstance(fitted.predictor, Outside):
        lines += [f"noise levels of the schedule: {levels}", "sigma of the call: c, a"]
        calls = zip(*(value.tolist() for value in constants.values()))
        return "\n".join([*lines, *(f"{sigma:.5g}: {c:.4f}, {a:.4f}" for sigma, c, a in calls)])
    alone = constants.pop("alone", None)
    weights = constants.pop("weights") if part_weights and spec.parts else None
    more = "; then the weights of each part, the newest slope's first" if weights is not None else ""
    lines.append("sigma -> next: " + ", ".join(constants) + more)
    for n, (start, end) in enumerate(zip(sigmas, sigmas[1:])):
        row = [" ".join(f"{v:.4f}" for v in value[n].reshape(-1).tolist()) for value in constants.values()]
        row += ["one pass"] if alone is not None and alone[n] else []
        lines.append(f"{start:.5g} -> {end:.5g}: {', '.join(row)}")
        if part_weights and weights is not None:
            parts = part_weights(spec.parts, weights[n])
            lines += [f"  {name}: {' '.join(f'{w:.4f}' for w in values)}" for name, values in parts]
    return "\n".join(lines)
