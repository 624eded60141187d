"""All settings of a training run: default, unit and meaning beside each, checked where they are made."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from .concept import EmbeddingMode
from .objective import ORIGINALS, Original

Method = Literal["PureCC", "LoRA"]
METHODS: tuple[Method, ...] = get_args(Method)
EMBEDDINGS: tuple[str, ...] = (*get_args(EmbeddingMode), "none")

ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0") + (
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
)  # fmt: skip
TARGETS = {
    "attention": ATTENTION,
    "attention and attn2": ATTENTION + ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
}


@dataclass(frozen=True)
class TrainSettings:
    """What both stages share. The paper's: rank 4, learning rate 1e-4, 400 steps, batch 2."""

    steps: int = 400
    batch_size: int = 2  # pictures a step
    learning_rate: float = 1e-4  # of the LoRA
    embedding_rate: float = 5e-3  # learning rate of the concept embeddings
    rank: int = 4
    alpha: float = 4.0  # LoRA's change is alpha / rank * B A
    targets: str = "attention"  # which Linears carry the LoRA, a key of TARGETS
    embeddings: str = "replace"  # how layer-wise embeddings act (eq. 7), or "none"
    shift: float = 3.0  # of the times learnt from: 1 is plain logit-normal, SD3 samples with 3
    max_grad_norm: float = 1.0
    weight_decay: float = 1e-4  # of the LoRA
    seed: int = 0
    checkpoint_every: int = 50  # steps

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "rank", "checkpoint_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("learning_rate", "embedding_rate", "alpha", "shift", "max_grad_norm"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        _require(self.targets in TARGETS, "targets", self.targets, f"one of {', '.join(TARGETS)}")
        _require(self.embeddings in EMBEDDINGS, "embeddings", self.embeddings, f"one of {', '.join(EMBEDDINGS)}")


@dataclass(frozen=True)
class PureSettings:
    """What stage 2 adds (sections 4.3, 4.4)."""

    method: Method = "PureCC"  # "LoRA": L_CC alone, the plain baseline
    eta: float = 1.0  # weight of L_PureCC beside L_CC, eq. 15
    original: Original = "frozen base"  # where v_original comes from, eq. 9 and section 14
    fixed_scale: float | None = None  # lambda in place of the adaptive lambda*, table 3
    train_embeddings: bool = True  # stage 2 goes on learning its copy of the extractor's embeddings (figure 3b)

    def __post_init__(self) -> None:
        _require(self.method in METHODS, "method", self.method, f"one of {', '.join(METHODS)}")
        _require(self.eta >= 0, "eta", self.eta, "0 or more")
        _require(self.original in ORIGINALS, "original", self.original, f"one of {', '.join(ORIGINALS)}")


def as_plain(*settings: TrainSettings | PureSettings) -> dict[str, Any]:
    """Settings as one flat dictionary, for files and hashes."""
    return {name: value for part in settings for name, value in asdict(part).items()}


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; it must be {rule}.")
