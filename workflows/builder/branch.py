"""One sampling branch of stock nodes: prompts, KSampler, VAE Decode, and the pictures saved."""

from dataclasses import dataclass

from .graph import Graph, Node, Wire

HEIGHT = 360  # pixels from one branch to the next
KEPT = 470  # where its pictures are kept too: the newer node design shows the first across the node's whole width


@dataclass(frozen=True)
class Sampling:
    """What all branches of a workflow share, so that they differ in MODEL, CLIP and prompt alone."""

    latent: Wire
    vae: Wire
    seed: int
    steps: int
    cfg: float
    scheduler: str = "normal"
    sampler: str = "euler"
    negative: str = ""


def sample(g: Graph, x: int, y: int, name: str, source: Node, prompt: str, how: Sampling) -> Node:
    """Prompt -> VAE Decode for the MODEL and CLIP of `source`; the decoding node."""
    positive = g.add("CLIPTextEncode", x, y, 290, 110, prompt, title=f"Prompt: {name}", clip=source["CLIP"])
    negative = g.add("CLIPTextEncode", x, y + 170, 290, 90, how.negative, title="Negative prompt", clip=source["CLIP"])
    sampled = g.add(
        "KSampler", x + 310, y, 300, 270, how.seed, "fixed", how.steps, how.cfg, how.sampler, how.scheduler, 1.0,
        title=f"Sample: {name}", model=source["MODEL"], positive=positive["CONDITIONING"],
        negative=negative["CONDITIONING"], latent_image=how.latent,
    )  # fmt: skip
    return g.add("VAEDecode", x + 630, y, 230, 60, samples=sampled["LATENT"], vae=how.vae)  # no page draws it narrower


def keep(g: Graph, x: int, y: int, name: str, prefix: str, pictures: Node, width: int = 320) -> None:
    """The pictures of a branch, saved and shown."""
    g.add("SaveImage", x, y, width, 290, f"purecc/{prefix}", title=f"Pictures: {name}", images=pictures["IMAGE"])
