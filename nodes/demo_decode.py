"""The node AMED Demo Decode."""

from comfy_api.latest import io

from .schema import schema


class DemoDecode(io.ComfyNode):
    """LATENT of the demo model to IMAGE."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDDemoDecode",
            display_name="AMED Demo Decode",
            search_aliases=["amed", "emoji", "decode"],
            description="The demo model works on pixels: its LATENT to an IMAGE, enlarged by whole pixels.",
            inputs=[
                io.Latent.Input("samples", tooltip="of AMED Demo Model alone"),
                io.Int.Input("enlarge", default=4, min=1, max=16, tooltip="each pixel becomes n x n"),
            ],
            outputs=[io.Image.Output(tooltip="RGB, enlarged")],
        )

    @classmethod
    def execute(cls, samples, enlarge):
        pixels = samples["samples"]
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(
                f"this LATENT is not the AMED demo model's (3 channels), its shape is {tuple(pixels.shape)}: "
                "decode it with VAE Decode"
            )
        image = (pixels.movedim(1, -1).float() / 2 + 0.5).clamp(0, 1)
        return io.NodeOutput(image.repeat_interleave(enlarge, dim=1).repeat_interleave(enlarge, dim=2))
