"""Run many generations through one ComfyUI that is never restarted, and check that nothing is left behind.

`run(server, Graph, count)` queues them; `python -m trust.soak` runs 500 (with `--control` as many of the
host's own samplers alone, for comparison), and writes the part "soak" of docs/TRUST.md."""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trust import page

from demo import comfyui
from demo.comfyui import ROOT, RunError, Server

MAIN, WINDOW = 500, 50
ROUND = 200  # generations between two fits
LEAST = 1800  # budget of a fit in evaluations: what NFE 4 needs
SIZE = {"width": 16, "height": 16}  # image size for fits
SWAPPED = "swapped.safetensors"  # a name whose file is swapped every few generations
FIT, AROUND = "soak-nfe4-cfg1.safetensors", "soak-around-nfe4-cfg1.safetensors"
FILES = ("amed-nfe5-cfg1", "multistep-nfe5-cfg1", "ipndm-nfe5-cfg1", "dpmpp-nfe5-cfg1")
PLUGINS = ("amed_euler", "amed_dpm_2", "amed_ipndm", "amed_uni_pc", "amed_deis")
HOSTS = ("euler", "dpmpp_2m", "uni_pc", "ipndm", "heun")


# --- the generations ---------------------------------------------------------------------------------------


def loaded(g: Any, name: str) -> list:
    return [g.add("AMEDLoadPredictor", name=name), 0]


def table(g: Any, n: int) -> list:
    """A bundled table, of all NFE and guidance scales."""
    return g.amed(3 + n % 8, "auto", guidance=(1.0, 2.0, 4.0)[n % 3], seed=n)


