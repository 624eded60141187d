"""Text encoders as people have them, and diffusers folders; see test_loaders.py. The last line is JSON."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from diffusers import AutoencoderKL  # noqa: E402
from purecc_pack.nodes.host import convert, diffusers_folder, session, text, token_text  # noqa: E402
from purecc_pack.purecc.concept import T5_SLOT  # noqa: E402
from purecc_pack.purecc.prompts import Placeholder  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from sd3_files import (  # noqa: E402
    REDUCED,
    SINGLE_FILE,
    T5_SMALL,
    clip_shapes,
    prefixed,
    random_text_weights,
    scaled_float8,
    t5_shapes,
    weights,
)

torch.set_num_threads(1)
KIND = REDUCED["SD3.5 Medium"]
LAYERS = 3  # of each CLIP
SMALL = {
    "clip_l_model_config": {"num_hidden_layers": LAYERS},
    "clip_g_model_config": {"num_hidden_layers": LAYERS},
    "t5xxl_model_config": T5_SMALL,
}
CLIP_L, CLIP_G = random_text_weights(clip_shapes(768, LAYERS)), random_text_weights(clip_shapes(1280, LAYERS))
CLIP_G["text_model.encoder.layers.30.mlp.fc1.weight"] = torch.zeros(1, 1280)  # by which the host knows it
T5 = random_text_weights(t5_shapes())
PROMPT = "a [V] dog on a bench"


def read(clip) -> dict:
    """What training reads of a prompt with the trigger."""
    encoded = text.HostTextEncoder(clip, "[V]", Placeholder(1, "dog")).encode(PROMPT)
    plain = text.HostTextEncoder(clip, "[V]", Placeholder(1, "dog")).encode("a cat on a bench")
    marks = encoded.marks
    return {
        "rows": list(encoded.rows.shape),
        "pooled": len(encoded.pooled),
        "clip marks": int(((marks > 0) & (marks <= T5_SLOT)).sum()),
        "t5 marks": int((marks > T5_SLOT).sum()),
        "finite": bool(encoded.rows.isfinite().all() and encoded.pooled.isfinite().all()),
        "reads": float((encoded.rows - plain.rows).norm() / plain.rows.norm()),
    }


def single_files() -> dict:
    """MODEL and CLIP of one file: with T5 in bfloat16, in scaled float8, and without."""
    seen = {}
    for name, t5 in (("bfloat16", T5), ("scaled float8", scaled_float8(T5)), ("no T5", None)):
        encoders = {"clip_l": CLIP_L, "clip_g": CLIP_G} | ({"t5xxl": t5} if t5 else {})
        values = prefixed(weights(KIND), SINGLE_FILE)
        for part, tensors in encoders.items():
            values |= prefixed(tensors, f"text_encoders.{part}.transformer.")
        model, clip, _, _ = comfy.sd.load_state_dict_guess_config(values, output_vae=False, te_model_options=SMALL)
        seen[name] = read(clip) | {"blocks": convert.configuration(model)["num_layers"]}
    return seen


def separate_files() -> dict:
    """As TripleCLIPLoader, DualCLIPLoader and CLIPLoader give them to the host."""
    sets = {
        "triple": [CLIP_L, CLIP_G, T5], "triple, scaled float8": [CLIP_L, CLIP_G, scaled_float8(T5)],
        "dual": [CLIP_L, CLIP_G], "dual, clip_g and t5": [CLIP_G, T5], "clip_g alone": [CLIP_G], "t5 alone": [T5],
    }  # fmt: skip
    load = lambda parts: comfy.sd.load_text_encoder_state_dicts(  # noqa: E731
        [dict(part) for part in parts],
        None,
        comfy.sd.CLIPType.SD3,
        SMALL | {"model_config": {"num_hidden_layers": LAYERS}},
    )
    clips = {name: load(parts) for name, parts in sets.items()}
    seen = {name: read(clip) for name, clip in clips.items()}
    return seen | {
        "tokens": learned_tokens(clips["triple, scaled float8"]),
        "tokens, no clip_l": said(clips["clip_g alone"]),
    }


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
        "start": float((still - clip_rows).norm() / clip_rows.norm()),
        "moved": float((moved - clip_rows).norm() / clip_rows.norm()),
        "sampled": float((sampled.rows[:77, :2048] - moved).norm() / moved.norm()),
        "pooled": float((sampled.pooled - pooled).norm() / pooled.norm()),
        "t5 stays": torch.equal(sampled.rows[77:], plain.rows[77:]),
        "t5 words": list(token_text.t5_words(clip, "dog").shape),
    }


def said(clip) -> str:
    try:
        token_text.HostTokenEncoder(
            text.HostTextEncoder(clip, "[V]", Placeholder(1, "dog")), "[V]", 1, torch.device("cpu")
        )
    except ValueError as error:
        return str(error)
    return ""


def write_folder(root: Path) -> torch.nn.Module:
    """A diffusers folder: transformer in two shards, CLIP-L at full size, SD3's VAE, a scheduler of its own shift."""
    native = comfy.sd.load_diffusion_model_state_dict(weights(KIND, torch.float32))
    transformer = convert.to_diffusers(native)
    for part in ("transformer", "text_encoder", "vae", "scheduler"):
        (root / part).mkdir(parents=True)
    state = transformer.state_dict()
    names = sorted(state)
    shards = {"1": names[: len(names) // 2], "2": names[len(names) // 2 :]}
    index = {}
    for number, keys in shards.items():
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({key: state[key].clone().contiguous() for key in keys}, root / "transformer" / file)
        index |= dict.fromkeys(keys, file)
    write_json(root / "transformer" / "diffusion_pytorch_model.safetensors.index.json", {"weight_map": index})
    save_file(random_text_weights(clip_shapes(768, 12)), root / "text_encoder" / "model.fp16.safetensors")
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=32,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    save_file(vae.half().state_dict(), root / "vae" / "diffusion_pytorch_model.safetensors")
    write_json(root / "scheduler" / "scheduler_config.json", {"shift": 2.5})
    write_json(root / "model_index.json", {"_class_name": "StableDiffusion3Pipeline"})
    return transformer


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def folder() -> dict:
    """The loader node's work, and what it says of folders that it cannot take."""
    root = Path(folder_paths.models_dir) / "diffusers" / "sub" / "my sd3.5"
    transformer = write_folder(root)
    seen: dict = {"folders": diffusers_folder.folders()}
    model, clip, vae = diffusers_folder.load("sub/my sd3.5")
    copy = convert.to_diffusers(model).state_dict()
    seen["same weights"] = all(torch.equal(copy[k], v) for k, v in transformer.state_dict().items())
    seen["shift"] = convert.sampling_shift(model)
    seen["scaling"] = convert.latent_scaling(model)
    seen["text"] = read(clip)
    seen["latents"] = list(session.encode_pictures(vae, torch.rand(1, 64, 64, 3)).shape)
    seen["outside"] = refused("../checkpoints")
    seen["linked"] = linked(root)
    seen["a shard of a variant is missing"] = variant_in_part(root)
    (root / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    seen["a shard is missing"] = refused("sub/my sd3.5")
    for file in (root / "transformer").glob("*"):
        file.unlink()
    (root / "transformer" / "diffusion_pytorch_model.bin").touch()
    seen["bin files"] = refused("sub/my sd3.5")
    write_json(root / "model_index.json", {"_class_name": "FluxPipeline"})
    seen["another pipeline"] = refused("sub/my sd3.5")
    shutil.rmtree(root)
    return seen


def linked(root: Path) -> list[str]:
    """What is listed where a folder that lies elsewhere is linked into models/diffusers."""
    link = root.parents[1] / "linked"
    with tempfile.TemporaryDirectory() as elsewhere:
        write_json(Path(elsewhere) / "model_index.json", {})
        try:
            link.symlink_to(elsewhere, target_is_directory=True)
        except OSError:  # Windows, without the right to make links
            return ["linked"]
        try:
            return diffusers_folder.folders()
        finally:
            link.unlink()


def variant_in_part(root: Path) -> str:
    """The error where of a T5 in float16 the first of two files is there, beside its list."""
    part = root / "text_encoder_3"
    part.mkdir()
    names = [f"model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    save_file({"encoder.final_layer_norm.weight": torch.ones(8)}, part / names[0])
    index = {"encoder.final_layer_norm.weight": names[0], "shared.weight": names[1]}
    write_json(part / "model.safetensors.index.fp16.json", {"weight_map": index})
    try:
        return refused("sub/my sd3.5")
    finally:
        shutil.rmtree(part)


def refused(name: str) -> str:
    try:
        diffusers_folder.load(name)
    except ValueError as error:
        return str(error)
    return "was taken"


with torch.inference_mode():  # as the host runs every node
    print(json.dumps({check.__name__: check() for check in (single_files, separate_files, folder)}))
