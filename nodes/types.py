"""The wires of the pack, beside the host's own."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from comfy_api.latest import io

from ..purecc.concept_set import ConceptSet
from ..purecc.encoding import TextEncoder
from ..purecc.presets import PRESETS, SHIPPED, Preset
from ..purecc.settings import PureSettings, TrainSettings

Data = io.Custom("PURECC_DATA")
ConceptWire = io.Custom("PURECC_CONCEPT")
SettingsWire = io.Custom("PURECC_SETTINGS")

CATEGORY = "PureCC"
# where a concept's LoRA acts, see `purecc.network`
GateChoice = Literal["as trained", "picture", "conditioning", "rows", "off"]
GATE_CHOICES: tuple[GateChoice, ...] = get_args(GateChoice)


@dataclass(frozen=True)
class TrainingData:
    """What runs along a PURECC_DATA wire: the encoded set, and what validation pictures need."""

    concept_set: ConceptSet
    vae: Any  # the host's VAE, decodes them
    encoder: TextEncoder  # of further prompts


@dataclass(frozen=True)
class Advanced:
    """What runs along a PURECC_SETTINGS wire: settings beside those on a training node's face, by their own names."""

    train: dict[str, Any] = field(default_factory=dict)  # of TrainSettings; alpha 0 is as large as the rank
    pure: dict[str, Any] = field(default_factory=dict)  # of PureSettings
    preset: str = "as shown"  # a key of PRESETS; stands above all others
    stage2_embeddings: str | None = None  # None: as the extractor
    extractor_lora: bool = True  # whether it guides
    validation_prompts: tuple[str, ...] = ()
    validation_every: int = 0  # steps between previews; 0: four in a run
    validation_seeds: tuple[int, ...] = (0,)  # of the noise that each of the prompts is drawn from

    @property
    def _preset(self) -> Preset:
        if self.preset not in PRESETS:
            raise ValueError(f'There is no preset "{self.preset}"; there are {", ".join(PRESETS)}.')
        return PRESETS[self.preset]

    def train_settings(self, stage: str, tokens: bool | None = None, **face: Any) -> TrainSettings:
        """Of stage "extractor" or "pure", with the values on the node's face; `tokens`: token_embeddings, above all others."""
        values = {**face, **self.train, **getattr(self._preset, stage)}
        values |= {} if tokens is None else {"token_embeddings": tokens}
        return TrainSettings(**{**values, "alpha": float(values.get("alpha") or values["rank"])})

    def pure_settings(self, **face: Any) -> PureSettings:
        return PureSettings(**{**face, **self.pure, **self._preset.method})

    @property
    def guides_with_lora(self) -> bool:
        own = self._preset.extractor_lora
        return self.extractor_lora if own is None else own

    def described(self) -> str:
        """What differs from the pack's defaults, for the canvas."""
        defaults = {**_defaults(TrainSettings), **_defaults(PureSettings), **SHIPPED, "alpha": 0.0}
        changed = {name: value for name, value in {**self.train, **self.pure}.items() if value != defaults[name]}
        changed |= {} if self.stage2_embeddings is None else {"stage2_embeddings": self.stage2_embeddings}
        changed |= {} if self.extractor_lora else {"extractor_lora": False}
        if self.validation_seeds != (0,):
            changed["validation_seeds"] = ", ".join(map(str, self.validation_seeds))
        rows = [f"{name}: {value}" for name, value in changed.items()] or ["nothing changed"]
        if self._preset != Preset():
            rows = [f"preset {self.preset}, which stands above:", *rows]
        return "\n".join([*rows, *(f"draws: {prompt}" for prompt in self.validation_prompts)])


def _defaults(settings: type) -> dict[str, Any]:
    return {name: one.default for name, one in settings.__dataclass_fields__.items()}
