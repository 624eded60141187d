"""session.py: what training nodes need of the host."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from comfy.ldm.models.autoencoder import AutoencoderKL
from common import Result, check, host, random_concept
from PIL import Image
from purecc_pack.nodes import follow
from purecc_pack.nodes.export import ExportConcept, ImportLora
from purecc_pack.nodes.files import LoadConcept, SaveConcept
from purecc_pack.nodes.host import folders as host_folders
from purecc_pack.nodes.host import loras, page, session, text, training
from purecc_pack.purecc.job import FinishedJob
from purecc_pack.purecc.memory import is_out_of_memory
from purecc_pack.purecc.prompts import Placeholder
from purecc_pack.purecc.runs import Run
from purecc_pack.purecc.settings import TrainSettings
from server import PromptServer

from benchmarks.live_bytes import LiveBytes


@check
def session_of_training() -> Result:
    """Gradients, pictures, progress, interruption."""
    result, vae = Result(), host()[2]
    images = torch.rand(2, 128, 128, 4)
    with session.outside_inference():
        weight = torch.nn.Parameter(torch.ones(()))
        latents = session.encode_pictures(vae, images)
        (weight * latents).sum().backward()
        result.sentences["latents can be trained on"] = weight.grad is not None and not latents.is_inference()
        shown = session.decode_latents(vae, latents)
    result.sentences["pictures come back"] = shown.shape == (2, 128, 128, 3) and float(shown.max()) <= 1
    result.sentences["as asked"] = session.training_dtype(wanted="bfloat16") == torch.bfloat16
    result.sentences["float32 on a CPU"] = session.training_dtype() == torch.float32
    for option, dtype in {
        "fp16_unet": torch.float32,
        "fp8_e4m3fn_unet": torch.float32,
        "bf16_unet": torch.bfloat16,
    }.items():
        setattr(args, option, True)
        found = session.training_dtype()
        setattr(args, option, False)
        result.sentences[f"--{option} trains in {found}"] = found == dtype

    sent: list[tuple] = []
    server, before = PromptServer.instance, PromptServer.instance.send_sync
    server.send_sync = lambda *args: sent.append(args)
    bars: list[tuple] = []
    hook = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(lambda *args, **kwargs: bars.append((*args, kwargs["node_id"])))
    try:
        page.Progress("5:2", 10).step(3, "loss 0.5", Image.new("RGB", (64, 64)))
        server.last_node_id = "7"
        page.tell_in_node("careful")
        page.tell_below_node("no trigger")
        page.warn_of_mistake("another CLIP")
    finally:
        server.send_sync = before
        comfy.utils.set_progress_bar_global_hook(hook)
    result.sentences[f"bar {bars}"] = bars[0][:2] == (3, 10) and bars[0][2][0] == "JPEG" and bars[0][3] == "5:2"
    result.sentences[f"text {sent[0]}"] = is_event(sent[0], "purecc.text", node="5:2", text="loss 0.5")
    result.sentences[f"in its own node {sent[1]}"] = is_event(sent[1], "purecc.text", node="7", text="careful")
    result.sentences[f"below another's {sent[2]}"] = sent[2][1].endswith(b"7no trigger")
    result.sentences[f"over the canvas {sent[3]}"] = is_event(sent[3], "purecc.mistake", text="another CLIP")

    session.check_interrupted()
    comfy.model_management.interrupt_current_processing(True)
    try:
        session.check_interrupted()
    except comfy.model_management.InterruptProcessingException:
        result.sentences["cancel is the host's own exception"] = True
    else:
        result.sentences["cancel raised nothing"] = False
    session.free_for_training()
    errors = torch.AcceleratorError("CUDA error: out of memory"), torch.AcceleratorError("CUDA error: unknown")
    result.sentences["out of memory, told late"] = [is_out_of_memory(one) for one in errors] == [True, False]
    result.sentences["no model of the host is left loaded"] = not comfy.model_management.current_loaded_models
    return result


def is_event(sent: tuple, name: str, **fields: str) -> bool:
    """And the prompt's id, by which a page knows the workflow."""
    return sent[0] == name and sent[1] == {
        **fields,
        "prompt_id": getattr(PromptServer.instance, "last_prompt_id", None),
    }


