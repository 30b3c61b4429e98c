import itertools

import pytest
import torch
from golden import Toy

from amed import BottleneckPredictor, Solver, sample
from amed.evaluate import FromModule
from amed.fit.algorithm1 import Settings, Teacher, losses, train
from amed.fit.plain_solvers import Setting
from amed.loop import NotFiniteError, Problem
from demo.starts import mid_times, start_from


class Trained(torch.nn.Module):
    """The smallest predictor there is to train: r, c, a of each interval, whatever the image."""

    wants_bottleneck = False

    def __init__(self, base):
        super().__init__()
        self.starts = base[:-1].tolist()
        self.logit_r = torch.nn.Parameter(torch.zeros(len(self.starts), dtype=torch.float64))
        self.c, self.a = (
            torch.nn.Parameter(torch.ones(len(self.starts), dtype=torch.float64)) for _ in range(2)
        )

    @property
    def r(self):
        return self.logit_r.sigmoid()

    def forward(self, t, t_next, bottleneck=None):
        i = self.starts.index(t)
        return self.r[i : i + 1], self.c[i : i + 1], self.a[i : i + 1]


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
    Solver("deis", 2),
    Solver("unipc", 2),
    Solver("unipc", 3, variant="bh2"),
]
SETTINGS = Settings(batch=8, held_out=8, images=96, lr=2e-2, every=1)


def draw(generator, count):
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64) * 40, {}


def setup(toy, student, kind="table", afs=True):
    teacher = Teacher(Solver("heun") if student.name in ("amed", "euler", "dpm_2") else student, 2)
    times = teacher.times("time_uniform", 4, 0.01, 40, 1.0)
    base = times[::3]
    if kind == "table":
        predictor = Trained(base)
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
    evaluate = FromModule(toy.middle_block) if kind == "network" else None

    def error():
        out = sample(
            toy, x, problem[3][::3], student, disable=True, predictor=predictor, afs=True, evaluate=evaluate
        )
        return float((out - truth).norm())

    before, history = error(), []
    for progress in train(*problem, SETTINGS, afs=True, evaluate=evaluate):
        history.append(progress)
    assert error() < before
    assert history[-1].best <= history[0].held_out and history[-1].images == 96
    assert not any(p.requires_grad for p in predictor.parameters())


EVERY = [
    *STUDENTS,
    *(Solver("ipndm", k) for k in (2, 4)),
    Solver("dpmpp", 3, True),
    *(Solver("deis", k) for k in (3, 4)),
    *(Solver("unipc", k, variant=v) for k in (1, 3) for v in ("bh1", "bh2")),
]


@pytest.mark.parametrize("student", EVERY, ids=str)
def test_gradients_are_those_of_differences(toy, student):
    """Of each interval's loss to its own r, c, a, through every recipe's weights."""
    predictor, (_, _, _, times, _, teacher) = setup(toy, student)
    for p, values in zip(
        predictor.parameters(), ((0.3, -0.4, 0.2), (0.97, 1.02, 1.01), (1.02, 0.99, 1.01)), strict=True
    ):
        p.data.copy_(torch.tensor(values))
    x, _ = draw(torch.Generator().manual_seed(3), 4)
    targets = teacher.states(toy, x, times, {})

    def found():
        return list(losses(Problem(toy), student, predictor, x, times[::3], targets, True))

    for i in range(3):
        predictor.zero_grad()
        found()[i].backward()
        for name, p in predictor.named_parameters():
            assert not p.grad[:i].any() and not p.grad[i + 1 :].any(), name  # no other interval's
            mine, ends, values = float(p.grad[i]), [], p.data.clone()
            for shift in (1e-5, -1e-5):
                p.data[i] = values[i] + shift
                with torch.no_grad():
                    ends.append(float(found()[i]))
            p.data.copy_(values)
            assert mine == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-6), (i, name)


def test_same_seed_same_fit_and_resuming_changes_nothing(toy):
    def final(cut=None):
        predictor, problem = setup(toy, Solver("ipndm", 3))
        run = train(*problem, SETTINGS, afs=True)
        if cut is None:
            list(run)
            return predictor.r.tolist()
        state = list(itertools.islice(run, cut))[-1].state()
        run.close()
        predictor, problem = setup(toy, Solver("ipndm", 3))
        list(train(*problem, SETTINGS, afs=True, resume=state))
        return predictor.r.tolist()

    assert final() == final() == final(cut=5)


@pytest.mark.parametrize("lr, beats", [(3.0, False), (0.2, True)])
def test_stopping_keeps_the_best_state(toy, lr, beats):
    predictor, problem = setup(toy, Solver("amed"))
    seen = []
    run = train(*problem, Settings(batch=8, held_out=8, images=800, lr=lr, every=1), afs=True)
    for progress in itertools.islice(run, 6):
        seen.append((progress.held_out, progress.state()))
    run.close()
    assert len(seen) == 6
    held_out, best = min(seen, key=lambda p: p[0])
    kept = predictor.state_dict()
    assert (held_out == seen[-1][1]["best"] == progress.best) is beats
    if beats:
        assert held_out < seen[-1][0]  # the last is not the best
        assert all(torch.equal(kept[k], best["predictor"][k]) for k in kept)
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
        list(train(*problem, settings, afs=True, evaluate=FromModule(toy.middle_block)))
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
        evaluate=FromModule(toy.middle_block),
    )
    assert torch.allclose(plain, plugin, atol=1e-8)


def test_a_network_starts_as_any_constants():
    base = torch.tensor([40.0, 10.0, 2.0, 0.1])
    r, c, a = torch.tensor([0.2, 0.5, 0.8]), torch.tensor([1.03, 0.95, 1.0]), torch.tensor([0.99, 1.08, 1.02])
    predictor = BottleneckPredictor(0.1, 0.1)
    start_from(predictor, base, r, c, a)
    for i in range(3):
        for got, wanted in zip(
            predictor(*base[i : i + 2].tolist(), torch.randn(2, 4, 8, 8)), (r, c, a), strict=True
        ):
            assert got.tolist() == pytest.approx([float(wanted[i])] * 2, abs=1e-4)


def test_balancing_leaves_the_reported_losses_the_papers(toy):
    def first_losses(balanced):
        _, problem = setup(toy, Solver("amed"))
        settings = Settings(images=8, batch=8, held_out=8, lr=1e-9, balanced=balanced)
        return next(train(*problem, settings, afs=True)).losses

    assert first_losses(True) == pytest.approx(first_losses(False), rel=1e-6)
    assert max(first_losses(True)) > 20 * min(first_losses(True))  # why intervals are balanced
