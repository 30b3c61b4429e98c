"""ComfyUI's page in a real Chromium, as an artist sees it, for the tests and the screenshots.

    with Server() as server, Page(server) as page:
        page.open(WORKFLOWS / "01 Start here.json")
        page.run()

Uses an installed Chromium (CHROMIUM_PATH, or one on PATH); none is downloaded. The page can reach the server
only: requests to any other host are refused."""

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
# settings of a returning user: no tutorial, no template browser, no notifications
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": True,
    "Comfy.EnableTooltips": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # draw everything, however small
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
SEEN = {"vueNodesBannerDismissed": "true"}  # put into the browser's localStorage
PATIENCE = 180_000  # milliseconds for what a page does at once on a machine that is not busy
SIZE = {"width": 1600, "height": 1000}

ACTIVE = "app.extensionManager.workflow?.activeWorkflow"  # the tab in front
# reads the graph's nodes in a form that can be compared with a workflow's file; `saved` marks saved widgets
READ = """() => app.graph.nodes.map(node => ({
    id: node.id, type: node.type, title: node.title, pos: [...node.pos], size: [...node.size],
    known: node.type in LiteGraph.registered_node_types, broken: !!node.has_errors,
    inputs: (node.inputs || []).map(i => ({name: i.name, linked: i.link != null})),
    widgets: (node.widgets || []).map(w => ({
        name: w.name, value: w.value, saved: w.serialize !== false, type: w.type, options: w.options?.values,
    })),
}))"""
# records the server's messages about runs, from queueing to the end
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
# moves the canvas so that a rectangle of the graph fills the area between the page's bars; returns its place
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
# true when all visible nodes have loaded the images they were given
LOADED = """() => app.graph.nodes.every(n =>
    !app.nodeOutputs[n.id]?.images?.length || n.imgs?.[0]?.naturalWidth
    || !app.canvas.visible_nodes.includes(n))"""


class PageError(RuntimeError):
    """ComfyUI's page did not do what was requested, e.g. did not load a workflow."""


def find() -> str | None:
    """Return the Chromium to use: CHROMIUM_PATH, the first one on PATH, or None."""
    path = os.environ.get("CHROMIUM_PATH")
    return path or next(filter(None, map(shutil.which, NAMES)), None)


def missing() -> str:
    """Return why ComfyUI's page cannot be opened in a browser on this machine, or "" if it can."""
    path = os.environ.get("CHROMIUM_PATH")
    if path and shutil.which(path) is None:
        return f"CHROMIUM_PATH is {path}, which is not an executable program"
    if find() is None:
        return "no Chromium found (Debian: apt install chromium; elsewhere set CHROMIUM_PATH to its program)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install -r requirements-dev.txt)"
    return ""


class Chromium:
    """A headless browser with one tab, which can reach `url` only; a context manager.

    `tab` is Playwright's Page. `complaints` are the console's errors and warnings and the uncaught exceptions
    so far, as texts, each with the file it comes from."""

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
        """Load the page in the new tab; a subclass may override this, e.g. to wait until it is ready."""
        self.tab.goto(self.url)

    def of_ours(self) -> list[str]:
        """Return the console messages that name a JavaScript file of this pack or contain "AMED: "."""
        return [text for text in self.complaints if f"/{PACK}/js" in text or "AMED: " in text]

    def on_console(self, message: Any) -> None:
        """Record an error or a warning of the page's console."""
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")


