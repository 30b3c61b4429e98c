"""Fits of MODELs under features that keep a state while the host samples: caches, context windows, hooks."""

import json

import pytest

LEAST = 1780  # evaluations that a fit of 4 takes


class Small:
    """A graph on a small network of the host's own, as Graph is on the demo model."""

    def __init__(self, graph, which, size=(64, 48), length=17):
        self.g, self.which = graph(), which
        g = self.g
        g.nodes.clear()
        self.bare = self.model = [g.add("SmallModel", which=which, dtype="fp32"), 0]
        self.positive, self.other, self.negative = (
            [g.add("TestPrompt", seed=seed, repeats=1, width=64), 0] for seed in (1, 4, 2)
        )
        if which == "wan":
            latent = g.add(
                "EmptyHunyuanLatentVideo", width=size[0], height=size[1], length=length, batch_size=1
            )
        else:
            latent = g.add("EmptyLatentImage", width=96, height=64, batch_size=1)
        self.latent = [latent, 0]

    def patch(self, kind, **inputs):
        self.model = [self.g.add(kind, model=self.model, **inputs), 0]
        return self

    def hooked(self, keyframes):
        self.positive = [
            self.g.add("TestHooks", model=self.bare, conditioning=self.positive, keyframes=keyframes), 0
        ]  # fmt: skip
        return self

    def around(self):
        return {"model": self.model, "positive": self.positive, "negative": self.negative,
                "latent_image": self.latent}  # fmt: skip

    def asked(self, server, real=None, cfg=2.0, steps=6):
        node = self.g.add("TestAsked", **self.around(), cfg=cfg, real=real or self.model, steps=steps)
        return json.loads(server.run(self.g.nodes).text(node))

    def calibrate(self, name, nfe="4", **other):
        asked = {"sampler": "amed_multistep", "guidance": 2.0, "budget": "custom", "evaluations": LEAST,
                 "seed": 0}  # fmt: skip
        return self.g.add("AMEDCalibrate", **self.around() | asked | other, nfe=nfe, name=name)


def cache(kind, start):
    return kind, {"reuse_threshold": 0.2, "start_percent": start, "end_percent": 0.95, "verbose": False}


def windows(schedule, kind="WanContextWindowsManual", **more):
    own = {"context_length": 9, "context_overlap": 4, "context_schedule": schedule, "context_stride": 2,
           "closed_loop": schedule == "looped_uniform", "fuse_method": "pyramid"}  # fmt: skip
    return kind, own | more


CACHES = [cache(kind, start) for kind in ("EasyCache", "LazyCache") for start in (0.15, 0.0)]
STEP = ("TestStepCache", {"resets": "step"})
WINDOWS = [
    *(windows(name) for name in ("standard_static", "standard_uniform", "looped_uniform", "batched")),
    windows("standard_uniform", "ContextWindowsManual", context_length=3, context_overlap=1, dim=2),
]


@pytest.mark.parametrize("put", [
    *(("sd15", one) for one in CACHES), *(("wan", one) for one in CACHES), ("wan", STEP),
], ids=str)  # fmt: skip
def test_a_fit_is_not_answered_by_a_cache(server, graph, put):
    """At every noise level, in any order, the network's own answer."""
    which, (kind, inputs) = put
    small = Small(graph, which)
    away = small.patch(kind, **inputs).asked(server, real=small.bare)
    assert max(away.values()) < 1e-5, away


@pytest.mark.parametrize("put", WINDOWS, ids=str)
def test_a_fit_sees_the_windows_of_each_step(server, graph, put):
    kind, inputs = put
    small = Small(graph, "wan", length=33).patch(kind, **inputs)
    away = small.asked(server)
    assert max(away.values()) < 1e-5, away
    whole = Small(graph, "wan", length=33)
    other = whole.patch(kind, **inputs).asked(server, real=whole.bare)
    assert min(other.values()) > 1e-3, other


@pytest.mark.parametrize("which", ["sd15", "wan"])
@pytest.mark.parametrize(
    "keyframes", ["0 1", "0 0, 0.5 1", "0 0, 0.3 1, 0.6 -1", "0.2 1, 0.4 0.5, 0.6 0, 0.8 -1"]
)
def test_a_fit_sees_the_hooks_of_each_step(server, graph, which, keyframes):
    away = Small(graph, which).hooked(keyframes).asked(server)
    assert max(away.values()) < 1e-5, away
