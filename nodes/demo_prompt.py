"""The node AMED Demo Prompt."""

from comfy_api.latest import io

from ..demo.avatars.attributes import ATTRIBUTES, parse
from .demo_networks import text_conditioning
from .host.log import warn_once
from .host.running import text_ui
from .schema import schema

WORDS = "; ".join(", ".join(values) for values in ATTRIBUTES.values())


class DemoPrompt(io.ComfyNode):
    """Convert a text to the CONDITIONING of the avatar model."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDDemoPrompt",
            display_name="AMED Demo Prompt",
            search_aliases=["amed", "avatar", "prompt", "text encode", "demo"],
            description="A prompt for the avatar model of AMED Demo Model, in place of CLIP Text Encode. "
            f"It knows: {WORDS}.",
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="pixel art, red hair, glasses, blue background",
                    tooltip="What the avatar should look like, in any order. Empty: anything. Words that "
                    "the model does not know are listed on the node.",
                )
            ],
            outputs=[io.Conditioning.Output(tooltip="The prompt, for positive or negative.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, text):
        prompt = parse(text)
        if warning := prompt.warning():
            warn_once(f"Demo Prompt: {warning}")
        report = "\n".join(filter(None, [", ".join(prompt.values) or "any avatar", warning]))
        return io.NodeOutput(text_conditioning(prompt.values), ui=text_ui(cls.hidden.unique_id, report))
