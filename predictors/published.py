"""Write the constants that the authors published for Stable Diffusion 1.5 as a predictor file.

python -m predictors.published predictors/sd15-dpmpp-2m-nfe10.safetensors
"""

import sys

import torch
from torch import Tensor

from amed import Constants, Fitted, Spec, save, schedules

SOURCE = "zju-pi/diff-sampler, amed-solver-main/example.ipynb (Zhou et al. 2024), with a zero bottleneck"
# entries 0, 2, ...: base times; entries 1, 3, ...: learned mid times
TIMESTEPS = (999, 885, 799, 705, 599, 492, 400, 329, 200, 73, 0)
SCALE_DIR = (0.9974, 0.9904, 0.9910, 0.9905, 0.9904)  # c of each interval
SCALE_TIME = (0.9872, 1.0152, 1.0186, 0.9934, 0.9731)  # a of each interval


def sd15_timesteps() -> list[int]:
    """Return the integer timesteps at which the model is called; the last of the 11 is the end of the run.

    At a mid time it is the timestep nearest to sigma times a, strictly between its neighbours."""
    table, steps = schedules.sd_sigmas(), list(TIMESTEPS)
    for i, scale in enumerate(SCALE_TIME):
        high, low = TIMESTEPS[2 * i], TIMESTEPS[2 * i + 2]
        inside = torch.arange(low + 1, high)
        steps[2 * i + 1] = int(inside[(table[inside] - table[TIMESTEPS[2 * i + 1]] * scale).abs().argmin()])
    return steps


def sd15() -> Fitted:
    """Return the published predictor: DPM-Solver++ 2M (data prediction) for Stable Diffusion 1.5.

    It has 5 intervals and 10 evaluations, and is for guidance scale 7.5."""
    table = schedules.sd_sigmas()
    times: Tensor = table[torch.tensor(TIMESTEPS)]
    base, mid, sigma_model = times[::2], times[1::2], table[torch.tensor(sd15_timesteps())][1::2]
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
    constants = Constants(base, True, r=r, c=torch.tensor(SCALE_DIR), a=sigma_model / mid)
    return Fitted(spec, constants, base)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(save(sys.argv[1], sd15()))