class Page(Chromium):
    """ComfyUI's page on a running Server, in a headless browser; a context manager."""

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
        """Load a workflow file as Workflow > Open does. Raises PageError if its nodes do not appear."""
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
            shown = sorted(str(node["id"]) for node in self.nodes())
            messages = self.dialogs()
            raise PageError(
                f"{file.name} was not loaded: it has the nodes {wanted}, the page shows {shown} and says "
                f"{messages}; check the file and the server's log"
            ) from error
        self.settle()

    def nodes(self) -> list[dict]:
        """Return the nodes of the open workflow as dicts of id, type, position, size, inputs and widgets."""
        return self.tab.evaluate(READ)

    def node(self, kind: str) -> dict:
        """Return the node of class `kind`; the open workflow must have exactly one."""
        (only,) = [node for node in self.nodes() if node["type"] == kind]
        return only

    def saved(self) -> dict:
        """Return the workflow that Save would write."""
        return self.tab.evaluate("JSON.parse(JSON.stringify(app.graph.serialize()))")

    def change(self, kind: str, **values: object) -> None:
        """Set widgets, given by name, of the only node of class `kind`, and run their callbacks."""
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
        """Press the button `name` on the only node of class `kind`."""
        self.tab.evaluate(
            """([id, name]) => {
                const node = app.graph.getNodeById(id), button = node.widgets.find(w => w.name === name);
                button.callback(button.value, app.canvas, node);
            }""",
            [self.node(kind)["id"], name],
        )
        self.settle()

    def setting(self, name: str, value: object) -> None:
        """Change a setting of ComfyUI's page, given by its id."""
        self.tab.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])
        self.settle(500)

    # -- runs

    def queue(self) -> str:
        """Press Run and return the run's id. Raises PageError if ComfyUI refuses the workflow."""
        self.tab.evaluate("window.heard.outputs = {}")
        button = self.tab.locator("[data-testid=queue-button] button").first
        with self.tab.expect_response(
            lambda answer: answer.url.endswith("/prompt") and answer.request.method == "POST"
        ) as answer:
            # not with the mouse: the preview of a tab may cover the button
            if button.is_visible():
                button.dispatch_event("click")
            else:
                self.tab.evaluate("void app.queuePrompt(0)")
        reply = answer.value.json()
        if "prompt_id" not in reply:
            raise PageError(
                f"ComfyUI refused the workflow ({reply} {self.dialogs()}): correct the nodes that it names"
            )
        return reply["prompt_id"]

    def wait(self, run: str, seconds: float = 600.0) -> dict:
        """Wait for the end of a run.

        Returns its `state`, "done", "failed" or "stopped", with the server's message."""
        self.tab.wait_for_function("run => window.heard.runs[run]", arg=run, timeout=seconds * 1000)
        self.settle()
        return self.tab.evaluate("run => window.heard.runs[run]", run)

    def run(self, seconds: float = 600.0) -> dict:
        """Run the graph and wait for its end. Raises PageError if the run failed.

        Returns what each output node shows (its `ui` dict: images, text), by node id."""
        end = self.wait(self.queue(), seconds)
        if end["state"] != "done":
            error = end.get("exception_message", end["state"])
            raise PageError(f"node {end.get('node_type')} failed ({error}): see the server's log")
        return self.tab.evaluate("window.heard.outputs")

    def server_images(self, output: dict) -> list:
        """Fetch from the server the images that a node's `ui` output names, as uint8 arrays `[H, W, 3]`."""
        return Result({"": output}, 0.0, self.server).images()

    def stop(self) -> None:
        """Press the cross beside Run, which interrupts the run."""
        self.tab.locator(".execution-actions button:not([disabled])").first.dispatch_event("click")

    # -- what the page shows

    def settle(self, milliseconds: int = 150) -> None:
        """Redraw the canvas and wait, so that the page shows its current state."""
        self.tab.evaluate("app.canvas.draw(true, true)")
        self.tab.wait_for_timeout(milliseconds)

    def dialogs(self) -> list[str]:
        """Return the texts of the open dialogs and notifications."""
        return self.tab.locator(".p-dialog:visible, .p-toast-message:visible").all_inner_texts()

    def close_dialogs(self) -> None:
        """Close all dialogs."""
        for _ in range(3):
            if not self.tab.locator(".p-dialog:visible").count():
                return
            self.tab.keyboard.press("Escape")
            self.tab.wait_for_timeout(200)

    def text_on(self, node: str | int) -> str:
        """Return the visible text of a node's HTML widgets and text previews, not what the canvas draws."""
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
        """Open a node's help page with the (i) above the selected node, and return its text."""
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
        """Switch to the tab of the open workflow whose file name starts with `name`."""
        self.tab.locator(".workflow-tabs .p-togglebutton", has_text=name).last.click()
        self.tab.wait_for_function(
            f"name => {ACTIVE}?.filename.startsWith(name) && app.graph.nodes.length", arg=name
        )
        width, height = self.size.values()
        self.tab.mouse.move(width - 1, height - 1)  # else the tab's preview covers the page
        self.settle(500)

    def bounds(self, ids: list | None = None) -> tuple[float, float, float, float]:
        """Return the rectangle (x, y, width, height) around nodes and their titles, in graph coordinates.

        `ids` are the nodes' ids; by default the rectangle is around all nodes and groups."""
        self.settle()  # a node gets its size when it is drawn
        boxes = [(*n["pos"], *n["size"]) for n in self.nodes() if ids is None or n["id"] in ids]
        if ids is None:
            boxes += self.tab.evaluate("app.graph.groups.map(g => [...g.pos, ...g.size])")
        x, y = min(b[0] for b in boxes), min(b[1] for b in boxes) - 54
        return x, y, max(b[0] + b[2] for b in boxes) - x, max(b[1] + b[3] for b in boxes) - y

    def view(self, rectangle: tuple[float, float, float, float], most: float = 1.5) -> dict[str, float]:
        """Move and zoom the canvas to a rectangle of the graph; return its place on the screen, in pixels.

        The zoom factor is at most `most`."""
        place = self.tab.evaluate(MOVE, [*rectangle, most])
        self.settle()
        with contextlib.suppress(Exception):  # continue even if an image never arrives
            self.tab.wait_for_function(LOADED, timeout=5_000)
        self.settle()
        return place

    def box(self, ids: list | None = None, margin: int = 16) -> dict[str, float]:
        """Show some nodes (default: all); return where they are on the screen."""
        x, y, width, height = self.bounds(ids)
        return self.view((x - margin, y - margin, width + 2 * margin, height + 2 * margin))
