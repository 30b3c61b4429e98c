"""Compare our solvers with ComfyUI's own functions, on the demo model in float64: print one JSON line per
case.

A separate process, because it loads ComfyUI's modules."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.argv = sys.argv[:1]

import torch  # noqa: E402

from amed import Solver, sample, schedules  # noqa: E402
from amed.fit.measures import Counter  # noqa: E402
from bench.host import modules  # noqa: E402
from demo.model import load_denoiser  # noqa: E402

STEPS = (2, 3, 5, 8)
SETTINGS = {  # the host's DPM-Solver++ 2M predicts data and keeps its order in the last step
    "dpmpp": ("dpmpp_2m", {"predict_x0": True, "lower_order_final": False})
}


@contextmanager
def host_in_float64(unipc, order: int):
    """Make the host's UniPC use float64 tensors, and allow an order below its default of 3."""
    original_sample = unipc.sample
    torch.set_default_dtype(torch.float64)
    unipc.sample = lambda self, *args, **more: original_sample(
        self, *args, **more | {"order": min(more["order"], order)}
    )
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        unipc.sample = original_sample


def main() -> None:
    host, denoiser = modules(), load_denoiser(dtype=torch.float64)

    class Model(Counter):
        """A denoiser with the interface that the host calls."""

        def __init__(self):
            super().__init__(lambda x, sigma: denoiser(x, sigma))

    unit = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for steps in STEPS:
        sigmas = schedules.make("polynomial", steps + 1, 0.02, 80.0)
        to_zero = torch.cat([sigmas[:-1], torch.zeros(1, dtype=torch.float64)])
        floor = torch.cat(
            [sigmas[:-1], torch.tensor([0.001], dtype=torch.float64)]
        )  # the value that UniPC replaces 0 by
        cases = [
            ("unipc", order, variant, name, theirs, ours)
            for order in (1, 2, 3)
            for variant in ("bh1", "bh2")
            for name, theirs, ours in (("", sigmas, sigmas), (" to 0", to_zero, floor))
        ]
        cases += [
            (solver, order, "bh1", name, times, times)
            for solver, orders in (
                *(("deis", (2, 3, 4)), ("ipndm", (2, 3, 4))),
                *(("euler", (1,)), ("dpm_2", (1,)), ("heun", (1,)), ("dpmpp", (2,))),
            )
            for order in orders
            for name, times in (("", sigmas), (" to 0", to_zero))
        ]
        for solver, order, variant, name, theirs, ours in cases:
            x, models = unit * sigmas[0], (Model(), Model())
            options = {"extra_args": {}, "disable": True}
            with host_in_float64(host.uni_pc.UniPC, order):
                if solver == "unipc":
                    end = host.uni_pc.sample_unipc(
                        models[0], x.clone(), theirs.clone(), variant=variant, **options
                    )
                else:
                    function = getattr(host.sampling, f"sample_{SETTINGS.get(solver, (solver,))[0]}")
                    more = {"max_order": order} if solver in ("deis", "ipndm") else {}
                    end = function(models[0], x.clone(), theirs.clone(), **more, **options)
            host_options = SETTINGS.get(solver, ("", {}))[1]
            mine = sample(
                models[1], x, ours, Solver(solver, order, variant=variant, **host_options), disable=True
            )
            result = {
                "case": f"{solver} {order} {variant}{name}",
                "steps": steps,
                "difference": float((mine - end).abs().max()),
                "size": float(end.abs().max()),
                "evaluations": [m.evaluations for m in models],
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