def network(g: Any, n: int) -> list:
    """The paper's network, which reads the bottleneck."""
    return g.amed((5, 7)[n % 2], "amed", guidance=(1.0, 2.0)[n // 2 % 2], seed=n)


def plugin(g: Any, n: int) -> list:
    """A plugin sampler of the dropdown, with the user's own file."""
    return g.ksampler(PLUGINS[n % len(PLUGINS)], "amed", 4, seed=n)


def applied(g: Any, n: int) -> list:
    """Apply AMED Predictor with the ordinary KSampler, with the file that is swapped each time."""
    model = [g.add("AMEDApplyPredictor", model=g.model, predictor=loaded(g, SWAPPED)), 0]
    file = FILES[n // 10 % len(FILES)]
    sampler = f"amed_{file.split('-')[0]}".replace("amed_amed", "amed").replace("dpmpp", "dpmpp_2m")
    return g.ksampler(sampler, "amed", 5 if "multistep" in file else 3, seed=n, model=model)


def around(g: Any, n: int) -> list:
    """A sampler of the host with a predictor around it."""
    model = [g.add("AMEDApplyPredictor", model=g.model, predictor=loaded(g, AROUND)), 0]
    return g.ksampler("euler", "amed", 4, seed=n, model=model)


def modular(g: Any, n: int) -> list:
    """AMED Sampler and AMED Scheduler with SamplerCustom."""
    predictor = loaded(g, f"emoji32-{FILES[n // 10 % len(FILES)]}.safetensors")
    sampler = g.add("AMEDSampler", sampler="auto", if_missing="error", predictor=predictor)
    times = g.add("AMEDScheduler", model=g.model, sampler="auto", nfe=5, denoise=1.0, predictor=predictor)
    return g.custom(sampler, times, seed=n)


def refitted(g: Any, n: int) -> list:
    """The predictor fitted meanwhile, if it exists; auto chooses another one after it was deleted."""
    return g.amed(4, "auto", seed=n)


def missing(g: Any, n: int) -> list:
    """No predictor, so the best plain solver runs."""
    return g.amed(11 + n % 5, "amed_deis", seed=n, if_missing="plain")


def inpainted(g: Any, n: int) -> list:
    """Half of an earlier image, from the middle of the schedule."""
    start = g.right_half_masked(g.ksampler("euler", "karras", 3, seed=n))
    return g.amed(5, "auto", seed=n, denoise=0.7, latent_image=start)


def hosts_own(g: Any, n: int) -> list:
    return g.ksampler(HOSTS[n // 10 % len(HOSTS)], "karras", 5, cfg=(1.0, 2.0)[n % 2], seed=n)


def hosts_any(g: Any, n: int) -> list:
    """The control's generations, without anything of this pack."""
    return g.ksampler(HOSTS[n % len(HOSTS)], "karras", 3 + n % 8, cfg=(1.0, 2.0)[n % 2], seed=n)


KINDS = (table, network, plugin, applied, around, modular, refitted, missing, inpainted, hosts_own)
CONTROL = (hosts_any,)


# --- events between generations ----------------------------------------------------------------------------


def calibrate(g: Any, n: int, name: str, wrapped: bool = False) -> None:
    growth_between = {"wrapped": [g.add("KSamplerSelect", sampler_name="euler"), 0]} if wrapped else {}
    inputs = {"nfe": "4", "sampler": "amed_multistep", "guidance": 1.0, "budget": "custom",
              "evaluations": LEAST, "seed": n, "name": name}  # fmt: skip
    g.add("AMEDCalibrate", **g.around() | inputs | growth_between)


@dataclass
class Between:
    """Events between generations: predictors are swapped, refitted and deleted, and a run fails.

    Each has its place in a round."""

    server: Server
    graph: Callable[..., Any]
    counts: dict[str, int] = field(default_factory=dict)  # number of events of each kind so far

    def __call__(self, n: int, round_: int) -> None:
        folder = self.server.base / "models" / "amed_predictors"
        if n % 10 == 0:
            bundled = ROOT / "predictors" / f"emoji32-{FILES[n // 10 % len(FILES)]}.safetensors"
            shutil.copy(bundled, folder / SWAPPED)
            self.count("swapped")
        if n % round_ == 0:
            for name, wrapped in (("soak", False), ("soak-around", True)):
                if n and wrapped != n // round_ % 2:  # both at first, then by turns
                    continue
                g = self.graph(**SIZE)
                calibrate(g, n, name, wrapped)
                self.server.run(g.nodes)
                self.count("refitted")
        if n % round_ == 15:
            self.fail(n)
        if n % round_ == 25 and (folder / FIT).exists():
            (folder / FIT).unlink()
            self.count("deleted")

    def fail(self, n: int) -> None:
        """Run a MODEL that raises after some evaluations."""
        g = self.graph()
        g.model = [g.add("TestModel", model=g.model, which="tired"), 0]
        g.show(g.ksampler("amed_ipndm", "amed", 30, seed=n))
        try:
            self.server.run(g.nodes)
        except RunError:
            self.count("failed on purpose")

    def count(self, event: str) -> None:
        self.counts[event] = self.counts.get(event, 0) + 1


# --- inspecting the host -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """The state of the server after some generations."""

    count: int  # generations so far
    memory: dict[str, int]  # memory of the process in bytes: Rss, Pss, Uss
    inside: dict[str, Any]  # what the node TestLeft finds inside the server


def memory(pid: int) -> dict[str, int]:
    """Return Rss, Pss and Uss (pages of this process alone) in bytes, from /proc."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    uss = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {"Rss": sizes["Rss"], "Pss": sizes["Pss"], "Uss": uss}


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of all threads of the process.

    On a busy machine this shows what a run costs, while wall-clock time includes other work. It is the sum of
    the nanoseconds in /proc/PID/task/*/schedstat."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def look(server: Server, graph: Callable[..., Any], count: int) -> Look:
    """Unload models and forget finished runs through the host's API, then inspect the host and its memory.

    The inspected MODEL is the one that every generation used: the host caches it as node 1."""
    server.request("/history", {"clear": True})
    server.request("/free", {"unload_models": True})
    g = graph()
    g.add("PreviewAny", source=g.latent)
    server.run(g.nodes)  # the host unloads before the next run, or after this one
    g = graph()
    node = g.add("TestLeft", model=g.model)
    inside = read(server, g, node)
    return Look(count, memory(server.process.pid), inside)


def read(server: Server, g: Any, node: str) -> dict[str, Any]:
    """Return what a TestLeft in a graph finds."""
    return json.loads(server.run(g.nodes).text(node))


def growth_between(first: Look, last: Look) -> dict[str, tuple[int, int]]:
    """Return what the last look has more of: kinds of tensors, classes of objects, lengths of lists."""
    return {
        f"{kind}: {name}": (first.inside[kind].get(name, 0), count)
        for kind in ("tensors", "ours", "lengths")
        for name, count in last.inside[kind].items()
        if count > first.inside[kind].get(name, 0)
    }


@dataclass
class Soak:
    """The results of a soak run."""

    looks: list[Look] = field(default_factory=list)
    each: list[tuple[str, float, float]] = field(default_factory=list)  # kind, seconds, CPU seconds
    between: dict[str, int] = field(default_factory=dict)  # number of events between generations

    def ratio(self, which: int, warm: int, window: int) -> float:
        """Return the median of the last `window` generations over that of the first ones after the warm-up.

        which: 1 for wall-clock seconds, 2 for CPU seconds."""
        first, last = self.each[warm : warm + window], self.each[-window:]
        return statistics.median(e[which] for e in last) / statistics.median(e[which] for e in first)


def run(
    server: Server,
    graph: Callable[..., Any],
    count: int,
    at: tuple[int, ...],
    kinds: tuple = KINDS,
    round_: int = ROUND,
    tell: Callable[[str], None] = lambda text: None,
) -> Soak:
    """Run `count` generations, kind by kind, and look after each number of them in `at`."""
    soak, between, pid = Soak(), Between(server, graph), server.process.pid
    look(server, graph, 0)  # "replaced" is relative to this first look
    for n in range(count):
        if kinds is KINDS:
            between(n, round_)
        kind, g = kinds[n % len(kinds)], graph()
        shown, before = g.show(kind(g, n)), cpu_seconds(pid)
        result = server.run(g.nodes)
        soak.each.append((kind.__name__, result.seconds, cpu_seconds(pid) - before))
        if not result.files("images", shown):
            raise AssertionError(f"generation {n}, {kind.__name__}: no image")
        if n + 1 in at:
            soak.looks.append(look(server, graph, n + 1))
            tell(f"{n + 1}: {soak.looks[-1].memory['Uss'] / 2**20:.1f} MiB, {soak.looks[-1].inside}")
    soak.between = between.counts
    return soak


# --- the long run ------------------------------------------------------------------------------------------


def run_in_server(kinds: tuple, count: int, tell: Callable[[str], None]) -> Soak:
    """Run in a separate ComfyUI."""
    from comfyui.conftest import Graph, copy_test_nodes, write_user_predictors

    with tempfile.TemporaryDirectory(prefix="amed-soak-") as folder:
        base = Path(folder)
        write_user_predictors(base / "models" / "amed_predictors")
        copy_test_nodes(base)
        at, server = tuple(range(WINDOW, count + 1, WINDOW)), Server(base)
        server.start(timeout=1800)  # the machine may be busy
        try:
            return run(server, Graph, count, at, kinds, tell=tell)
        finally:
            server.stop()


def growth(soak: Soak, measure: str = "Uss") -> float:
    return soak.looks[-1].memory[measure] / soak.looks[0].memory[measure] - 1


def memory_text(soak: Soak, measure: str) -> str:
    first, last = (look.memory[measure] / 2**20 for look in (soak.looks[0], soak.looks[-1]))
    return f"{first:.1f} MiB after {soak.looks[0].count}, {last:.1f} after {soak.looks[-1].count}: "\
           f"{100 * (last / first - 1):+.2f} %"  # fmt: skip


def tensors_text(first: dict, last: dict) -> str:
    counts = [sum(look["tensors"].values()) for look in (first, last)]
    sizes = [look["bytes"] for look in (first, last)]
    return "{} and {}".format(*counts) + ", {:,} and {:,} bytes".format(*sizes)


def part(ours: Soak, control: Soak | None = None) -> page.Part:
    first, last = ours.looks[0].inside, ours.looks[-1].inside
    remaining = [*last["hooks"], *last["patches"], *last["replaced"]]
    events = ", ".join(f"{count} {event}" for event, count in ours.between.items())

    def times(soak: Soak) -> str:
        wall, cpu = (soak.ratio(which, WINDOW, WINDOW) for which in (1, 2))
        return f"{wall:.3f} wall-clock, {cpu:.3f} CPU time"

    rows = [
        ("ComfyUI", version(comfyui.find())),
        ("generations, of ten kinds", f"{len(ours.each)}"),
        ("predictors changed meanwhile", events),
        ("memory of the process alone (USS)", memory_text(ours, "Uss")),
        ("resident memory (RSS)", memory_text(ours, "Rss")),
        ("tensors alive", tensors_text(first, last)),
        ("this pack's objects alive", f"{sum(first['ours'].values())} and {sum(last['ours'].values())}"),
        ("hooks, patches, wrappers or replaced functions left", ", ".join(remaining) or "none"),
        (
            f"median time of the last {WINDOW} relative to that of the first {WINDOW} after {WINDOW}",
            times(ours),
        ),
    ]
    if control:
        rows += [
            ("the host's own samplers alone: memory (USS)", memory_text(control, "Uss")),
            ("the host's own samplers alone: time", times(control)),
        ]  # fmt: skip
    about = (
        f"{len(ours.each)} queued generations in one real ComfyUI: bundled tables, the paper's "
        "network, plugin samplers, Apply AMED Predictor with KSampler, a host's sampler with a "
        "predictor around it, SamplerCustom, inpainting, plain solvers, the host's own samplers; "
        "meanwhile predictors are swapped, refitted and deleted. Memory is read after the host "
        "has unloaded its models, a garbage collection and a trim, with the tables of the last 32 "
        "runs removed from the cache."
    )
    return page.Part("soak", "Hundreds of generations", "make soak", about, rows)


def version(host: Path) -> str:
    """Return the version in the host's comfyui_version.py."""
    names = {}
    exec((host / "comfyui_version.py").read_text(), names)
    return names["__version__"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=MAIN)
    parser.add_argument(
        "--control", action="store_true", help="then as many of the host's own samplers alone"
    )
    parser.add_argument("--log", type=Path, help="a JSON of every look and every time")
    options = parser.parse_args()
    say = lambda text: print(text, flush=True)  # noqa: E731
    ours = run_in_server(KINDS, options.count, say)
    control = run_in_server(CONTROL, options.count, say) if options.control else None
    if options.log:
        runs = {"ours": ours} | ({"control": control} if control else {})
        options.log.write_text(json.dumps({k: [v.each, [vars(s) for s in v.looks]] for k, v in runs.items()}))
    soak_part = part(ours, control)
    for row_name, figure in soak_part.rows:
        say(f"{row_name}: {figure}")
    if options.count == MAIN:
        page.put(soak_part)


if __name__ == "__main__":
    main()
