"""The judges' networks: small convolutional ones, each trained for one question (`train_judges.py`), read-only here.

scene     pocket CLIP: picture and text in one space; with it the words that are true of a picture, and where the object is
drawing   pocket DINO: which drawing is this, whatever its pose, size, place and background
style     pocket CSD: which look does the whole picture have, whatever it shows

All take pictures [batch, 3, 128, 128] in [-1, 1].
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purecc.files import load_tensors
from purecc.pocket.model import new_tokenizer, token_ids
from purecc.pocket.specification import BACKGROUNDS, CLASSES, PLACES, SIZES, STYLES

WEIGHTS = Path(__file__).parent / "judges"
EMBEDDING = 128
HEADS = {"class": len(CLASSES), "background": len(BACKGROUNDS), "size": len(SIZES), "place": len(PLACES)}
HEADS["style"] = len(STYLES) + 1


class _Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Trunk(nn.Module):
    """Pictures -> features at 1/4 [batch, 48, 32, 32] and at 1/16 [batch, 192, 8, 8]."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 48, 3, padding=1), _Block(48))
        self.coarse = nn.Sequential(
            nn.Conv2d(48, 96, 3, stride=2, padding=1), _Block(96), nn.Conv2d(96, 192, 3, stride=2, padding=1), _Block(192),
            _Block(192), nn.BatchNorm2d(192), nn.SiLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(x.contiguous(memory_format=torch.channels_last))
        return fine, self.coarse(fine)


def pooled(features: Tensor) -> Tensor:
    """[batch, channels, height, width] -> mean and maximum over the picture, [batch, 2 channels]."""
    return torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)


@dataclass
class SceneView:
    """What the scene judge sees."""

    embedding: Tensor  # [batch, EMBEDDING], unit length
    logits: dict[str, Tensor]  # by head, [batch, choices]
    present: Tensor  # [batch, classes] logits: is a thing of this class in the picture?
    mask: Tensor  # [batch, 32, 32] logits: object or background


class SceneJudge(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = Trunk()
        self.shared = nn.Linear(192 * 2 + 192 * 8 * 3, 256)  # what is there, and roughly where
        self.heads = nn.ModuleDict({name: nn.Linear(256, count) for name, count in HEADS.items()})
        self.present = nn.Linear(256, len(CLASSES))
        self.picture = nn.Linear(256, EMBEDDING)
        self.mask = nn.Sequential(
            nn.Conv2d(240, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, 1, 1)
        )
        self.tokenizer = new_tokenizer()
        words = len(self.tokenizer)
        self.words, self.places = nn.Embedding(words, EMBEDDING), nn.Parameter(torch.zeros(24, EMBEDDING))
        self.reader = nn.TransformerEncoderLayer(EMBEDDING, 4, 256, dropout=0.0, activation="gelu", batch_first=True)
        self.text = nn.Linear(EMBEDDING, EMBEDDING)
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, pictures: Tensor) -> SceneView:
        fine, coarse = self.trunk(pictures)
        columns = F.adaptive_avg_pool2d(coarse, (3, 8)).flatten(1)  # where along x, and how high
        shared = F.silu(self.shared(torch.cat([pooled(coarse), columns], dim=1)))
        mask = self.mask(torch.cat([fine, F.interpolate(coarse, scale_factor=4.0)], dim=1))[:, 0]
        logits = {name: head(shared) for name, head in self.heads.items()}
        return SceneView(F.normalize(self.picture(shared), dim=1), logits, self.present(shared), mask)

    def read(self, texts: list[str]) -> Tensor:
        """Texts -> [batch, EMBEDDING], unit length."""
        ids = token_ids(self.tokenizer, texts)
        rows = self.reader(self.words(ids) + self.places)
        return F.normalize(self.text(rows.mean(1)), dim=1)


class Embedder(nn.Module):
    """Pictures -> [batch, EMBEDDING], unit length; for the drawing and the style judge."""

    def __init__(self):
        super().__init__()
        self.trunk = Trunk()
        self.out = nn.Sequential(nn.Linear((192 + 48) * 2, 256), nn.SiLU(), nn.Linear(256, EMBEDDING))

    def forward(self, pictures: Tensor) -> Tensor:
        fine, coarse = self.trunk(pictures)
        return F.normalize(self.out(torch.cat([pooled(coarse), pooled(fine)], dim=1)), dim=1)


@dataclass
class Judges:
    scene: SceneJudge
    drawing: Embedder
    style: Embedder


def load_judges(folder: Path = WEIGHTS) -> Judges:
    """The trained judges, in eval mode without gradients."""
    judges = Judges(SceneJudge(), Embedder(), Embedder())
    for name, network in vars(judges).items():
        tensors, _ = load_tensors(folder / f"{name}.safetensors")
        network.load_state_dict(tensors)  # float16 on disk, float32 here
        network.requires_grad_(False).eval()
    return judges
