"""Early stop: the loss on a draw that never changes, and when it has stopped falling (Prechelt, "Early Stopping", 1998).

There are only the references to look at, so this is no measure of generality: it tells when learning has come to rest. Each
look is the very loss that the run descends, over fixed noise and times (`batches.held_draws`), so chance has no part in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .batches import as_batch, held_draws
from .class_pictures import ClassPictures
from .concept_set import ConceptSet
from .flow import LatentScaling
from .network import AdaptedNetwork
from .scenes import Scenes
from .settings import TrainSettings
from .terms import Objective

_LOOKS, _BEST = "stop.looks", "best."  # in a checkpoint


@torch.no_grad()
def validation_loss(
    network: AdaptedNetwork,
    objective: Objective,
    data: ConceptSet,
    settings: TrainSettings,
    scaling: LatentScaling,
    class_pictures: ClassPictures | None = None,
    scenes: Scenes | None = None,
) -> float:
    """The objective's loss on the held draws, the mean over their samples; changes nothing, draws on no chance of a step."""
    chance, total, count = tuple(torch.Generator().manual_seed(seed) for seed in (20_262, 20_263)), 0.0, 0
    for draw in held_draws(data, settings):
        batch = as_batch(draw, data, settings, scaling, network.device, class_pictures, scenes, chance)
        total += len(draw.t) * float(objective.terms(network, batch).loss)
        count += len(draw.t)
    return total / count


@dataclass(frozen=True)
class Look:
    """One evaluation."""

    step: int  # steps done
    loss: float


@dataclass
class EarlyStop:
    """Looks at a run every `every` steps and at its end; keeps the parameters of the lowest loss.

    A look gains where its loss is below (1 - `gain`) times that of the last look that gained. After `patience` looks in a row
    without gain the run stops.
    """

    patience: int  # looks
    every: int  # steps
    gain: float  # share of the loss
    looks: list[Look] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)  # parameters of the best look, on the CPU

    @staticmethod
    def of(settings: TrainSettings) -> "EarlyStop | None":
        """As the settings say; None where they have none."""
        if not settings.stop_patience:
            return None
        return EarlyStop(settings.stop_patience, settings.stop_every, settings.stop_gain)

    def is_due(self, step: int, last: int) -> bool:
        """Whether step `step` of `last` is to be looked at, and was not."""
        looked = self.looks[-1].step if self.looks else 0
        return looked < step and (step % self.every == 0 or step == last)

    def look(self, step: int, loss: float, parameters: list[nn.Parameter]) -> None:
        """Notes a loss, and keeps the parameters where it is the lowest."""
        if not self.looks or loss < self.best.loss:
            self.kept = [parameter.detach().cpu().clone() for parameter in parameters]
        self.looks.append(Look(step, loss))

    @property
    def best(self) -> Look:
        """The look of the lowest loss, the first of equals."""
        return min(self.looks, key=lambda look: look.loss)

    @property
    def waited(self) -> int:
        """Looks in a row, up to the last, that gained too little."""
        waited, mark = 0, None
        for look in self.looks:
            gained = mark is None or look.loss < (1 - self.gain) * mark
            waited, mark = (0, look.loss) if gained else (waited + 1, mark)
        return waited

    @property
    def is_over(self) -> bool:
        return self.waited >= self.patience

    @torch.no_grad()
    def restore(self, parameters: list[nn.Parameter]) -> None:
        """Gives the parameters the values of the best look."""
        for parameter, value in zip(parameters, self.kept, strict=True):
            parameter.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: the looks [count, 2] and the parameters kept."""
        looks = torch.tensor([[look.step, look.loss] for look in self.looks], dtype=torch.float64).view(-1, 2)
        return {_LOOKS: looks} | {f"{_BEST}{i}": value for i, value in enumerate(self.kept)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        self.looks = [Look(int(step), loss) for step, loss in tensors[_LOOKS].tolist()]
        self.kept = [tensors[f"{_BEST}{i}"] for i in range(sum(name.startswith(_BEST) for name in tensors))]

    def summary(self) -> dict[str, float]:
        """Figures for the concept's file."""
        return {
            "stopped_at": self.looks[-1].step, "kept_step": self.best.step, "validation_loss": self.best.loss,
            "first_validation_loss": self.looks[0].loss,
        }  # fmt: skip


def reason(summary: Mapping[str, float], settings: TrainSettings) -> str | None:
    """A finished run's end in a sentence, from its summary; None where it had no early stop."""
    if "stopped_at" not in summary:
        return None
    at, kept = int(summary["stopped_at"]), int(summary["kept_step"])
    losses = f"validation loss {summary['first_validation_loss']:.4f} -> {summary['validation_loss']:.4f}"
    if at == settings.steps:
        return f"early stop: went to the end, step {at}; kept step {kept}, {losses}"
    return (
        f"early stop: stopped at step {at} of {settings.steps}, after {settings.stop_patience} evaluations that gained less than "
        f"{100 * settings.stop_gain:g} %; kept step {kept}, {losses}"
    )
