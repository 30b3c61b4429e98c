"""The messages that a running ComfyUI sends to its page."""

import io

from PIL import Image


class PageMessages:
    """Collects what the page is told about one node during a run: progress values, pictures and texts."""

    PICTURE, TEXT = 1, 3  # kinds of the host's binary messages

    def __init__(self, node):
        self.node = node
        self.bar, self.pictures, self.texts = [], [], []

    def __call__(self, kind, data):
        if kind == "binary":
            which, rest = int.from_bytes(data["bytes"][:4], "big"), data["bytes"][8:]
            if which == self.PICTURE:
                self.pictures.append(Image.open(io.BytesIO(rest)))
            elif which == self.TEXT:
                self.texts.append(rest[int.from_bytes(data["bytes"][4:8], "big") :].decode())
        if kind == "progress" and str(data.get("node")) == self.node:
            self.bar.append(data["value"] / data["max"])
