"""How far a model has left the base, and what it has learnt, over fixed noise and times: the same for every method."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import objective as eq
from .concept_set import ConceptSet
from .encoding import TextBatch
from .flow import LatentScaling, add_noise
from .network import BASE, EXTRACTOR, AdaptedNetwork

Looking = Callable[[int, int], None]
_TIMES = torch.tensor([0.95, 0.8, 0.6, 0.4, 0.2])


def _silent(done: int, total: int) -> None:
    pass


def probes(
    data: ConceptSet, scaling: LatentScaling, device: torch.device, looking: Looking = _silent
) -> Iterator[tuple[Tensor, Tensor, dict[str, TextBatch]]]:
    """Fixed x_t, t and the texts by name: of each example all probe times at once; `looking` is told before each how many are done, of how many."""
    generator, count = torch.Generator().manual_seed(20_260), len(_TIMES)
    for index, example in enumerate(data.examples):
        looking(index, len(data.examples))
        x0 = scaling.to_model(example.latent.float()).expand(count, -1, -1, -1)
        texts = {which: data.batch(which, [index] * count, device) for which in ("complete", "base", "target")}
        texts["null"] = data.null(count, device)
        noise = torch.randn(x0.shape, generator=generator)
        yield add_noise(x0, noise, _TIMES).to(device), _TIMES.to(device), texts


@torch.no_grad()
def drift(
    network: AdaptedNetwork,
    model: str,
    data: ConceptSet,
    scaling: LatentScaling,
    which: str,
    looking: Looking = _silent,
) -> float:
    """How far a model has left theta3 for a text: ||v_model - v_theta3|| / ||v_theta3||.

    `which` is "base" or "null": texts without the concept; or "complete", where theta3 reads the class word.
    """
    moved = length = 0.0
    for x_t, t, texts in probes(data, scaling, network.device, looking):
        v_base = network.velocity(x_t, t, texts[which], BASE)
        moved += float((network.velocity(x_t, t, texts[which], model) - v_base).square().sum())
        length += float(v_base.square().sum())
    return (moved / length) ** 0.5


@torch.no_grad()
def alignment(
    network: AdaptedNetwork, model: str, data: ConceptSet, scaling: LatentScaling, looking: Looking = _silent
) -> dict[str, float]:
    """What a model has learnt, held against the extractor's direction (eq. 8); v_original is theta3's.

    The means of lambda* (eqs. 11, 12), cos^2(R_complete, R_tar) and |R_complete| (root mean square).
    """
    scales, cosines, lengths = [], [], []
    for x_t, t, texts in probes(data, scaling, network.device, looking):
        v_target, v_null = (network.velocity(x_t, t, texts[which], EXTRACTOR) for which in ("target", "null"))
        guidance = eq.implicit_guidance(v_target, v_null)
        v_original = network.velocity(x_t, t, texts["base"], BASE)
        learned = eq.learned_representation(network.velocity(x_t, t, texts["complete"], model), v_original)
        scales.append(eq.adaptive_scale(learned, guidance))
        cosines.append(eq.squared_cosine(learned, guidance))
        lengths.append(learned.square().flatten(1).mean(1).sqrt())
    mean = lambda values: float(torch.cat(values).mean())  # noqa: E731
    return {"end_scale": mean(scales), "end_squared_cosine": mean(cosines), "end_representation": mean(lengths)}
