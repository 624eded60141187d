"""Files of SD3 as people have them, read by the host's loader nodes; see test_loaders.py. The last line is JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import torch  # noqa: E402
from comfy.ldm.wan.vae import WanVAE  # noqa: E402
from comfy_extras.nodes_sd3 import TripleCLIPLoader  # noqa: E402
from purecc_pack.nodes.checks import require_vae  # noqa: E402
from purecc_pack.nodes.host import convert, session, text, token_text  # noqa: E402
from purecc_pack.purecc.prompts import Placeholder  # noqa: E402
from sd3_files import (  # noqa: E402
    CHANNELS,
    JOINT,
    POOLED,
    REDUCED,
    SINGLE_FILE,
    VAE,
    prefixed,
    random_values,
    scaled_float8,
    vae_shapes,
    weights,
)
from small_encoders import FILES, PROMPT, Reader, few_layers, written  # noqa: E402

import nodes  # noqa: E402

torch.set_num_threads(1)
SINGLES = {  # layout, whether the transformer is scaled fp8, encoders
    "bf16, with VAE": ("SD3.5 Medium", False, ("clip_l", "clip_g", "t5")),
    "fp8 T5": ("SD3 Medium", False, ("clip_l fp16", "clip_g fp16", "t5 fp8")),
    "scaled fp8": ("SD3.5 Large", True, ("clip_l fp16", "clip_g fp16", "t5 scaled fp8")),
    "no T5": ("SD3 Medium", True, ("clip_l fp16", "clip_g fp16")),
}
SEPARATE = {
    "triple, fp16": ("clip_l fp16", "clip_g fp16", "t5 fp16"),
    "triple, fp8 T5": ("clip_g fp16", "clip_l fp16", "t5 fp8"),
    "triple, scaled fp8 T5": ("t5 scaled fp8", "clip_l fp16", "clip_g fp16"),
    "dual, no T5": ("clip_l fp16", "clip_g fp16"),
    "dual, clip_l and T5": ("clip_l fp16", "t5 scaled fp8"),
    "dual, clip_g and T5": ("t5 fp16", "clip_g fp16"),
    "clip_l alone": ("clip_l fp16",),
    "clip_g alone": ("clip_g fp16",),
    "T5 alone": ("t5 fp8",),
}
few_layers()
reader = Reader()
VAE_VALUES = random_values(vae_shapes(), torch.float16)


def single_files() -> dict:
    """Load Checkpoint: transformer, encoders and, in one of them, the VAE in one file."""
    seen = {}
    for name, (layout, scaled, encoders) in SINGLES.items():
        transformer = weights(REDUCED[layout])
        values = prefixed(scaled_float8(transformer) if scaled else transformer, SINGLE_FILE)
        for file, part in zip(encoders, parts(encoders), strict=True):
            values |= prefixed(FILES[file](), f"text_encoders.{part.replace('t5', 't5xxl')}.transformer.")
        with_vae = "VAE" in name
        values |= prefixed(VAE_VALUES, VAE) if with_vae else {}
        with written("checkpoints", {f"my sd3 {name}": values}) as (file,):
            model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(file)
        seen[name] = {"text": reader.read(clip, parts(encoders)), "model": predicts(model, layout)} | (
            {"vae": encodes(vae)} if with_vae else {}
        )
    return seen


def parts(files: tuple[str, ...]) -> list[str]:
    return [file.split()[0] for file in files]


def diffusion_models() -> dict:
    """Each layout in scaled fp8: as a single file without encoders, and as a file of the diffusion model alone."""
    seen = {}
    for layout, kind in REDUCED.items():
        values = scaled_float8(weights(kind))
        with written("checkpoints", {"scaled": prefixed(values, SINGLE_FILE)}) as (file,):
            model, clip, _ = nodes.CheckpointLoaderSimple().load_checkpoint(file)
        seen[f"{layout}, single file"] = predicts(model, layout) | {"clip": clip is not None}
        with written("diffusion_models", {"scaled": values}) as (file,):
            (model,) = nodes.UNETLoader().load_unet(file, "default")
        seen[f"{layout}, alone"] = predicts(model, layout)
    return seen


def predicts(model, layout: str) -> dict:
    """The copy that trains, against the host's network, and that against the network of the weights before they were scaled."""
    noise = lambda *shape, seed: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    x, rows, pooled = noise(1, CHANNELS, 12, 16, seed=1), noise(1, 90, JOINT, seed=2), noise(1, POOLED, seed=3)
    t, copy = torch.tensor([700.0]), convert.to_diffusers(model)
    run = lambda network: network.model.diffusion_model(x, t, context=rows, y=pooled)  # noqa: E731
    whole = nodes.comfy.sd.load_diffusion_model_state_dict(weights(REDUCED[layout], torch.float32))
    host, wanted = run(model), run(whole)
    return {
        "copy": float((copy(x, rows, pooled, t).sample - host).norm() / host.norm()),
        "whole": float((host - wanted).norm() / wanted.norm()),
        "blocks": convert.configuration(model)["num_layers"],
        "notes": convert.remarks(model, torch.float32),
    }


