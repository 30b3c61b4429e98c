"""What gives r, c, a for an interval: constants (TablePredictor) or the paper's network
(BottleneckPredictor).

One interface: `predictor(t_cur, t_next, bottleneck=None) -> (r, c, a)`, each `[B or 1]`: where the mid time
lies (0 < r < 1), the direction's scale and the time's scale. Times are scalar tensors (noise levels).
"""

import math
from bisect import bisect_left
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Predictor(Protocol):
    """Gives (r, c, a) for the interval from t_cur to t_next; asks for the bottleneck at t_cur if it wants
    it."""

    wants_bottleneck: bool

    def __call__(
        self, t_cur: Tensor, t_next: Tensor, bottleneck: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class Grid:
    """Where a noise level lies among a table's: by linear interpolation in log sigma, the ends beyond them.

    In plain Python, as a sampling loop asks it at every step and a GPU must not be waited for."""

    def __init__(self, sigmas: Tensor):
        self.rising = [math.log(s) for s in reversed(sigmas.tolist())]

    def find(self, t: Tensor) -> tuple[int, int, float]:
        """(index before, index after, share of the latter) at level t, indices of the falling list."""
        x, last = math.log(float(t)), len(self.rising) - 1
        high = min(bisect_left(self.rising, x - 1e-5), last)
        low = max(high - 1, 0)
        share = 1.0
        if high > low:
            share = min(max((x - self.rising[low]) / (self.rising[high] - self.rising[low]), 0.0), 1.0)
        if abs(share - round(share)) < 1e-5:  # fp32's own rounding
            share = float(round(share))
        return last - low, last - high, share


class TablePredictor(nn.Module):
    """A constant r, c, a per interval of a fitted grid; other times interpolate linearly in log sigma.

    `sigmas` `[N]` the fitted base times, falling and positive; `r`, `c`, `a` `[N-1]`, one per interval,
    looked up at the interval's start. The parameters are logits of r and plain c, a, so that gradients can
    fit them. Raises ValueError when lengths or ranges do not fit."""

    wants_bottleneck = False

    def __init__(self, sigmas: Tensor, r: Tensor, c: Tensor | None = None, a: Tensor | None = None):
        super().__init__()
        sigmas, r = (torch.as_tensor(v, dtype=torch.float64) for v in (sigmas, r))
        c, a = (torch.ones_like(r) if v is None else torch.as_tensor(v, dtype=torch.float64) for v in (c, a))
        if sigmas.ndim != 1 or len(sigmas) < 2 or not (sigmas > 0).all() or not (sigmas.diff() < 0).all():
            raise ValueError(
                f"sigmas must be at least 2 falling positive noise levels, got {sigmas.tolist()}"
            )
        for name, value in (("r", r), ("c", c), ("a", a)):
            if value.shape != (len(sigmas) - 1,):
                raise ValueError(
                    f"{name} must have one value per interval ({len(sigmas) - 1}), "
                    f"got shape {tuple(value.shape)}"
                )
            if not value.isfinite().all():
                raise ValueError(f"{name} is not finite: {value.tolist()}")
        if not ((r > 0) & (r < 1)).all():
            raise ValueError(f"r must lie between 0 and 1, got {r.tolist()}")
        if not (a > 0).all():
            raise ValueError(f"a must be positive, got {a.tolist()}")
        self.register_buffer("sigmas", sigmas)
        self.grid = Grid(sigmas[:-1])
        self.logit_r, self.c, self.a = nn.Parameter(torch.logit(r)), nn.Parameter(c), nn.Parameter(a)

    @property
    def r(self) -> Tensor:
        return torch.sigmoid(self.logit_r)

    def forward(
        self, t_cur: Tensor, t_next: Tensor, bottleneck: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        before, after, share = self.grid.find(t_cur)
        r, c, a = (
            (v[after] if share == 1 else torch.lerp(v[before], v[after], share)).reshape(1)
            for v in (self.r, self.c, self.a)
        )
        return r, c, a


class MultistepTable(nn.Module):
    """The constants of `multistep`, the student with free times and free weights on all slopes in hand.

    `sigmas` `[N+1]` its times, falling and positive: one evaluation at each but the last. `weights` `[N, H]`:
    of step n on the newest slope, the one before ... `a` `[N]`: scale of the noise level the model is told
    (1). `g` `[N]`: factor on the guidance scale (1). With AFS the first slope is analytic and `a[0]`, `g[0]`
    mean nothing; without, the slope before the first is the analytic one, x_0 / sqrt(1 + t_0^2), which costs
    nothing and may be given a weight too. H is at most N + 1. Raises ValueError for what does not fit."""

    wants_bottleneck = False

    def __init__(self, sigmas: Tensor, weights: Tensor, a: Tensor | None = None, g: Tensor | None = None):
        super().__init__()
        sigmas, weights = (torch.as_tensor(v, dtype=torch.float64) for v in (sigmas, weights))
        steps = len(sigmas) - 1
        if sigmas.ndim != 1 or steps < 1 or not (sigmas > 0).all() or not (sigmas.diff() < 0).all():
            raise ValueError(
                f"sigmas must be at least 2 falling positive noise levels, got {sigmas.tolist()}"
            )
        if weights.ndim != 2 or len(weights) != steps or not 1 <= weights.shape[1] <= steps + 1:
            raise ValueError(
                f"weights must have {steps} rows of 1 to {steps + 1}, got shape {tuple(weights.shape)}"
            )
        if not weights.isfinite().all():
            raise ValueError("weights are not finite")
        if weights.triu(2).any():
            raise ValueError("weights reach back to slopes before the first")
        a, g = (torch.ones(steps) if v is None else torch.as_tensor(v) for v in (a, g))
        for name, value in (("a", a), ("g", g)):
            if value.shape != (steps,):
                raise ValueError(f"{name} must have {steps} values, got shape {tuple(value.shape)}")
            if not (value.isfinite() & (value > 0)).all():
                raise ValueError(f"{name} must be positive, got {value.tolist()}")
        for name, value in (("sigmas", sigmas), ("weights", weights), ("a", a), ("g", g)):
            self.register_buffer(name, value.detach().double())
        self.grid = Grid(self.sigmas[:-1])
        self.rows = torch.cat([self.weights, self.a[:, None], self.g[:, None]], dim=1).tolist()

    def parameters(self, recurse: bool = True):
        """Its constants (buffers: nothing here is trained by gradient)."""
        return self.buffers(recurse)

    def before_first(self) -> bool:
        """Whether any step weighs the analytic slope before the first."""
        return bool(self.weights.diagonal(1).any())

    def row(self, t: Tensor) -> tuple[list[float], float, float]:
        """(weights newest first, a, g) of the step from t; between the fitted times, and beyond them, by
        linear interpolation in log sigma."""
        before, after, share = self.grid.find(t)
        row = self.rows[after]
        if share < 1:
            row = [x + share * (y - x) for x, y in zip(self.rows[before], row)]
        return row[:-2], row[-2], row[-1]

    def forward(self, t_cur: Tensor, t_next: Tensor, bottleneck: Tensor | None = None):
        raise TypeError("a multistep table has no r, c, a: it is run by the solver 'multistep'")


def pool(bottleneck: Tensor) -> Tensor:
    """The network's view of a bottleneck `[B, C, H, W]`: mean over channels, then 8x8, as `[B, 64]`."""
    return F.adaptive_avg_pool2d(bottleneck.mean(dim=1, keepdim=True), 8).flatten(1)


class Linear(nn.Module):
    """nn.Linear by another name: WebUIs change torch's own class while they load a checkpoint, and its
    forward for LoRAs."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class BottleneckPredictor(nn.Module):
    """The paper's predictor g_phi (sec. 3.3): a small MLP on the U-Net's bottleneck and both times.

    8,929 parameters, and 21 each for c (if scale_dir > 0) and a (if scale_time > 0). Tensor names are those
    of the authors' weight files. c in 1 ± scale_dir, a in 1 ± scale_time. No bottleneck (analytic first step,
    or a host that cannot give one) counts as zeros."""

    wants_bottleneck = True

    def __init__(self, scale_dir: float = 0.01, scale_time: float = 0.0):
        super().__init__()
        if scale_dir < 0 or scale_time < 0 or scale_dir >= 1 or scale_time >= 1:
            raise ValueError(f"scale_dir and scale_time must be in [0, 1), got {scale_dir} and {scale_time}")
        self.scale_dir, self.scale_time = float(scale_dir), float(scale_time)
        self.register_buffer("freqs", 10000.0 ** -torch.linspace(0, 1, 4), persistent=False)
        self.map_layer0 = Linear(8, 8)
        self.enc_layer0, self.enc_layer1 = Linear(64, 128), Linear(128, 4)
        self.fc_r = Linear(20, 1)
        self.fc_scale_dir = Linear(20, 1) if scale_dir else None
        self.fc_scale_time = Linear(20, 1) if scale_time else None
        nn.init.xavier_uniform_(self.map_layer0.weight)
        for name, layer in self.named_children():
            nn.init.zeros_(layer.bias)
            if name != "map_layer0":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")

    def embed(self, t: Tensor) -> Tensor:
        """Sinusoidal embedding of times `[n]`, `[n, 8]`: 4 frequencies from 1 to 1/10000, sine half first."""
        angle = t.reshape(-1, 1) * self.freqs.to(t.dtype)
        return F.silu(self.map_layer0(torch.cat([angle.sin(), angle.cos()], dim=1)))

    def forward(
        self, t_cur: Tensor, t_next: Tensor, bottleneck: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        like = self.fc_r.weight
        features = like.new_zeros(1, 64) if bottleneck is None else pool(bottleneck).to(like)
        # a fill, not a copy: no device has to be waited for
        both = [
            like.new_full((1,), float(t)) if t.device.type == "cpu" else t.to(like).reshape(1)
            for t in map(torch.as_tensor, (t_cur, t_next))
        ]
        times = self.embed(torch.cat(both)).reshape(1, 16)
        features = self.enc_layer1(F.silu(self.enc_layer0(features)))
        out = torch.cat([features, times.expand(len(features), -1)], dim=1)
        r = torch.sigmoid(self.fc_r(out)).flatten()

        def around_one(layer: Linear | None, scale: float) -> Tensor:
            return (
                torch.ones_like(r)
                if layer is None
                else (1 + scale * (2 * torch.sigmoid(layer(out)) - 1)).flatten()
            )

        return (
            r,
            around_one(self.fc_scale_dir, self.scale_dir),
            around_one(self.fc_scale_time, self.scale_time),
        )
