"""ComfyUI's own page in a real Chromium: what an artist sees, for the tests and the screenshots.

    with Server() as server, Page(server) as page:
        page.open(WORKFLOWS / "01 Start here.json")
        page.run()

Any Chromium that is installed does (CHROMIUM_PATH, else one on PATH); none is ever downloaded. The page talks
to the server alone: whatever it asks of another host is refused."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from .comfyui import PACK, Result, Server

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
# of a person who has been here before: no tutorial, no template browser in the way, nothing restored
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": True,
    "Comfy.EnableTooltips": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # all is drawn, however small
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
SEEN = {"vueNodesBannerDismissed": "true"}  # in the browser's own storage
PATIENCE = 180_000  # milliseconds for what a page does at once on a machine that is not busy
SIZE = {"width": 1600, "height": 1000}

ACTIVE = "app.extensionManager.workflow?.activeWorkflow"  # the tab in front
# what can be compared with a workflow's file; a widget that is not saved is told apart
READ = """() => app.graph.nodes.map(node => ({
    id: node.id, type: node.type, title: node.title, pos: [...node.pos], size: [...node.size],
    known: node.type in LiteGraph.registered_node_types, broken: !!node.has_errors,
    inputs: (node.inputs || []).map(i => ({name: i.name, linked: i.link != null})),
    widgets: (node.widgets || []).map(w => ({
        name: w.name, value: w.value, saved: w.serialize !== false, type: w.type, options: w.options?.values,
    })),
}))"""
# from a queued run to its end, by the server's own messages
HEAR = """() => {
    window.heard = {runs: {}, outputs: {}};
    const end = (name, state) => app.api.addEventListener(name, ({detail}) => {
        window.heard.runs[detail.prompt_id] = {state, ...detail};
    });
    end("execution_success", "done");
    end("execution_error", "failed");
    end("execution_interrupted", "stopped");
    app.api.addEventListener("executed", ({detail}) => {
        window.heard.outputs[detail.node] = detail.output;
    });
}"""
# moves the canvas so that a rectangle of the graph fills what the page's bars leave free; where it then lies
MOVE = """([x, y, width, height, most]) => {
    const view = app.canvas.canvas.getBoundingClientRect(), ds = app.canvas.ds;
    const left = 70, top = 130, low = 70;
    const fit = Math.min((view.width - left) / width, (view.height - top - low) / height, most);
    ds.scale = fit;
    ds.offset[0] = left / fit - x;
    ds.offset[1] = top / fit - y;
    app.canvas.deselectAll?.();
    app.canvas.draw(true, true);
    return {x: view.left + left, y: view.top + top, width: width * fit, height: height * fit};
}"""
# nodes that are seen have drawn the images they were given
LOADED = """() => app.graph.nodes.every(n =>
    !app.nodeOutputs[n.id]?.images?.length || n.imgs?.[0]?.naturalWidth
    || !app.canvas.visible_nodes.includes(n))"""


class PageError(RuntimeError):
    """The page did not do what was asked."""


def find() -> str | None:
    """The Chromium to use: CHROMIUM_PATH, else the first on PATH, else None."""
    told = os.environ.get("CHROMIUM_PATH")
    return told or next(filter(None, map(shutil.which, NAMES)), None)


def missing() -> str:
    """Why there can be no page here, or ""."""
    told = os.environ.get("CHROMIUM_PATH")
    if told and shutil.which(told) is None:
        return f"CHROMIUM_PATH is {told}, which is no program"
    if find() is None:
        return "no Chromium (Debian: apt install chromium; elsewhere CHROMIUM_PATH says where it is)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "no playwright (pip install -r requirements-dev.txt)"
    return ""


class Chromium:
    """A headless browser with one tab, `tab` (Playwright's Page), that reaches `url` and nothing else.
    `complaints`: the console's errors and uncaught exceptions so far, each with where it comes from."""

    def __init__(self, url: str, size: dict[str, int] = SIZE, scale: float = 1.0):
        self.url, self.size, self.scale = url, size, scale
        self.complaints: list[str] = []

    def __enter__(self) -> Any:
        from playwright.sync_api import sync_playwright

        self.stack = contextlib.ExitStack()
        try:
            driver = self.stack.enter_context(sync_playwright())
            browser = driver.chromium.launch(executable_path=find(), args=list(FLAGS))
            self.stack.callback(browser.close)
            self.tab = browser.new_page(viewport=self.size, device_scale_factor=self.scale)
            self.tab.set_default_timeout(PATIENCE)
            self.tab.route(lambda url: not url.startswith(self.url), lambda route: route.abort())
            self.tab.on("console", self.on_console)
            self.tab.on("pageerror", lambda error: self.complaints.append(f"{error}\n{error.stack}"))
            self.tab.add_init_script(
                f"for (const [k, v] of Object.entries({json.dumps(SEEN)})) localStorage.setItem(k, v)"
            )
            self.opened()
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def opened(self) -> None:
        """What follows on an open tab."""
        self.tab.goto(self.url)

    def of_ours(self) -> list[str]:
        """The complaints that come from this pack's files or name it."""
        return [text for text in self.complaints if f"/{PACK}/js" in text or "AMED: " in text]

    def on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")


class Page(Chromium):
    """ComfyUI's page on a running Server; a context manager."""

    def __init__(self, server: Server, **look: Any):
        super().__init__(server.url, **look)
        self.server = server

    def opened(self) -> None:
        self.server.post("/settings", SETTINGS)
        self.tab.goto(self.url)
        self.tab.wait_for_function(
            "window.app?.extensionManager && window.app.graph && window.app.canvas"
            " && 'AMEDKSampler' in (window.LiteGraph?.registered_node_types ?? {})"
            " && document.querySelector('#graph-canvas') && document.querySelector('#comfy-file-input')"
            f" && {ACTIVE}"
        )
        self.tab.evaluate(HEAR)

    # -- workflows

    def open(self, file: Path) -> None:
        """Load a workflow's file as Workflow > Open does. Raises PageError if its nodes do not appear."""
        wanted = sorted(str(node["id"]) for node in json.loads(file.read_text())["nodes"])
        self.close_dialogs()
        before = self.tab.evaluate(f"{ACTIVE}?.key")
        self.tab.set_input_files("#comfy-file-input", str(file))
        try:
            self.tab.wait_for_function(
                f"([before, wanted]) => {ACTIVE}?.key !== before &&"
                " JSON.stringify(app.graph.nodes.map(n => String(n.id)).sort()) === JSON.stringify(wanted)",
                arg=[before, wanted],
            )
        except Exception as error:
            there = sorted(str(node["id"]) for node in self.nodes())
            said = self.dialogs()
            raise PageError(f"{file.name}: nodes {wanted}, the page has {there}; it says: {said}") from error
        self.settle()

    def nodes(self) -> list[dict]:
        """The graph's nodes as the page has them, with their widgets."""
        return self.tab.evaluate(READ)

    def node(self, kind: str) -> dict:
        """The one node of a class."""
        (found,) = [node for node in self.nodes() if node["type"] == kind]
        return found

    def saved(self) -> dict:
        """The workflow that Save would write."""
        return self.tab.evaluate("JSON.parse(JSON.stringify(app.graph.serialize()))")

    def change(self, kind: str, **values: object) -> None:
        """Change widgets of the one node of a class, as typing into them does."""
        self.tab.evaluate(
            """([id, values]) => {
                const node = app.graph.getNodeById(id);
                for (const [name, value] of Object.entries(values)) {
                    const widget = node.widgets.find(w => w.name === name);
                    if (!widget) throw new Error(`${node.type} has no widget ${name}`);
                    const old = widget.value;
                    widget.value = value;
                    widget.callback?.(value, app.canvas, node);
                    node.onWidgetChanged?.(name, value, old, widget);
                }
                app.canvas.setDirty(true, true);
            }""",
            [self.node(kind)["id"], values],
        )

    def press(self, kind: str, name: str) -> None:
        """Press a button on the one node of a class."""
        self.tab.evaluate(
            """([id, name]) => {
                const node = app.graph.getNodeById(id), button = node.widgets.find(w => w.name === name);
                button.callback(button.value, app.canvas, node);
            }""",
            [self.node(kind)["id"], name],
        )
        self.settle()

    def setting(self, name: str, value: object) -> None:
        """Change one of the page's settings."""
        self.tab.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])
        self.settle(500)

    # -- runs

    def queue(self) -> str:
        """Press Run; the run's id. Raises PageError with the server's and the page's reasons."""
        self.tab.evaluate("window.heard.outputs = {}")
        button = self.tab.locator("[data-testid=queue-button] button").first
        with self.tab.expect_response(
            lambda answer: answer.url.endswith("/prompt") and answer.request.method == "POST"
        ) as answer:
            # not by the mouse: a tab's preview may lie over the button
            if button.is_visible():
                button.dispatch_event("click")
            else:
                self.tab.evaluate("void app.queuePrompt(0)")
        told = answer.value.json()
        if "prompt_id" not in told:
            raise PageError(f"it could not be queued: {told} {self.dialogs()}")
        return told["prompt_id"]

    def wait(self, run: str, seconds: float = 600.0) -> dict:
        """The end of a run: `state` "done", "failed" or "stopped", and what the server says of it."""
        self.tab.wait_for_function("run => window.heard.runs[run]", arg=run, timeout=seconds * 1000)
        self.settle()
        return self.tab.evaluate("run => window.heard.runs[run]", run)

    def run(self, seconds: float = 600.0) -> dict:
        """Queue the graph and wait for its end; every output node's `ui`, by node id. Raises PageError if the
        run failed."""
        end = self.wait(self.queue(), seconds)
        if end["state"] != "done":
            raise PageError(f"{end.get('node_type')}: {end.get('exception_message', end['state'])}")
        return self.tab.evaluate("window.heard.outputs")

    def server_images(self, output: dict) -> list:
        """The images of an output node's `ui`, as uint8 arrays `[H, W, 3]`."""
        return Result({"": output}, 0.0, self.server).images()

    def stop(self) -> None:
        """Press the cross beside Run."""
        self.tab.locator(".execution-actions button:not([disabled])").first.dispatch_event("click")

    # -- what is seen

    def settle(self, milliseconds: int = 150) -> None:
        """Let the page draw what it was told."""
        self.tab.evaluate("app.canvas.draw(true, true)")
        self.tab.wait_for_timeout(milliseconds)

    def dialogs(self) -> list[str]:
        """What stands in dialogs and in messages at the edge."""
        return self.tab.locator(".p-dialog:visible, .p-toast-message:visible").all_inner_texts()

    def close_dialogs(self) -> None:
        for _ in range(3):
            if not self.tab.locator(".p-dialog:visible").count():
                return
            self.tab.keyboard.press("Escape")
            self.tab.wait_for_timeout(200)

    def text_on(self, node: str | int) -> str:
        """What can be read on a node: the texts of the widgets that lie over it (not those it draws)."""
        return self.tab.evaluate(
            """id => app.graph.getNodeById(id).widgets.map(w => {
                const seen = w.element ?? null;
                if (!seen) return w.name.startsWith("$$") ? String(w.value) : "";
                const box = seen.getBoundingClientRect();
                return box.height > 0 ? (seen.value ?? seen.innerText) : "";
            }).filter(Boolean).join("\\n")""",
            node,
        )

    def help(self, kind: str) -> str:
        """The text of a node's help page, opened with the (i) above the selected node."""
        self.box([self.node(kind)["id"]])
        self.tab.evaluate("id => app.canvas.selectNodes([app.graph.getNodeById(id)])", self.node(kind)["id"])
        self.settle()
        self.tab.locator("[data-testid=info-button]").dispatch_event("click")
        shown = self.tab.locator(".node-help-content")
        self.tab.wait_for_function(
            "document.querySelector('.node-help-content .markdown-content')?.innerText"
        )
        return shown.inner_text()

    def tab_of(self, name: str) -> None:
        """Go back to a workflow that is open."""
        self.tab.locator(".workflow-tabs .p-togglebutton", has_text=name).last.click()
        self.tab.wait_for_function(
            f"name => {ACTIVE}?.filename.startsWith(name) && app.graph.nodes.length", arg=name
        )
        width, height = self.size.values()
        self.tab.mouse.move(width - 1, height - 1)  # the tab's preview would lie over the page
        self.settle(500)

    def bounds(self, ids: list | None = None) -> tuple[float, float, float, float]:
        """The rectangle x, y, width, height in the graph of some nodes (default: all, and groups), titles and
        badges included."""
        self.settle()  # a node's size is worked out when it is drawn
        boxes = [(*n["pos"], *n["size"]) for n in self.nodes() if ids is None or n["id"] in ids]
        if ids is None:
            boxes += self.tab.evaluate("app.graph.groups.map(g => [...g.pos, ...g.size])")
        x, y = min(b[0] for b in boxes), min(b[1] for b in boxes) - 54
        return x, y, max(b[0] + b[2] for b in boxes) - x, max(b[1] + b[3] for b in boxes) - y

    def view(self, rectangle: tuple[float, float, float, float], most: float = 1.5) -> dict[str, float]:
        """Show a rectangle of the graph, enlarged `most` so much; where it lies on the screen then."""
        place = self.tab.evaluate(MOVE, [*rectangle, most])
        self.settle()
        with contextlib.suppress(Exception):  # an image that never comes is no reason not to look
            self.tab.wait_for_function(LOADED, timeout=5_000)
        self.settle()
        return place

    def box(self, ids: list | None = None, margin: int = 16) -> dict[str, float]:
        """Show some nodes (default: all); where they lie on the screen then."""
        x, y, width, height = self.bounds(ids)
        return self.view((x - margin, y - margin, width + 2 * margin, height + 2 * margin))
