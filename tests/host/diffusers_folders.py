"""Folders of diffusers through Load Diffusers SD3; see test_diffusers_folders.py. The last line is JSON."""

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
from comfy.model_patcher import ModelPatcher  # noqa: E402
from diffusers import AutoencoderKL  # noqa: E402
from purecc_pack.nodes.host import convert, diffusers_folder, session  # noqa: E402
from purecc_pack.nodes.load import LoadDiffusersSD3  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from sd3_files import REDUCED, cast, weights  # noqa: E402
from small_encoders import CLIP_G, CLIP_L, COLUMNS, T5, Reader, few_layers  # noqa: E402
from torch import Tensor  # noqa: E402

torch.set_num_threads(1)
NAME = "sub/my sd3.5"
ROOT = Path(folder_paths.models_dir) / "diffusers" / NAME
PICTURE = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
few_layers()


def write(part: str, file: str, values: dict[str, Tensor], index: str = "") -> None:
    """`file` in one of the folder's parts; with `index`, in two shards, and their list."""
    folder = ROOT / part
    folder.mkdir(parents=True, exist_ok=True)
    if not index:
        return save_file(values, folder / file)
    names, listed = sorted(values), {}
    for number, keys in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        shard = f"{file.removesuffix('.safetensors')}-0000{number}-of-00002.safetensors"
        save_file({key: values[key].clone().contiguous() for key in keys}, folder / shard)
        listed |= dict.fromkeys(keys, shard)
    write_json(folder / index, {"weight_map": listed})


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_folder() -> tuple[dict[str, Tensor], AutoencoderKL]:
    """A whole one, transformer and T5 in two shards each; the transformer's weights and the VAE, as diffusers has them."""
    native = comfy.sd.load_diffusion_model_state_dict(weights(REDUCED["SD3.5 Medium"], torch.float32))
    state = convert.to_diffusers(native).state_dict()
    weight_file = "diffusion_pytorch_model.safetensors"
    write("transformer", weight_file, state, f"{weight_file}.index.json")
    write("text_encoder", "model.fp16.safetensors", cast(CLIP_L, torch.float16))
    write("text_encoder_2", "model.safetensors", CLIP_G)
    write("text_encoder_2", "model.fp16.safetensors", {name: value * 0 for name, value in CLIP_G.items()})
    write("text_encoder_3", "model.safetensors", T5, "model.safetensors.index.json")
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=32,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    write("vae", weight_file, vae.half().state_dict())
    write_json(ROOT / "scheduler" / "scheduler_config.json", {"shift": 2.5})
    write_json(ROOT / "model_index.json", {"_class_name": "StableDiffusion3Pipeline"})
    return state, vae.float()


def whole() -> dict:
    """Everything that the node gives."""
    state, their_vae = write_folder()
    (folder,) = (one for one in LoadDiffusersSD3.GET_SCHEMA().inputs if one.id == "folder")
    model, clip, vae = LoadDiffusersSD3.execute(NAME).result
    copy = convert.to_diffusers(model).state_dict()
    latents = session.encode_pictures(vae, PICTURE)
    expected = their_vae.encode(PICTURE.movedim(-1, 1) * 2 - 1).latent_dist.mode()
    picture = session.decode_latents(vae, latents)
    drawn = (their_vae.decode(expected).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    patchers = (model, clip.patcher, vae.patcher)
    return {
        "folders": folder.options,
        "loaded anew": [same_weights(one, one.cached_patcher_init) for one in patchers],
        "same weights": copy.keys() == state.keys() and all(torch.equal(copy[k], v) for k, v in state.items()),
        "shift": convert.sampling_shift(model),
        "scaling": convert.latent_scaling(model),
        "text": reader.read(clip, COLUMNS),
        "latents": list(latents.shape),
        "latents apart": float((latents - expected).norm() / expected.norm()),
        "pictures apart": float((picture - drawn).norm() / drawn.norm()),
    }


def same_weights(patcher: ModelPatcher, how: tuple) -> bool:
    """As newer hosts load it for another GPU: weights of its own, with the same values."""
    again, values = how[0](*how[1], disable_dynamic=True).model, patcher.model.state_dict()
    others = again.state_dict()
    return again is not patcher.model and all(torch.equal(value, others[key]) for key, value in values.items())


def t5_variant() -> dict:
    """T5 in shards of float16 alone."""
    shutil.rmtree(ROOT / "text_encoder_3")
    half = cast(T5, torch.float16)
    write("text_encoder_3", "model.fp16.safetensors", half, "model.safetensors.index.fp16.json")
    return reader.read(LoadDiffusersSD3.execute(NAME).result[1], COLUMNS)


def fewer_encoders() -> dict:
    """Without T5, without CLIP-G too, and without any."""
    seen, have = {}, ["clip_l", "clip_g"]
    for part in ("text_encoder_3", "text_encoder_2", "text_encoder"):
        shutil.rmtree(ROOT / part)
        clip = LoadDiffusersSD3.execute(NAME).result[1]
        seen[f"no {part}"] = reader.read(clip, have) if clip is not None else "no CLIP"
        have = have[:1]
    return seen


def refusals() -> dict:
    """What it says of folders that it cannot take."""
    seen = {"outside": refused("../checkpoints"), "a shard of a variant is missing": variant_in_part()}
    second = ROOT / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    whole_file = second.read_bytes()
    second.write_bytes(whole_file[: len(whole_file) // 2])
    seen["a download that broke off"] = refused(NAME)
    second.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    seen["a pointer in its place"] = refused(NAME)
    second.unlink()
    seen["a shard is missing"] = refused(NAME)
    for file in (ROOT / "transformer").glob("*"):
        file.unlink()
    (ROOT / "transformer" / "diffusion_pytorch_model.bin").touch()
    seen["bin files"] = refused(NAME)
    write_json(ROOT / "model_index.json", {"_class_name": "FluxPipeline"})
    seen["another pipeline"] = refused(NAME)
    shutil.rmtree(ROOT)
    return seen


def linked() -> list[str]:
    """What is listed where a folder that lies elsewhere is linked into models/diffusers."""
    link = ROOT.parents[1] / "linked"
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


def variant_in_part() -> str:
    """The error where of a T5 in float16 the first of two files is there, beside its list."""
    part = ROOT / "text_encoder_3"
    names = [f"model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    write("text_encoder_3", names[0], {"encoder.final_layer_norm.weight": torch.ones(8)})
    index = {"encoder.final_layer_norm.weight": names[0], "shared.weight": names[1]}
    write_json(part / "model.safetensors.index.fp16.json", {"weight_map": index})
    try:
        return refused(NAME)
    finally:
        shutil.rmtree(part)


def refused(name: str) -> str:
    try:
        LoadDiffusersSD3.execute(name)
    except ValueError as error:
        return str(error)
    return "was taken"


with torch.inference_mode():  # as the host runs every node
    reader = Reader()
    checks = (whole, t5_variant, fewer_encoders, refusals, linked)
    print(json.dumps({check.__name__: check() for check in checks}))
