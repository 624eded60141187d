"""Where the concept is in each reference, as the base model sees it: after DiffEdit (arXiv 2210.11427).

The base reads a noised reference twice, with the class's text and with none. Where the two velocities differ most, there
the text has something to say: there is the thing.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .concept_set import NULL, ConceptSet
from .flow import LatentScaling, add_noise
from .forwards import SAMPLES, Query, velocities
from .network import BASE, AdaptedNetwork
from .place import where_most

_TIMES = torch.linspace(0.3, 0.8, 8)  # below, the picture is there without words; above, nothing of it is left
_SEED = 20_262


def with_found_masks(
    network: AdaptedNetwork, data: ConceptSet, scaling: LatentScaling,
    looking: Callable[[int, int], None] = lambda done, total: None,
) -> ConceptSet:  # fmt: skip
    """`data` with a mask for each picture on its latent's grid: 1 on the thing, 0 elsewhere.

    `looking(done, total)` is called before each picture; what it raises ends the search.

    Raises ValueError for a style, which is all over the picture.
    """
    if data.class_text is None:
        raise ValueError("A style is all over its pictures; there is no mask to find.")
    masks = []
    for i in range(len(data.examples)):
        looking(i, len(data.examples))
        latent = scaling.to_model(data.examples[i].latent.float())
        masks.append(mask_of(network, data, latent, (data.class_text, NULL)))
    return replace(data, masks=tuple(masks))


def mask_of(network: AdaptedNetwork, data: ConceptSet, latent: Tensor, texts: tuple[str, str]) -> Tensor:
    """[height, width]: 1 where the base model sees what the first text says and the second does not, in one picture.

    latent [channels, height, width] as the model reads it; `texts`: with the thing and without, encoded in `data`.
    """
    return where_most(_energy(network, data, latent, texts))


@torch.no_grad()
def _energy(network: AdaptedNetwork, data: ConceptSet, latent: Tensor, texts: tuple[str, str]) -> Tensor:
    """|v3(with) - v3(without)|, root mean square over channels, times and noises, [height, width] on the CPU."""
    device, count = network.device, len(_TIMES)
    noise = torch.randn(count, *latent.shape, generator=torch.Generator().manual_seed(_SEED))
    x_t = add_noise(latent.expand_as(noise), noise, _TIMES).to(device)
    asked = [Query(x_t, _TIMES.to(device), data.repeated(text, count, device), BASE) for text in texts]
    with_, without = velocities(network, asked, SAMPLES)
    return (with_ - without).square().mean((0, 1)).sqrt().cpu()