def separate_files() -> dict:
    """Triple, Dual and Load CLIP, the files in any order."""
    seen, needed = {}, {file for files in SEPARATE.values() for file in files}
    with written("text_encoders", {file: FILES[file]() for file in sorted(needed)}):
        for name, files in SEPARATE.items():
            named = [f"{file}.safetensors" for file in files]
            if len(files) == 3:
                (clip,) = TripleCLIPLoader.execute(*named).result
            elif len(files) == 2:
                (clip,) = nodes.DualCLIPLoader().load_clip(*named, "sd3")
            else:
                (clip,) = nodes.CLIPLoader().load_clip(*named, "sd3")
            seen[name] = reader.read(clip, parts(files))
            if name == "triple, scaled fp8 T5":
                seen["tokens"] = learned_tokens(clip)
            if name == "clip_g alone":
                seen["tokens, no clip_l"] = said(clip)
    return seen


def learned_tokens(clip) -> dict:
    """Input embeddings of the trigger: where they start they change nothing; moved, the host reads what training read."""
    encoder = text.HostTextEncoder(clip, "[V]", Placeholder(1, "dog"))
    tokens, plain = token_text.HostTokenEncoder(encoder, "[V]", 1, torch.device("cpu")), encoder.encode(PROMPT)
    start = tokens.initial()
    far = {name: v + torch.randn(v.shape, generator=torch.Generator().manual_seed(0)) for name, v in start.items()}
    clip_rows = plain.rows[:77, :2048]
    with torch.inference_mode(False), torch.no_grad():
        still, _ = tokens.read(PROMPT, start)
        moved, pooled = tokens.read(PROMPT, far)
    sampled = text.HostTextEncoder(clip, "[V]", Placeholder(1, "dog", far)).encode(PROMPT)
    return {
        "widths": {name: list(v.shape) for name, v in start.items()},
        "size": [tokens.size, 4 * sum(p.numel() for part in tokens.parts.values() for p in part.parameters())],
        "kept": [tokens.kept_by(PROMPT), tokens.kept_by(f"a [V] dog {'in the snow ' * 40}")],  # of one chunk, of two
        "start": float((still - clip_rows).norm() / clip_rows.norm()),
        "moved": float((moved - clip_rows).norm() / clip_rows.norm()),
        "sampled": float((sampled.rows[:77, :2048] - moved).norm() / moved.norm()),
        "pooled": float((sampled.pooled - pooled).norm() / pooled.norm()),
        "t5 stays": torch.equal(sampled.rows[77:], plain.rows[77:]),
    }


def said(clip) -> str:
    try:
        token_text.HostTokenEncoder(
            text.HostTextEncoder(clip, "[V]", Placeholder(1, "dog")), "[V]", 1, torch.device("cpu")
        )
    except ValueError as error:
        return str(error)
    return ""


def vae_file() -> dict:
    """Load VAE: the same VAE in a file of its own."""
    with written("vae", {"my sd3 vae": VAE_VALUES}) as (file,):
        (vae,) = nodes.VAELoader().load_vae(file)
    # Wan's for video: as many channels
    other = WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])
    with written("vae", {"a video model's": other.state_dict()}) as (file,):
        (video,) = nodes.VAELoader().load_vae(file)
    require_vae(vae)
    try:
        require_vae(video)
        said = ""
    except ValueError as error:
        said = str(error)
    return encodes(vae) | {"said of another": said}


def encodes(vae) -> dict:
    """Whether it has the file's values, and the latents of a picture."""
    have = vae.first_stage_model.state_dict()
    latents = session.encode_pictures(vae, torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0)))
    return {
        "same values": have.keys() == VAE_VALUES.keys()
        and all(torch.equal(have[name].float(), value.float()) for name, value in VAE_VALUES.items()),
        "latents": list(latents.shape),
        "finite": bool(latents.isfinite().all()),
        "mean": float(latents.abs().mean()),
    }


with torch.inference_mode():  # as the host runs every node
    checks = (single_files, diffusion_models, separate_files, vae_file)
    print(json.dumps({check.__name__: check() for check in checks} | {"another prompt": reader.another_prompt}))
