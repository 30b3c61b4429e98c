"""What the page of a running ComfyUI is sent."""

import io

from PIL import Image


class Heard:
    """What the page is sent of a run: the values of the bar of a node, pictures, texts on nodes."""

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
