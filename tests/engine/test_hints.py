"""What an error of a fit's settings advises is allowed: each hint is followed, and the error is gone."""

import re

import pytest

from amed.fit import Settings
from amed.fit.algorithm1 import plan
from amed.fit.settings import budget_of, numbers


def hint(error, pattern):
    return re.search(pattern, str(error.value)).groups()


@pytest.mark.parametrize("nfe", [2, 5, 30])
def test_the_advised_budget_is_allowed(nfe):
    with pytest.raises(ValueError, match="budget") as error:
        Settings(nfe, budget=900)
    (least,) = hint(error, r"set it to (\d+) or more")
    assert Settings(nfe, budget=int(least)).budget == int(least)
    with pytest.raises(ValueError):
        Settings(nfe, budget=int(least) - 1)


@pytest.mark.parametrize("passes", [5, 11])
def test_the_advised_passes_are_allowed(passes):
    with pytest.raises(ValueError, match="passes") as error:
        Settings(5, guidance=2.0, passes=passes)
    least, most = map(int, hint(error, r"set it to (\d+) to (\d+), the network passes"))
    assert [Settings(5, guidance=2.0, passes=n).spared for n in (least, most)] == [4, 0]


@pytest.mark.parametrize("wrong", [{"guidance": 1.0}, {"sampler": "amed"}], ids=str)
def test_passes_need_multistep_and_guidance(wrong):
    """As the message says: leave out passes, or change the sampler or the scale."""
    request = {"guidance": 2.0, "passes": 8} | wrong
    with pytest.raises(ValueError, match="leave passes at its default, or change the sampler or the scale"):
        Settings(5, **request)
    Settings(5, **request | {"passes": None})
    Settings(5, **request | {"sampler": "amed_multistep", "guidance": 2.0})


def test_an_advised_sampler_exists():
    with pytest.raises(ValueError, match="unknown sampler 'euler'") as error:
        Settings(5, "euler")
    for name in hint(error, r"choose one of (.*)$")[0].split(", "):
        assert Settings(5, name).sampler == name


def test_an_advised_budget_name_exists():
    with pytest.raises(ValueError, match="budget is 'fast'") as error:
        budget_of("fast", 5)
    (names,) = hint(error, r"give one of (.*), or a number of evaluations$")
    assert all(budget_of(name, 5) >= 2500 for name in names.split(", ")) and budget_of("3000", 5) == 3000


def test_the_example_of_several_evaluations_is_allowed():
    with pytest.raises(ValueError, match="nfe is 'five'") as error:
        numbers("five")
    least, most, example = hint(error, r"from (\d+) to (\d+), e\.g\. (.*)$")
    assert numbers(example) == (5, 7, 9) and numbers(f"{least} {most}") == (int(least), int(most))


@pytest.mark.parametrize(
    ("sampler", "nfe", "may_afs", "advised", "follows"),
    [("amed", 1, True, "at least 2", 2), ("amed", 5, False, "an even number", 6)],
)
def test_the_advised_evaluations_can_be_trained(sampler, nfe, may_afs, advised, follows):
    with pytest.raises(ValueError, match=f"set it to {advised} to train {sampler}"):
        plan(sampler, nfe, 2, may_afs=may_afs)
    assert plan(sampler, follows, 2, may_afs=may_afs).points >= 2
