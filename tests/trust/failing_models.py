"""Failing models, a small target to fit to, and small files to save."""

import gc
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from golden import Toy

from amed import BottleneckPredictor, Constants, Fitted, Spec, schedules
from amed.fit import HostSampler, Job, Outcome, Target, fit

GPU = "CUDA out of memory. Tried to allocate 2.00 GiB"
NAN, INF = "nan", "inf"


def out_of_memory(_denoised):
    raise torch.OutOfMemoryError(GPU)


def all_nan(denoised):
    return denoised * float("nan")


def one_inf(denoised):
    """Make a single value of the image infinite."""
    broken = denoised.clone()
    broken[0, -1, 3, -2] = float("inf")
    return broken


class Failing(torch.nn.Module):
    """A denoiser whose call `at` (from 1; 0: none) is replaced by `how`."""

    def __init__(self, model, at, how=out_of_memory):
        super().__init__()
        self.model, self.at, self.how, self.calls, self.sigma = model, at, how, 0, None

    def forward(self, x, sigma, **args):
        self.calls += 1
        denoised = self.model(x, sigma, **args)
        if self.calls != self.at:
            return denoised
        self.sigma = float(sigma.flatten()[0])
        return self.how(denoised)


def draw(generator, count):
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64), {}


def toy_target() -> Target:
    """The closed-form denoiser, with which a full fit takes a second."""
    drawn = torch.Generator().manual_seed(1)
    toy = Toy(torch.randn(4, 3, 8, 8, generator=drawn, dtype=torch.float64))
    return Target(toy, draw, 0.01, 40.0, family="toy", fingerprint="f" * 16, name="a toy")


def euler(model, x, sigmas, args):
    """A host's sampler that does not check its values."""
    for t, s in zip(sigmas.tolist(), sigmas.tolist()[1:]):
        denoised = model(x, x.new_full((len(x),), t), **args)
        x = denoised + (x - denoised) * s / t
    return x


JOBS = {
    "multistep": Job((4,), budget=1800),
    "amed": Job((4,), "amed", budget=1800),
    "outside": Job((4,), budget=1800, host=HostSampler("euler", euler)),
}


def fitted_with(target: Target, job: Job, folder: Path, at: int, how=out_of_memory):
    """Fit with a model that fails at one call; return the model, the raised error (or None), the outcome."""
    model, outcome, raised = Failing(target.model, at, how), Outcome(), None
    target = replace(target, model=model, evaluate=None)
    try:
        fit(target, job, lambda nfe: folder / f"a-nfe{nfe}.safetensors", lambda progress: None, outcome)
    except (Exception, KeyboardInterrupt) as error:
        raised = error.with_traceback(None)
    return model, raised, outcome


def table(error=0.1, fingerprint="f" * 16, **changes) -> Fitted:
    """A small file of a fit with this error."""
    base = schedules.make("time_uniform", 4, 0.002, 80)
    spec = Spec("amed", 4, "time_uniform", 0.002, 80.0, afs=True, model_fingerprint=fingerprint,
                metrics={"error": error}, **changes)  # fmt: skip
    return Fitted(spec, Constants(base, r=[0.3, 0.4, 0.5], c=[1.0, 0.99, 0.98], a=[1.0, 1.1, 0.9]), base)


def network(seed=0) -> Fitted:
    """A file with the paper's network, 38,000 bytes long."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        predictor = BottleneckPredictor(0.01, 0.2)
    base = schedules.make("polynomial", 3, 0.03, 14)
    spec = Spec("ipndm", 3, "polynomial", 0.03, 14.0, max_order=3, rho=7.0, features="bottleneck",
                scale_dir=0.01, scale_time=0.2, how=f"seed {seed}")  # fmt: skip
    return Fitted(spec, predictor, base)


def tensors_of_size(least=150):
    """Return the ids of all live tensors of this size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {id(o) for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.numel() >= least}


@contextmanager
def assert_tensors_freed():
    """Check that tensors made inside are freed afterwards, without a garbage collection."""
    gc.collect()
    gc.disable()
    before = tensors_of_size()
    try:
        yield
        remaining = tensors_of_size() - before
        assert not remaining, f"{len(remaining)} tensors are still held"
    finally:
        gc.enable()


def patches(model: torch.nn.Module):
    """Return what was left on a network: hooks, replaced functions, parameters that require a gradient."""
    return [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m), m.training)
        for name, m in model.named_modules()
    ] + [(name, p.requires_grad) for name, p in model.named_parameters()]
