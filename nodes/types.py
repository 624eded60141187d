"""The wires of the pack, beside the host's own."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from comfy_api.latest import io

from ..purecc.concept_set import ConceptSet

Data = io.Custom("PURECC_DATA")
ConceptWire = io.Custom("PURECC_CONCEPT")

CATEGORY = "PureCC"
GateChoice = Literal["as trained", "picture", "conditioning", "rows", "off"]  # where a concept's LoRA acts, see `Concept.gate`
GATE_CHOICES: tuple[GateChoice, ...] = get_args(GateChoice)


@dataclass(frozen=True)
class TrainingData:
    """What runs along a PURECC_DATA wire: the encoded set, and the VAE that decodes previews."""

    concept_set: ConceptSet
    vae: Any  # the host's VAE
