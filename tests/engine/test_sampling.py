"""The loop and its k-diffusion interface."""

import types
import warnings

import kdiffusion
import pytest
import torch
from golden import Toy

import amed
from amed import SAMPLERS, BottleneckPredictor, Constants, Evaluation, Solver, sample, schedules
from amed.constants import as_multistep
from amed.evaluate import FromModule, Guided
from amed.fit.measures import Counter
from amed.loop import NotFiniteError

SIGMAS = schedules.make("polynomial", 5, 0.01, 40)
PLAIN = [
    Solver("euler"),
    Solver("ipndm", 2),
    Solver("ipndm", 4),
    *(Solver("deis", k) for k in (1, 2, 3, 4)),
    *(Solver("unipc", k, variant=v) for k in (1, 2, 3) for v in ("bh1", "bh2")),
    Solver("dpmpp", 2, True),
    Solver("dpmpp", 3, True),
    Solver("dpmpp", 2),
    Solver("dpmpp", 3),
    Solver("dpm_2"),
    Solver("heun"),
]


def table(sigmas=SIGMAS, r=0.4, c=0.98, a=1.01) -> Constants:
    n = len(sigmas) - 1
    return Constants(sigmas, r=torch.full((n,), r), c=torch.full((n,), c), a=torch.full((n,), a))


def constants(sampler: str):
    """Return a predictor for a sampler: r, c, a, or for multistep a table of weights."""
    return as_multistep(Solver("amed"), SIGMAS, False, table()) if sampler == "amed_multistep" else table()


def end(model, x, solver, n, **options):
    return sample(model, x * 40, schedules.make("logsnr", n, 0.01, 40), solver, disable=True, **options)


@pytest.fixture(scope="module")
def case():
    """A model, noises, and the end of a fine Heun run, extrapolated to an accuracy of about 1e-7."""
    toy = Toy(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    noise = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    coarse, fine = (end(toy, noise, Solver("heun"), n) for n in (501, 1001))
    return toy, noise, (4 * fine - coarse) / 3


ORDERS = {  # UniPC's corrector has one order more; the first steps limit the highest orders
    "dpm_2": {1: 2},
    "heun": {1: 2},
    "unipc": {1: 2, 2: 3, 3: 2},
    "deis": {1: 1, 2: 2, 3: 3, 4: 2},
}


@pytest.mark.parametrize("solver", PLAIN, ids=str)
def test_plain_solvers_converge_at_their_order(case, solver):
    """Errors against a fine Heun run fall at least at the solver's order (multistep solvers start lower)."""
    toy, noise, truth = case
    coarse, fine = ((end(toy, noise, solver, n) - truth).norm() for n in (151, 301))
    order = ORDERS.get(solver.name, {}).get(solver.max_order, min(solver.max_order, 2))
    assert coarse / fine > 2 ** (order - 0.35)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (Solver("euler"), "sample_euler"),
        (Solver("heun"), "sample_heun"),
        (Solver("dpmpp", 2, True), "sample_dpmpp_2m"),
    ],
    ids=["euler", "heun", "dpmpp_2m"],
)
def test_plain_solvers_equal_k_diffusions(toy, noise, ours, theirs):
    sigmas = torch.cat([SIGMAS, torch.zeros(1, dtype=torch.float64)])
    mine = sample(
        toy, noise * 40, sigmas, Solver(ours.name, ours.max_order, ours.predict_x0, False), disable=True
    )
    reference = getattr(kdiffusion.sampling(), theirs)(toy, noise * 40, sigmas, disable=True)
    assert torch.allclose(mine, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("ends_in_zero", [True, False])
@pytest.mark.parametrize("length", [2, 3, 4, 7])
def test_noise_levels_of_every_length(toy, noise, name, length, ends_in_zero):
    sigmas = schedules.make("polynomial", length, 0.01, 40)
    if ends_in_zero:
        sigmas[-1] = 0
    counter, calls = Counter(toy), []
    out = SAMPLERS[name](
        counter, noise * 40, sigmas, callback=calls.append, disable=True, predictor=constants(name)
    )
    assert out.shape == noise.shape and out.isfinite().all()
    each = 1 if name == "amed_multistep" else 2
    assert counter.evaluations == each * (length - 1 - ends_in_zero) + ends_in_zero
    assert [c["i"] for c in calls] == list(range(length - 1))
    assert torch.equal(calls[0]["x"], noise * 40) and calls[-1]["denoised"].shape == noise.shape
    if ends_in_zero:
        assert torch.equal(out, calls[-1]["denoised"])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 0.1)]
)
def test_every_dtype_is_kept(toy, noise, name, dtype, tolerance):
    truth = SAMPLERS[name](toy, noise * 40, SIGMAS, disable=True, predictor=constants(name))
    dtypes = set()

    def model(x, sigma):
        dtypes.update((x.dtype, sigma.dtype))
        return toy(x.double(), sigma.double()).to(x.dtype)

    out = SAMPLERS[name](
        model, (noise * 40).to(dtype), SIGMAS.float(), disable=True, predictor=constants(name)
    )
    assert out.dtype == dtype and dtypes == {dtype}
    assert (out.double() - truth).abs().mean() < tolerance * truth.abs().mean().clamp(min=1)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 4, 7, 13), (2, 16, 3, 5, 9)])
