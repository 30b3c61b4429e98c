"""The node AMED Demo Decode."""

from comfy_api.latest import io

from .schema import schema


class DemoDecode(io.ComfyNode):
    """Convert a LATENT of the demo model to an IMAGE."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDDemoDecode",
            display_name="AMED Demo Decode",
            search_aliases=["amed", "emoji", "decode"],
            description="Convert a LATENT of the demo model to an IMAGE. The demo model works on pixels, "
            "which this node enlarges.",
            inputs=[
                io.Latent.Input("samples", tooltip="A latent that was sampled with AMED Demo Model."),
                io.Int.Input("enlarge", default=4, min=1, max=16, tooltip="Each pixel becomes n x n pixels."),
            ],
            outputs=[io.Image.Output(tooltip="The enlarged image.")],
        )

    @classmethod
    def execute(cls, samples, enlarge):
        pixels = samples["samples"]
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(
                "this LATENT is not from the AMED demo model (3 channels of pixels): its shape is "
                f"{tuple(pixels.shape)}. Decode it with VAE Decode"
            )
        image = (pixels.movedim(1, -1).float() / 2 + 0.5).clamp(0, 1)
        return io.NodeOutput(image.repeat_interleave(enlarge, dim=1).repeat_interleave(enlarge, dim=2))