@check
def folders() -> Result:
    """Files stay where they belong."""
    result = Result()
    folder = host_folders.concepts_folder()
    (folder / "sub").mkdir(exist_ok=True)
    for name in ("a.safetensors", "b.txt", "sub/c.safetensors"):
        (folder / name).touch()
    files = host_folders.concept_files()
    own = {f for f in files if not f.startswith(("tests/", "example "))}  # the pack's example is listed too
    result.sentences[f"concept files {files}"] = own == {"a.safetensors", "sub/c.safetensors"}
    result.sentences["their paths"] = host_folders.concept_path("a.safetensors") == folder / "a.safetensors"
    for name in ("sub/c.safetensors", "sub\\c.safetensors"):  # as a workflow of Windows has it
        result.sentences[f"{name}"] = host_folders.concept_path(name) == folder / "sub" / "c.safetensors"
        result.sentences[f"{name} may be loaded"] = LoadConcept.validate_inputs(name) is True
        result.sentences[f"{name} is watched"] = LoadConcept.fingerprint_inputs(name) != ""
    (loras.loras_folder() / "sub").mkdir(exist_ok=True)
    (loras.loras_folder() / "sub" / "d.safetensors").touch()
    for name in ("sub/d.safetensors", "sub\\d.safetensors"):
        result.sentences[f"{name}"] = loras.lora_path(name) == loras.loras_folder() / "sub" / "d.safetensors"
        result.sentences[f"{name} may be imported"] = ImportLora.validate_inputs(name) is True
        result.sentences[f"{name} is watched"] = ImportLora.fingerprint_inputs(name) != "[]"
    for trigger in ("(ohwx)", "a\\b"):
        taken = lambda trigger=trigger: ImportLora.execute("sub/d.safetensors", trigger, "dog", "instance", 0.0)  # noqa: E731
        result.raises(f"the trigger {trigger}", "which prompts read as weights", taken)
    for trigger in ("{V}", "v//x", "/*z*/", "v\ud800", "a\0b"):
        taken = lambda trigger=trigger: ImportLora.execute("sub/d.safetensors", trigger, "dog", "instance", 0.0)  # noqa: E731
        result.raises(f"the trigger {ascii(trigger)}", "which the page takes out of prompts", taken)
    result.raises(
        "a combo's value is checked", "no concept", lambda: host_folders.concept_path("../secret.safetensors")
    )
    output = Path(folder_paths.get_output_directory())
    result.sentences["runs are in the output folder"] = output in host_folders.runs_folder().parents

    with tempfile.TemporaryDirectory() as outside:
        inside = host_folders.path_inside
        result.sentences["suffix"] = inside(folder, "dog", ".safetensors") == folder / "dog.safetensors"
        result.sentences["no suffix twice"] = (
            inside(folder, "x.safetensors", ".safetensors") == folder / "x.safetensors"
        )
        result.sentences["a dot in the name"] = inside(folder, "v1.2", ".safetensors") == folder / "v1.2.safetensors"
        result.sentences["sub-folder"] = inside(folder, "sub\\dog") == folder / "sub" / "dog"
        for name in (
            "../x",
            "a/../../x",
            "/etc/x",
            "C:\\x",
            "C:x",
            "",
            "  ",
            "\\\\server\\x",
            "a\0b",
            "..",
            "con",
            "a/Nul.x",
            "a\tb",
            90 * "日",
        ):
            result.raises(f"{name!r}", "is not a name", lambda name=name: inside(folder, name, ".safetensors"))
        link = folder / "link"
        link.symlink_to(outside)
        result.raises("a link", "leads out", lambda: inside(folder, "link/x"))
        link.unlink()
    return result