def test_any_shape_works_and_samples_do_not_mix(shape):
    def model(x, sigma):
        return x / (1 + sigma.view(-1, *[1] * (x.ndim - 1)) ** 2)

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 40
    for name, sampler in SAMPLERS.items():
        batch_end = sampler(model, x, SIGMAS, disable=True, predictor=constants(name))
        alone = torch.cat(
            [sampler(model, part, SIGMAS, disable=True, predictor=constants(name)) for part in x.split(1)]
        )
        assert torch.allclose(batch_end, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size, batch", [((8, 8), 1), ((64, 64), 2), ((9, 13), 3), ((4, 4), 5)])
@pytest.mark.parametrize("scales", [(0.0, 0.0), (0.01, 0.0), (0.01, 0.2)])
def test_the_network_works_for_every_size_and_batch(size, batch, scales):
    torch.manual_seed(0)
    toy = Toy(torch.randn(4, 3, *size, dtype=torch.float64))
    predictor = BottleneckPredictor(*scales)
    x = torch.randn(batch, 3, *size, dtype=torch.float64) * 40
    evaluate = FromModule(toy.middle_block)
    both = amed.sample_amed(toy, x, SIGMAS, disable=True, predictor=predictor, evaluate=evaluate)
    alone = torch.cat(
        [
            amed.sample_amed(toy, part, SIGMAS, disable=True, predictor=predictor, evaluate=evaluate)
            for part in x.split(1)
        ]
    )
    assert torch.allclose(both, alone, atol=1e-4)
    assert not both.requires_grad


def test_per_sample_constants_reach_each_sample(toy, noise):
    class PerSample:
        wants_bottleneck = False

        def __call__(self, t_cur, t_next, bottleneck=None):
            return torch.linspace(0.2, 0.8, 5), torch.linspace(0.9, 1.1, 5), torch.linspace(0.95, 1.05, 5)

    for sampler in (SAMPLERS[name] for name in SAMPLERS if name != "amed_multistep"):
        out = sampler(toy, noise * 40, SIGMAS, disable=True, predictor=PerSample())
        for i in (0, 4):
            r, c, a = (v[i] for v in PerSample()(None, None))
            single_end = sampler(
                toy, noise[i : i + 1] * 40, SIGMAS, disable=True, predictor=table(r=r, c=c, a=a)
            )
            assert torch.allclose(out[i : i + 1], single_end, atol=1e-6)


def test_analytic_first_step_saves_one_evaluation_and_feeds_zeros(toy, noise):
    evaluated_sigmas = []

    def evaluate(model, x, sigma, extra_args, wants):
        if "bottleneck" in wants:
            evaluated_sigmas.append(float(sigma[0]))
        return FromModule(toy.middle_block)(model, x, sigma, extra_args, wants)

    counter = Counter(toy)
    amed.sample_amed(
        counter,
        noise * 40,
        SIGMAS,
        disable=True,
        predictor=BottleneckPredictor(),
        afs=True,
        evaluate=evaluate,
    )
    assert counter.evaluations == 7
    assert evaluated_sigmas == pytest.approx(SIGMAS[1:-1].tolist())  # the first interval evaluated nothing


def test_no_analytic_step_where_the_only_step_goes_to_zero(toy, noise):
    counter = Counter(toy)
    out = amed.sample_amed(
        counter, noise * 40, torch.tensor([40.0, 0.0]), disable=True, predictor=table(), afs=True
    )
    assert counter.evaluations == 1 and torch.equal(
        out, toy(noise * 40, torch.full((5,), 40.0, dtype=noise.dtype))
    )


def test_the_network_gets_the_conditional_half_under_guidance(noise):
    bottlenecks = []

    class Conditional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.middle_block = torch.nn.Identity()

        def forward(self, x, sigma, label):
            self.middle_block(torch.full_like(x, 1.0) * label.view(-1, 1, 1, 1))
            bottlenecks.append(len(x))
            return x / (1 + sigma.view(-1, 1, 1, 1) ** 2) + label.view(-1, 1, 1, 1) * 0.1

    net, got = Conditional(), []

    class Spy(BottleneckPredictor):
        def forward(self, t_cur, t_next, bottleneck=None):
            got.append(bottleneck)
            return super().forward(t_cur, t_next, bottleneck)

    args = {"cond": {"label": torch.full((5,), 3.0)}, "uncond": {"label": torch.zeros(5)}}
    counter = Counter(Guided(net, 2.0))
    amed.sample_amed(
        counter,
        noise.float() * 40,
        SIGMAS,
        args,
        disable=True,
        predictor=Spy(),
        evaluate=FromModule(net.middle_block),
    )
    assert all((h == 3).all() and len(h) == 5 for h in got)
    assert (
        counter.evaluations == 8 and counter.rows == 40 and sum(bottlenecks) == 80
    )  # passes are twice the number of evaluations


def test_a_missing_bottleneck_becomes_zeros_with_a_warning(toy, noise):
    predictor = BottleneckPredictor()
    with pytest.warns(UserWarning, match="zeros"):
        out = amed.sample_amed(toy, noise * 40, SIGMAS, disable=True, predictor=predictor)

    def zeros(model, x, sigma, extra_args, wants):
        return Evaluation(model(x, sigma), torch.zeros(len(x), 1, 8, 8))

    fed = amed.sample_amed(toy, noise * 40, SIGMAS, disable=True, predictor=predictor, evaluate=zeros)
    assert torch.allclose(out, fed, rtol=1e-12, atol=1e-12)  # equal up to rounding


def test_the_error_for_nan_names_the_sigma(toy, noise):
    def broken(x, sigma):
        return toy(x, sigma) * (float("nan") if sigma[0] < 1 else 1)

    with pytest.raises(NotFiniteError, match="sigma=0"):
        amed.sample_amed_ipndm(broken, noise * 40, SIGMAS, disable=True, predictor=table())


def test_register_is_idempotent_and_overwrites_no_name(toy, noise):
    before = set(vars(kdiffusion.sampling()))
    names = amed.register(kdiffusion.sampling())
    assert names == list(SAMPLERS) == amed.register(kdiffusion.sampling())
    assert set(vars(kdiffusion.sampling())) - before == {f"sample_{n}" for n in names}
    out = kdiffusion.sampling().sample_amed(toy, noise * 40, SIGMAS, disable=True, predictor=table())
    assert torch.equal(out, amed.sample_amed(toy, noise * 40, SIGMAS, disable=True, predictor=table()))
    theirs = types.SimpleNamespace(sample_amed="someone else's")
    assert "amed" not in amed.register(theirs) and theirs.sample_amed == "someone else's"


def test_with_k_diffusions_own_wrapper(noise):
    """PyPI's k-diffusion around an eps network: CompVisDenoiser and its sigma_to_t."""

    class Net:
        def apply_model(self, x, t):
            return x * 0.9

    alphas_cumprod = 1 / (1 + schedules.sd_sigmas().float() ** 2)
    net = Net()
    net.alphas_cumprod = alphas_cumprod
    wrapped = kdiffusion.external().CompVisDenoiser(net)
    sigmas = wrapped.get_sigmas(4)
    out = amed.sample_amed_dpmpp_2m(
        wrapped, noise.float() * sigmas[0], sigmas, disable=True, predictor=table()
    )
    assert out.isfinite().all()


def test_a_callback_can_stop_a_run(toy, noise):
    class Interrupted(BaseException):
        pass

    def stop(step):
        raise Interrupted

    with pytest.raises(Interrupted):
        amed.sample_amed(toy, noise * 40, SIGMAS, callback=stop, disable=True, predictor=table())


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: Solver("amde"), "amde"),
        (lambda: Solver("ipndm", 5), "1 to 4"),
        (lambda: Solver("dpmpp", 4), "1 to 3"),
        (lambda: Solver("euler", 2), "1 to 1"),
        (lambda: Solver("ipndm", 0), "1 to 4"),
        (lambda: Solver("unipc", 4), "1 to 3"),
        (lambda: Solver("deis", 5), "1 to 4"),
        (lambda: Solver("unipc", variant="bh3"), "bh3"),
    ],
)
def test_invalid_solvers_are_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_an_untrained_run_prints_nothing(toy, noise):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        amed.sample_amed(toy, noise * 40, SIGMAS, disable=True)
