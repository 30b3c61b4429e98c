"""The published Stable Diffusion 1.5 values, as a predictor file.

python -m predictors.published predictors/sd15-dpmpp-2m-nfe10.safetensors
"""

import sys

import torch
from torch import Tensor

from amed import Constants, Fitted, Spec, save, schedules

SOURCE = "zju-pi/diff-sampler, amed-solver-main/example.ipynb (Zhou et al. 2024), with a zero bottleneck"
TIMESTEPS = (999, 885, 799, 705, 599, 492, 400, 329, 200, 73, 0)  # even: base points, odd: learned mid points
SCALE_DIR = (0.9974, 0.9904, 0.9910, 0.9905, 0.9904)
SCALE_TIME = (0.9872, 1.0152, 1.0186, 0.9934, 0.9731)


def sd15_timesteps() -> list[int]:
    """The integer timesteps the model is called at: at a mid point, its sigma times its time scale, taken to
    the nearest timestep that lies strictly between its neighbours. 11 entries, the last the end (never
    called)."""
    table, steps = schedules.sd_sigmas(), list(TIMESTEPS)
    for i, scale in enumerate(SCALE_TIME):
        high, low = TIMESTEPS[2 * i], TIMESTEPS[2 * i + 2]
        inside = torch.arange(low + 1, high)
        steps[2 * i + 1] = int(inside[(table[inside] - table[TIMESTEPS[2 * i + 1]] * scale).abs().argmin()])
    return steps


def sd15() -> Fitted:
    """DPM-Solver++ 2M (data prediction) for SD 1.5 at guidance 7.5: 5 intervals, 10 evaluations."""
    table = schedules.sd_sigmas()
    times: Tensor = table[torch.tensor(TIMESTEPS)]
    base, mid, called = times[::2], times[1::2], table[torch.tensor(sd15_timesteps())][1::2]
    r = (mid / base[:-1]).log() / (base[1:] / base[:-1]).log()
    spec = Spec(
        solver="dpmpp",
        max_order=2,
        predict_x0=True,
        scales_timestep=True,
        num_steps=6,
        schedule="discrete",
        sigma_min=float(base[-1]),
        sigma_max=float(base[0]),
        prediction_type="eps",
        guidance=7.5,
        model_family="sd15",
        model_name="Stable Diffusion 1.5",
        how="published constants",
        source=SOURCE,
    )
    constants = Constants(base, True, r=r, c=torch.tensor(SCALE_DIR), a=called / mid)
    return Fitted(spec, constants, base)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(save(sys.argv[1], sd15()))
