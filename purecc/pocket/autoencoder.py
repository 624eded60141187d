"""The pocket's f8 autoencoder with 16 channels: a linear encoder in closed form, a decoder that starts as its inverse.

The encoder projects each 8 x 8 patch on the 16 principal components of the composed pictures (97 % of their variance);
each component is divided by the square root of its standard deviation, so that fine detail counts for more than it
varies and for less than the layout. The decoder is the projection's transpose plus a convolutional correction that
begins at zero. Chosen because there was no time to train a convolutional one (see the card for the one short try); and
latents that are known in closed form never move, however long the decoder is refined.
"""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import nn


@dataclass
class ExactPosterior:
    """A distribution without spread, with the calls that diffusers' users of an autoencoder make."""

    mean: torch.Tensor  # [batch, 16, height / 8, width / 8]

    def mode(self) -> torch.Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.mean


@dataclass
class EncoderOutput:
    latent_dist: ExactPosterior


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class _Correction(nn.Module):
    """What the linear decoder lacks: latents (at f8, then f4) and its picture (at f2) -> an RGB difference; zero at first."""

    def __init__(self, latent_channels: int, width: int, depth: int):
        super().__init__()
        half = width // 2
        self.from_latent = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.coarse = nn.Sequential(*(_Residual(width) for _ in range(depth)))
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.PixelShuffle(2))
        self.middle = nn.Sequential(*(_Residual(width) for _ in range(depth)))
        self.up_again = nn.Sequential(nn.Conv2d(width, 4 * half, 1), nn.PixelShuffle(2))
        self.from_picture = nn.Conv2d(12, half, 3, padding=1)
        self.fine = nn.Sequential(*(_Residual(half) for _ in range(depth)))
        self.out = nn.Conv2d(half, 12, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, latent: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        x = self.middle(self.up(self.coarse(self.from_latent(latent))))
        x = self.up_again(x) + self.from_picture(nn.functional.pixel_unshuffle(picture, 2))
        return nn.functional.pixel_shuffle(self.out(self.fine(x)), 2)


class PocketAutoencoder(ModelMixin, ConfigMixin):
    """`encode(x).latent_dist` and `decode(z).sample`, as diffusers' AutoencoderKL; pictures in [-1, 1], sides divisible by 8."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        patch: int = 8,
        width: int = 64,
        depth: int = 2,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        block_out_channels: tuple[int, ...] = (3, 3, 3, 3),  # its length tells diffusers' pipeline the downscale
    ):
        super().__init__()
        self.encoder = nn.Conv2d(3, latent_channels, patch, stride=patch)
        self.decoder = nn.ConvTranspose2d(latent_channels, 3, patch, stride=patch)
        self.correction = _Correction(latent_channels, width, depth)

    @torch.no_grad()
    def fit(self, pictures: torch.Tensor) -> float:
        """Sets the linear parts from pictures [n, 3, height, width]; returns the share of the variance that is kept."""
        patch, channels = self.config.patch, self.config.latent_channels
        rows = (
            nn.functional.unfold(pictures, patch, stride=patch).transpose(1, 2).reshape(-1, 3 * patch * patch).double()
        )
        mean = rows.mean(0)
        variances, basis = torch.linalg.eigh(torch.cov(rows.T))  # ascending
        variances, basis = variances.flip(0), basis.flip(1)[:, :channels].T  # basis [channels, 3 * patch * patch]
        damping = variances[:channels].pow(0.25)[:, None]
        self.encoder.weight.copy_((basis / damping).view_as(self.encoder.weight))
        self.encoder.bias.copy_(-(basis / damping) @ mean)
        self.decoder.weight.copy_((basis * damping).view_as(self.decoder.weight))
        self.decoder.bias.copy_(mean.view(3, -1).mean(1))
        return float(variances[:channels].sum() / variances.sum())

    def encode(self, x: torch.Tensor) -> EncoderOutput:
        return EncoderOutput(ExactPosterior(self.encoder(x)))

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None):
        picture = self.decoder(z)
        picture = picture + self.correction(z, picture)
        return DecoderOutput(sample=picture) if return_dict else (picture,)
