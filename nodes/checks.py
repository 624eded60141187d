"""What a loader may leave empty: said before any work."""

from typing import Any


def require_clip(clip: Any) -> None:
    """Raises ValueError where a checkpoint brought no text encoders: SD3.5 often comes without."""
    if clip is None:
        raise ValueError(
            "The CLIP input is empty: this checkpoint holds no text encoders. Load them with the stock node TripleCLIPLoader "
            "(clip_l, clip_g and t5xxl) and connect its CLIP."
        )


def require_vae(vae: Any) -> None:
    """Raises ValueError where a checkpoint brought no VAE."""
    if vae is None:
        raise ValueError(
            "The VAE input is empty: this checkpoint holds no VAE. Load SD3's with the stock node Load VAE."
        )
