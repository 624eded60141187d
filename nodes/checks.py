"""What a loader may leave empty: said before any work."""

from typing import Any
from unicodedata import category


def require_clip(clip: Any) -> None:
    """Raises ValueError where a checkpoint brought no text encoders: SD3.5 often comes without."""
    if clip is None:
        raise ValueError(
            "The CLIP input is empty: this checkpoint holds no text encoders. Load them with the stock node TripleCLIPLoader "
            "(clip_l, clip_g and t5xxl) and connect its CLIP."
        )


def require_trigger(trigger: str) -> None:
    """Raises ValueError for what the host's prompts read otherwise: round brackets weigh, backslashes escape, embedding: names a file.

    And for what the page takes out of them before: {a|b} chooses, // and /* begin remarks.
    """
    strange = any(category(letter) in ("Cc", "Cs") for letter in " ".join(trigger.split()))
    if strange or any(part in trigger for part in ("{", "//", "/*")):
        raise ValueError(
            f'The trigger "{ascii(trigger)[1:-1]}" has {{, // or /*, which the page takes out of prompts, or what cannot be written. Write a word, as '
            "ohwx or [V]."
        )
    if set("()\\") & set(trigger):
        raise ValueError(
            f'The trigger "{trigger}" has a round bracket or a backslash, which prompts read as weights. Write a word, as ohwx or [V].'
        )
    if "embedding:" in trigger.lower():
        raise ValueError(f'The trigger "{trigger}" names a file in prompts. Write a word, as ohwx or [V].')


def require_vae(vae: Any) -> None:
    """Raises ValueError where a checkpoint brought no VAE, or where this is no picture's VAE of SD3's shape: 16 channels, an eighth of a side."""
    if vae is None:
        raise ValueError(
            "The VAE input is empty: this checkpoint holds no VAE. Load SD3's with the stock node Load VAE."
        )
    if (vae.latent_dim, vae.latent_channels, vae.downscale_ratio) != (2, 16, 8):
        kind = {1: "sound's or a shape's", 2: "another picture model's", 3: "a video model's"}.get(
            vae.latent_dim, "another's"
        )
        raise ValueError(
            f"The VAE is {kind} ({type(vae.first_stage_model).__name__}, {vae.latent_channels} channels), not SD3's. Connect the VAE that "
            "belongs to the MODEL, or load SD3's with the stock node Load VAE."
        )
