import itertools

import pytest
import torch
from golden import Toy

from amed.bottleneck import ModuleCapture
from amed.plain import Setting, mid_times
from amed.predictor import BottleneckPredictor, TablePredictor
from amed.sampling import NotFiniteError, Solver, sample
from amed.training import Settings, Teacher, start_from, train


@pytest.fixture
def toy():
    """Broad enough that no trajectory sits between two modes, where an end state is a coin's toss."""
    return Toy(
        torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64), variance=1.0
    )


STUDENTS = [
    Solver("amed"),
    Solver("euler"),
    Solver("dpm_2"),
    Solver("ipndm", 3),
    Solver("dpmpp", 2, True),
    Solver("dpmpp", 3),
]
SETTINGS = Settings(batch=8, held_out=8, images=96, lr=2e-2, every=1)


def draw(generator, count):
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64) * 40, {}


def setup(toy, student, kind="table", afs=True):
    teacher = Teacher(student if student.name in ("ipndm", "dpmpp") else Solver("heun"), 2)
    times = teacher.times("time_uniform", 4, 0.01, 40, 1.0)
    base = times[::3]
    if kind == "table":
        predictor = TablePredictor(base, [0.5, 0.5, 0.5])
    else:
        torch.manual_seed(0)
        predictor = BottleneckPredictor(0.01, 0.1).double()
        start_from(predictor, base, torch.full((3,), 0.5))
    return predictor, (toy, student, predictor, times, draw, teacher)


@pytest.mark.parametrize("kind", ["table", "network"])
@pytest.mark.parametrize("student", STUDENTS, ids=str)
def test_every_student_learns(toy, student, kind):
    """On noises it never saw, the end comes nearer to the teacher's than at the start."""
    predictor, problem = setup(toy, student, kind)
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(77), dtype=torch.float64) * 40
    truth = problem[5].states(toy, x, problem[3], {})[-1]
    capture = ModuleCapture(toy.middle_block) if kind == "network" else None

    def error():
        out = sample(
            toy, x, problem[3][::3], student, disable=True, predictor=predictor, afs=True, capture=capture
        )
        return float((out - truth).norm())

    before, history = error(), []
    for progress in train(*problem, SETTINGS, afs=True, capture=capture):
        history.append(progress)
    assert error() < before
    assert history[-1].best <= history[0].held_out and history[-1].images == 96
    assert not any(p.requires_grad for p in predictor.parameters())


def test_same_seed_same_fit_and_resuming_changes_nothing(toy):
    def final(cut=None):
        predictor, problem = setup(toy, Solver("ipndm", 3))
        run = train(*problem, SETTINGS, afs=True)
        if cut is None:
            list(run)
            return predictor.r.tolist()
        state = list(itertools.islice(run, cut))[-1].state
        run.close()
        predictor, problem = setup(toy, Solver("ipndm", 3))
        list(train(*problem, SETTINGS, afs=True, resume=state))
        return predictor.r.tolist()

    assert final() == final() == final(cut=5)


def test_stopping_keeps_the_best_state(toy):
    predictor, problem = setup(toy, Solver("amed"))
    seen = []
    for progress in train(
        *problem,
        Settings(batch=8, held_out=8, images=800, lr=3.0, every=1),
        afs=True,
        stop=lambda: len(seen) >= 6,
    ):
        seen.append(progress)
    assert len(seen) == 6
    best = min(seen, key=lambda p: p.held_out)
    kept = predictor.state_dict()
    if best.held_out < seen[-1].state["best"] + 1e-12 and best.held_out == seen[-1].best:
        assert all(torch.equal(kept[k], best.state["predictor"][k]) for k in kept)
    else:  # nothing beat the start
        assert torch.allclose(predictor.r, torch.full((3,), 0.5, dtype=torch.float64))


def test_closing_the_generator_keeps_the_best_state_and_thaws_the_model(toy):
    net = torch.nn.Linear(1, 1)
    toy.extra = net
    predictor, problem = setup(toy, Solver("amed"))
    run = train(*problem, SETTINGS, afs=True)
    next(run)
    assert not any(p.requires_grad for p in net.parameters())
    run.close()
    assert all(p.requires_grad for p in net.parameters()) and all(p.grad is None for p in net.parameters())


def test_a_broken_gradient_spoils_nothing(toy):
    calls = itertools.count()

    class Poisoned(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("nan") if next(calls) % 2 else grad

    def model(x, sigma):
        out = toy(x, sigma)
        return Poisoned.apply(out) if out.requires_grad else out

    predictor, problem = setup(toy, Solver("amed"))
    list(train(model, *problem[1:], SETTINGS, afs=True))
    assert predictor.r.isfinite().all() and next(calls) > 2


def test_a_broken_model_is_named(toy):
    def model(x, sigma):
        return toy(x, sigma) * (float("nan") if sigma[0] < 0.5 else 1.0)

    _, problem = setup(toy, Solver("amed"))
    with pytest.raises(NotFiniteError, match="sigma=0"):
        list(train(model, *problem[1:], SETTINGS, afs=True))


def test_checkpointing_gives_the_same_fit(toy):
    def final(checkpointing):
        predictor, problem = setup(toy, Solver("amed"), "network")
        settings = Settings(batch=8, held_out=8, images=32, lr=2e-2, every=1, checkpointing=checkpointing)
        list(train(*problem, settings, afs=True, capture=ModuleCapture(toy.middle_block)))
        return predictor.fc_r.weight

    assert torch.allclose(final(True), final(False), atol=1e-12)


def test_a_plugin_starts_as_its_plain_solver(toy):
    setting = Setting(Solver("ipndm", 3), "time_uniform", 1.0, 7, True, 0.01, 40)
    base, r = mid_times(setting)
    predictor = BottleneckPredictor(0.01, 0.2).double()
    start_from(predictor, base, r)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64) * 40
    plain = sample(toy, x, setting.sigmas(), setting.solver, disable=True, afs=True)
    plugin = sample(
        toy,
        x,
        base,
        setting.solver,
        disable=True,
        afs=True,
        predictor=predictor,
        capture=ModuleCapture(toy.middle_block),
    )
    assert torch.allclose(plain, plugin, atol=1e-8)


def test_a_network_starts_as_any_constants():
    base = torch.tensor([40.0, 10.0, 2.0, 0.1])
    r, c, a = torch.tensor([0.2, 0.5, 0.8]), torch.tensor([1.03, 0.95, 1.0]), torch.tensor([0.99, 1.08, 1.02])
    predictor = BottleneckPredictor(0.1, 0.1)
    start_from(predictor, base, r, c, a)
    for i in range(3):
        for got, wanted in zip(
            predictor(base[i], base[i + 1], torch.randn(2, 4, 8, 8)), (r, c, a), strict=True
        ):
            assert got.tolist() == pytest.approx([float(wanted[i])] * 2, abs=1e-4)


def test_balancing_leaves_the_reported_losses_the_papers(toy):
    def first_losses(balanced):
        _, problem = setup(toy, Solver("amed"))
        settings = Settings(images=8, batch=8, held_out=8, lr=1e-9, balanced=balanced)
        return next(train(*problem, settings, afs=True)).losses

    assert first_losses(True) == pytest.approx(first_losses(False), rel=1e-6)
    assert max(first_losses(True)) > 20 * min(first_losses(True))  # why intervals are balanced