@check
def files_of_others() -> Result:
    """What another concept, or another trainer, has under a name is not lost to a save."""
    result, model = Result(), host()[0]
    dog, cat = random_concept(seed=1), replace(random_concept(seed=2), class_word="cat")
    for save, folder in (
        (lambda concept: SaveConcept.execute(concept, "mine"), host_folders.concepts_folder()),
        (lambda concept: ExportConcept.execute(concept, model, "mine"), loras.loras_folder()),
    ):
        path, kept = folder / "mine.safetensors", folder / "mine_kept_1.safetensors"
        first = save(dog).ui["text"][0]
        content = path.read_bytes()
        again = save(dog).ui["text"][0]
        result.sentences[f"{folder.name}: the same twice, {again}"] = first == again and not kept.exists()
        told = save(cat).ui["text"][0]
        result.sentences[f"{folder.name}: the other's is kept"] = kept.read_bytes() == content != path.read_bytes()
        result.sentences[f"{folder.name}: {told}"] = "it is now mine_kept_1.safetensors" in told
        path.unlink(), kept.unlink()
    return result


@check
def reports() -> Result:
    """Of a run whose measures were lost, and of one that left the base behind."""
    result = Result()
    figures = {"concept_loss": 0.3, "drift_base": 0.1, "drift_null": 0.1}
    lost = {"concept_share": 0.2, "drift_base": 0.1, "drift_null": 0.1}  # as Pure Learning with its anchors has it
    settings = TrainSettings(steps=3)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), "pure", {"steps": 3})

        def said(summary: dict[str, float]) -> str:
            return follow.report("PureCC", FinishedJob(run, settings, replace(random_concept(), summary=summary)))

        result.sentences[said(lost)] = "no longer on the disk" in said(lost)
        result.sentences[said(figures)] = "L_CC 0.3000" in said(figures) and "that is far" not in said(figures)
        far = said({**figures, "drift_base": 0.9})
        result.sentences[far] = "that is far" in far and "Lower the learning rates" in far
    return result


@check
def cancel_while_it_encodes() -> Result:
    result, (_, clip, vae) = Result(), host()
    encoder = text.HostTextEncoder(clip, "[V]", Placeholder(1, "dog"))
    for what, work in (
        ("texts", lambda: encoder.encode("a [V] dog")),
        ("pictures", lambda: session.encode_pictures(vae, torch.rand(1, 64, 64, 3))),
    ):
        comfy.model_management.interrupt_current_processing(True)
        try:
            work()
            result.sentences[what] = False
        except comfy.model_management.InterruptProcessingException:
            result.sentences[what] = True
        finally:
            comfy.model_management.interrupt_current_processing(False)
    return result


@check
def memory_of_a_vae() -> Result:
    """What is told of encoding and decoding against the bytes alive in them: SD3's own VAE, with random weights."""
    result = Result()
    shape = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    levels = {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    own = AutoencoderKL(embed_dim=16, ddconfig=shape | levels)
    vae = comfy.sd.VAE(sd=own.state_dict())
    model, side = vae.first_stage_model.to(vae.vae_dtype), 256
    for alive, work, given in (
        (training._ENCODING, model.encode, (1, 3, side, side)),
        (training._DECODING, model.decode, (1, 16, side // 8, side // 8)),
    ):
        told = training.vae_bytes(vae, (side, side), alive) - vae.model_size()
        with torch.no_grad(), LiveBytes() as live:
            work(torch.zeros(given, dtype=vae.vae_dtype))
        result.sentences[f"{work.__name__}: told {told}, alive {live.peak}"] = abs(told / live.peak - 1) < 0.1
    weights = sum(p.nbytes for p in model.parameters())
    result.sentences[f"weights {weights}"] = abs(vae.model_size() / weights - 1) < 0.1
    line = training.encoding(host()[1], vae, side, side)
    result.sentences[line] = "then VAE 436 MB (ComfyUI makes" in line and "text encoders" in line
    return result
