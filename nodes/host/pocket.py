"""Pocket SD3 in the host's own types: MODEL, CLIP and VAE, as any loader gives them."""

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerFast

from ...purecc.pocket import model as pocket_model
from ...purecc.pocket.autoencoder import PocketAutoencoder

_ENCODERS = {"l": "clip_l", "g": "clip_g"}  # key in the host's tokens -> module; LoRA loaders know these names


def load_pocket(folder: Path = pocket_model.WEIGHTS) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE, float32: so small a model gains nothing from less, and its figures are the same everywhere."""
    pocket = pocket_model.load_pocket(folder)
    # the loader takes the weights out of the dict that it is given
    model = comfy.sd.load_diffusion_model_state_dict(
        dict(pocket.transformer.state_dict()),
        model_options={"dtype": torch.float32},
        **_held_whole(comfy.sd.load_diffusion_model_state_dict),
    )
    if model is None:
        raise RuntimeError(
            "This version of ComfyUI does not recognise Pocket SD3's transformer as an SD3 type. Update ComfyUI."
        )
    model.model.latent_format = PocketLatentFormat(pocket.vae)
    model.model.model_sampling.set_parameters(shift=pocket.scheduler.config.shift)
    clip, vae = _clip(pocket, folder / "tokenizer"), PocketVAE(pocket.vae)
    for index, patcher in enumerate((model, clip.patcher, vae.patcher)):
        patcher.cached_patcher_init = (
            _patchers,
            (folder,),
            index,
        )  # newer hosts load it anew by this, as Train LoRA does
    return model, clip, vae


def _patchers(folder: Path, **_: Any) -> tuple[ModelPatcher, ...]:
    model, clip, vae = load_pocket(folder)
    return model, clip.patcher, vae.patcher


def _held_whole(loader: Callable) -> dict[str, bool]:
    """The option of a newer host's loader that keeps it from managing the weights piece by piece: there is nothing to win in so few."""
    return {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(loader).parameters else {}


class PocketLatentFormat(comfy.latent_formats.SD3):
    """Scale, shift and preview of the pocket's latents."""

    def __init__(self, autoencoder: PocketAutoencoder):
        super().__init__()
        self.scale_factor, self.shift_factor = autoencoder.config.scaling_factor, autoencoder.config.shift_factor
        self.taesd_decoder_name = None
        with torch.no_grad():
            # the decoder's linear part, averaged over each 8 x 8 patch; the host's previews are in [-1, 1], as ours
            colors = autoencoder.decoder.weight.float().mean((2, 3))  # [16, 3]
            bias = autoencoder.decoder.bias.float() + self.shift_factor * colors.sum(0)
        self.latent_rgb_factors = (colors / self.scale_factor).tolist()
        self.latent_rgb_factors_bias = bias.tolist()


class PocketVAE(comfy.sd.VAE):
    """The pocket's autoencoder as a VAE. Sets what the host's constructor would after it had recognised the weights."""

    def __init__(self, autoencoder: PocketAutoencoder):
        silent = logging.Filter()
        silent.filter = lambda record: "No VAE weights" not in record.getMessage()
        logging.getLogger().addFilter(silent)
        try:
            super().__init__(sd={})  # the host's defaults
        finally:
            logging.getLogger().removeFilter(silent)
        size = comfy.model_management.dtype_size
        self.latent_channels = autoencoder.config.latent_channels
        self.downscale_ratio = self.upscale_ratio = autoencoder.config.patch
        # the widest layer holds 8 numbers a pixel; 64 leave room for convolutions
        self.memory_used_encode = lambda shape, dtype: 64 * shape[2] * shape[3] * size(dtype)
        self.memory_used_decode = lambda shape, dtype: 64 * 64 * shape[2] * shape[3] * size(dtype)
        self.working_dtypes = [torch.float32]
        self.device = comfy.model_management.vae_device()
        self.vae_dtype = comfy.model_management.vae_dtype(self.device, self.working_dtypes)
        self.output_device = comfy.model_management.intermediate_device()
        self.first_stage_model = _FirstStage(autoencoder).eval().to(self.vae_dtype)
        offload = comfy.model_management.vae_offload_device()
        self.patcher = ModelPatcher(self.first_stage_model, load_device=self.device, offload_device=offload)


class _FirstStage(nn.Module):
    """The two calls that the host makes of an autoencoder."""

    def __init__(self, autoencoder: PocketAutoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    def encode(self, pixels: Tensor) -> Tensor:
        return self.autoencoder.encode(pixels).latent_dist.mode()

    def decode(self, latents: Tensor, **_: Any) -> Tensor:
        return self.autoencoder.decode(latents).sample


class _TextModel(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text model with the vocabulary and projection of its configuration, which the host ignores."""

    def __init__(self, config: dict, dtype: torch.dtype, device: torch.device, operations: Any):
        super().__init__(config, dtype, device, operations)
        width, made = config["hidden_size"], {"dtype": dtype, "device": device}
        self.text_model.embeddings.token_embedding = operations.Embedding(config["vocab_size"], width, **made)
        self.text_projection = operations.Linear(width, config["projection_dim"], bias=False, **made)


def _clip(pocket: pocket_model.Pocket, tokenizer_folder: Path) -> comfy.sd.CLIP:
    """The two text encoders as one CLIP without T5."""
    parts = {"clip_l": pocket.text_encoder, "clip_g": pocket.text_encoder_2}
    configs = {name: part.config.to_dict() for name, part in parts.items()}
    tokenizer = pocket.tokenizer
    special = {"start": tokenizer.bos_token_id, "end": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}

    class PocketTokenizer:
        """What `CLIP.tokenize` calls."""

        def __init__(self, embedding_directory: list[str] | None = None, tokenizer_data: dict | None = None):
            for name, config in configs.items():
                one = comfy.sd1_clip.SDTokenizer(
                    str(tokenizer_folder),
                    max_length=config["max_position_embeddings"],
                    embedding_directory=embedding_directory,
                    embedding_size=config["hidden_size"],
                    embedding_key=name,
                    tokenizer_class=PreTrainedTokenizerFast,
                    tokenizer_data=tokenizer_data or {},
                )
                setattr(self, name, one)

        def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> dict[str, list]:
            made = {
                key: getattr(self, name).tokenize_with_weights(text, return_word_ids, **options)
                for key, name in _ENCODERS.items()
            }
            return {**made, "t5xxl": []}  # CLIP Text Encode SD3 looks for it

        def untokenize(self, tokens: list) -> list:
            return self.clip_g.untokenize(tokens)

        def state_dict(self) -> dict:
            return {}

    class PocketText(nn.Module):
        """What `CLIP.encode_from_tokens` calls."""

        t5xxl = None

        def __init__(self, device: Any = "cpu", dtype: torch.dtype | None = None, model_options: dict | None = None):
            super().__init__()
            self.dtypes = {dtype}
            for name, config in configs.items():
                one = comfy.sd1_clip.SDClipModel(
                    device=device,
                    dtype=dtype,
                    max_length=config["max_position_embeddings"],
                    layer="hidden",
                    layer_idx=config["num_hidden_layers"] - 2,  # from the front: the host refuses -2 of 2 layers
                    textmodel_json_config=dict(config),
                    model_class=_TextModel,
                    special_tokens=special,
                    layer_norm_hidden_state=False,
                    return_projected_pooled=True,
                    model_options={**(model_options or {}), "model_name": name},
                )
                setattr(self, name, one)

        def set_clip_options(self, options: dict) -> None:
            for name in _ENCODERS.values():
                getattr(self, name).set_clip_options(options)

        def reset_clip_options(self) -> None:
            for name in _ENCODERS.values():
                getattr(self, name).reset_clip_options()

        def encode_token_weights(self, tokens: dict[str, list]) -> tuple[Tensor, Tensor, dict]:
            """Rows [1, n, 256] and pooled [1, 256], both encoders side by side."""
            made = [getattr(self, name).encode_token_weights(tokens[key])[:2] for key, name in _ENCODERS.items()]
            count = min(rows.shape[1] for rows, _ in made)
            return (
                torch.cat([rows[:, :count] for rows, _ in made], -1),
                torch.cat([pooled for _, pooled in made], -1),
                {},
            )

        def load_parts(self, parts: dict[str, CLIPTextModelWithProjection]) -> None:
            for name, part in parts.items():
                getattr(self, name).transformer.load_state_dict(part.state_dict())

    class Target:
        """What `comfy.sd.CLIP` is made from."""

        params: dict = {}
        clip, tokenizer = PocketText, PocketTokenizer

    embeddings = folder_paths.get_folder_paths("embeddings")
    # the host's default is float16, on a CPU too
    clip = comfy.sd.CLIP(
        Target, embedding_directory=embeddings, model_options={"dtype": torch.float32}, **_held_whole(comfy.sd.CLIP)
    )
    clip.cond_stage_model.load_parts(parts)
    return clip
