"""The pocket's parts, all of them diffusers' and transformers' own classes: architectures, tokenizer, folder on disk."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from . import specification as spec
from .autoencoder import PocketAutoencoder

WEIGHTS = Path(__file__).parent / "weights"
_START, _END, _UNKNOWN = "<start>", "<end>", "<unk>"


@dataclass
class Pocket:
    """A whole SD3 in small; the names are those of diffusers' pipeline."""

    transformer: SD3Transformer2DModel
    vae: PocketAutoencoder
    text_encoder: CLIPTextModelWithProjection
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: PreTrainedTokenizerFast
    scheduler: FlowMatchEulerDiscreteScheduler

    def pipeline(self) -> StableDiffusion3Pipeline:
        """As diffusers' pipeline, without T5. Give it `prompt_embeds`: it would pad the text with rows for T5."""
        return StableDiffusion3Pipeline(
            transformer=self.transformer, scheduler=self.scheduler, vae=self.vae,
            text_encoder=self.text_encoder, tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2, tokenizer_2=self.tokenizer,
            text_encoder_3=None, tokenizer_3=None,
        )  # fmt: skip

    def encode_text(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts -> rows [batch, TEXT_ROWS, 256] (both encoders' last layer but one) and pooled [batch, 256]."""
        ids = token_ids(self.tokenizer, texts).to(self.text_encoder.device)
        outputs = [e(ids, output_hidden_states=True) for e in (self.text_encoder, self.text_encoder_2)]
        rows = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return rows, torch.cat([output.text_embeds for output in outputs], dim=-1)


def new_transformer() -> SD3Transformer2DModel:
    """4 joint blocks of width 256 (layers = heads = width / 64, as hosts expect), 64 picture tokens, 10.0 M parameters."""
    side = spec.RESOLUTION // spec.DOWNSCALE
    return SD3Transformer2DModel(
        sample_size=side,
        patch_size=2,
        in_channels=spec.LATENT_CHANNELS,
        out_channels=spec.LATENT_CHANNELS,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=64,
        joint_attention_dim=256,
        caption_projection_dim=256,
        pooled_projection_dim=256,
        pos_embed_max_size=side,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )


def new_text_encoder(activation: str, tokenizer: PreTrainedTokenizerFast) -> CLIPTextModelWithProjection:
    """A CLIP text encoder of 2 layers and width 128; "quick_gelu" as CLIP-L, "gelu" as CLIP-G."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=spec.TEXT_ROWS,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModelWithProjection(config)


def new_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower case; the vocabulary is the caption grammar's."""
    words = set(spec.CLASSES) | set(spec.STYLES) | set(spec.WORDS) | set(spec.SIZES) - {""}
    for phrase in (*spec.BACKGROUNDS.values(), *spec.PLACES):
        words.update(phrase.split())
    vocabulary = {word: i for i, word in enumerate([_START, _END, _UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(_START, vocabulary[_START]), (_END, vocabulary[_END])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_START} $A {_END}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_START,
        eos_token=_END,
        unk_token=_UNKNOWN,
        pad_token=_END,
        model_max_length=spec.TEXT_ROWS,
    )


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=spec.SHIFT)


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Texts -> ids [batch, TEXT_ROWS], padded with <end>, cut where longer."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=spec.TEXT_ROWS, return_tensors="pt"
    ).input_ids


def save_pocket(pocket: Pocket, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes diffusers' folder layout; the weights in `dtype`."""
    pipeline = pocket.pipeline()
    pipeline.to(dtype=dtype)
    pipeline.save_pretrained(folder, safe_serialization=True)


def load_pocket(folder: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> Pocket:
    """The bundled model, or one that `save_pocket` wrote, in eval mode without gradients."""
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"no Pocket SD3 in {folder}: the folder must hold model_index.json and the weights")
    common = {"torch_dtype": dtype, "local_files_only": True}
    parts = {
        "transformer": SD3Transformer2DModel.from_pretrained(folder / "transformer", **common),
        "vae": PocketAutoencoder.from_pretrained(folder / "vae", **common),
        "text_encoder": CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", **common),
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", **common),
    }
    for part in parts.values():
        part.requires_grad_(False).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    return Pocket(tokenizer=tokenizer, scheduler=scheduler, **parts)
