"""Memory before, during and after trainings in one host process; see test_memory_returned.py. The last line is JSON."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import comfy.model_management  # noqa: E402
import torch  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402
from purecc_pack.nodes import concept_set as concept_set_node  # noqa: E402
from purecc_pack.nodes.host import apply, pocket, session, text, training  # noqa: E402
from purecc_pack.nodes.types import TrainingData  # noqa: E402
from purecc_pack.purecc.concept_set import build_concept_set  # noqa: E402
from purecc_pack.purecc.pictures import read_folder  # noqa: E402
from purecc_pack.purecc.presets import SHIPPED  # noqa: E402
from purecc_pack.purecc.prompts import Placeholder  # noqa: E402
from purecc_pack.purecc.scenes import with_scenes  # noqa: E402
from purecc_pack.purecc.settings import PureSettings, TrainSettings  # noqa: E402
from purecc_pack.purecc.shapes import Size, fit  # noqa: E402
from purecc_pack.purecc.stages import ExtractorJob, PureJob  # noqa: E402

import nodes  # noqa: E402

torch.set_num_threads(1)
RUNS = Path(tempfile.mkdtemp())  # other tests count the runs of the host's output folder


def bytes_alive() -> int:
    """Of all tensors' storages, each once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu" and thing.layout == torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


moved: set[tuple[str, bool]] = set()  # how the host's models were moved, and whether in its own mode


def watched(name: str):
    move = getattr(ModelPatcher, name)

    def moves(*args, **options):
        moved.add((name, torch.is_inference_mode_enabled()))
        return move(*args, **options)

    return moves


for way in ("load", "partially_load", "unpatch_model"):
    setattr(ModelPatcher, way, watched(way))

own_peak = session.peak
PAPER = PureSettings()
AS_SHIPPED = PureSettings(**SHIPPED, class_steps=1)


def train(model, wire, seed: int, pure: PureSettings = PAPER, stop: Exception | None = None, **changed) -> dict:
    """Both stages, as the nodes do it; `stop`: raised in the middle; its traceback is kept."""
    data = wire.concept_set
    settings, seen = TrainSettings(steps=2, learning_rate=1e-3, seed=seed, **changed), {}
    with session.outside_inference():
        assert training.finished(model, wire, settings) is None  # as the node asks first
        with training.prepared(model, wire, settings) as it:
            job = ExtractorJob(it.network, data, settings, it.scaling, RUNS, it.base)
            list(job)
            seen["concept"] = job.concept
            seen["during"], seen["notes"] = bytes_alive(), it.notes
            seen["told"] = it.told()
            session.peak = lambda device: 146_000_000  # as on a GPU
            seen["told on a GPU"] = replace(it, before=23_000_000).told()
            session.peak = own_peak
            seen["table"] = it.network.transformer.pos_embed.pos_embed_max_size
        data = with_scenes(data, wire.encoder) if pure.scene_anchor else data
        wire = replace(wire, concept_set=data)
        try:
            with training.prepared(model, wire, settings, pure, job.concept) as it:
                job = PureJob(it.network, data, settings, it.scaling, RUNS, it.base, pure, job.concept)
                for _ in job:
                    if stop is not None:
                        raise stop
        except (InterruptedError, RuntimeError) as error:
            seen["error"] = error  # holds the frames, and so the network
    return seen


def sample(model, clip) -> torch.Tensor:
    with torch.inference_mode():
        words = [nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a dog", "")]
        latent = {"samples": torch.zeros(1, 16, 16, 16)}
        return nodes.KSampler().sample(model, 3, 2, 4.0, "euler", "normal", *words, latent)[0]["samples"]


with torch.inference_mode():
    model, clip, vae = pocket.load_pocket()
    pictures = read_folder(concept_set_node.EXAMPLES / "pink poodle")
    with session.outside_inference(), torch.no_grad():
        data = build_concept_set(
            [fit(p.pixels, Size(128, 128)) for p in pictures],
            [p.caption for p in pictures],
            trigger="[V]",
            class_word="dog",
            kind="instance",
            tokens=1,
            encode_picture=lambda pixels: session.encode_pictures(vae, pixels[None])[0],
            text_encoder=lambda word, placeholder: text.HostTextEncoder(clip, word, placeholder),
        )
wire = TrainingData(data, vae, text.HostTextEncoder(clip, data.trigger, Placeholder(1, data.class_word)))
unread = bytes_alive()
with session.outside_inference():
    with_scenes(data, wire.encoder)
before_picture = sample(model, clip)
seen = {"weights": sum(v.nbytes for v in model.model.diffusion_model.state_dict().values()), "before": bytes_alive()}
seen |= {"unread": unread, "texts": wire.encoder.size}
first = train(model, wire, seed=1)
seen |= {name: first[name] for name in ("told", "told on a GPU")}
seen |= {"during": first["during"], "after": bytes_alive(), "notes": first["notes"], "table": first["table"]}
seen["picture is as before"] = torch.equal(sample(model, clip), before_picture)
train(model, wire, seed=2, pure=AS_SHIPPED, modulation_table=True)
seen["after a second run as shipped, with the table of adaLN"] = bytes_alive()
saving = {"checkpointing": True, "frozen_weights": "float8", "stream_blocks": True, "memory": "as set"}
stored = train(model, wire, seed=4, **saving)
seen["during, in float8"] = stored["during"]
seen["after a run in float8, blocks waiting"] = bytes_alive()
kept = train(model, wire, seed=3, stop=InterruptedError("stopped"), modulation_table=True)
seen["after an error that is kept"], seen["stopped"] = bytes_alive(), str(kept["error"])
own_free, calls = session.free_for_training, []
session.free_for_training = lambda: calls.append(own_free())
short = train(model, wire, seed=5, stop=torch.cuda.OutOfMemoryError("no room"))
session.free_for_training = own_free
seen["said of too little memory"], seen["left the device"] = str(short["error"]), len(calls)
seen["notes of a concept"] = {}
for gate in ("off", "picture"):
    with torch.inference_mode():
        applied, _ = apply.apply_concept(model, clip, first["concept"], gate=gate)
    with session.outside_inference(), training.prepared(applied, wire, TrainSettings(steps=1)) as it:
        seen["notes of a concept"][gate] = it.notes
# as Flux's VAE gives them in SD3's scaling
wide = [replace(example, latent=4.2 * example.latent) for example in data.examples]
other = replace(wire, concept_set=replace(data, examples=tuple(wide)))
with session.outside_inference(), training.prepared(model, other, TrainSettings(steps=1)) as it:
    seen["notes of another VAE"] = it.notes
# with the host's CLIPs in the loop
seen["notes of learned tokens"] = train(model, wire, seed=6, embeddings="none", token_embeddings=True)["notes"]
own_plan, own_room, rooms = training.plan, comfy.model_management.get_free_memory, []
training.plan = lambda of, settings, there, begun: rooms.append(there) or own_plan(of, settings, there, begun)
comfy.model_management.get_free_memory = lambda *_, torch_free_too=False: (10**12,) * 2 if torch_free_too else 10**12
settings = TrainSettings(steps=1, embeddings="none", token_embeddings=True)
with session.outside_inference(), training.prepared(model, wire, settings) as it:
    own = it.network.token_encoder.size, comfy.model_management.extra_reserved_memory()
    seen["encoders"] = [rooms[0].free - 10**12 == own[0] > 0, it.before == -own[0], rooms[0].reserved == own[1] > 0]
training.plan, comfy.model_management.get_free_memory = own_plan, own_room
with session.outside_inference():
    session.decode_latents(vae, data.examples[0].latent[None])
compiled = model.clone()  # as other packs compile it, and loaded
compiled.add_object_patch("diffusion_model", torch.compile(model.model.diffusion_model))
with session.as_the_host():
    comfy.model_management.load_models_gpu([compiled])
seen["loaded"] = type(model.model.diffusion_model).__name__
with session.outside_inference(), training.prepared(model, wire, TrainSettings(steps=1)) as it:
    seen["of the same base"] = it.base == first["concept"].base
seen["models stay"] = {}
own_room = training.has_room_for_more
for memory, room in (("auto", True), ("auto", False), ("24 GB", True)):
    calls: list[bool] = []
    training.has_room_for_more = lambda needed, there, room=room: room  # as on a GPU
    session.free_for_training = lambda calls=calls: calls.append(True)
    with session.outside_inference(), training.prepared(model, wire, TrainSettings(steps=1, memory=memory)) as it:
        said = "left where they are, since there is room, ComfyUI's own models" in it.notes
        seen["models stay"][f"{memory}, {room}"] = [it.models_stay, said, len(calls)]
training.has_room_for_more, session.free_for_training = own_room, own_free
own_records, cuda = training.records_on, torch.device("cuda")
torch.version.cuda = torch.version.cuda or "as in a build for NVIDIA's GPUs"
training.records_on = lambda device: False  # as with the host's allocator
said = [training.remark_on_recording(cuda, TrainSettings(record_steps=on)) for on in (True, False)]
said.append(training.remark_on_recording(torch.device("cpu"), TrainSettings()))
training.records_on = lambda device: True
seen["said of recording"] = [*said, training.remark_on_recording(cuda, TrainSettings())]
training.records_on = own_records
seen["moved in the host's mode"] = sorted(name for name, inside in moved if inside)
seen["moved outside of it"] = sorted(name for name, inside in moved if not inside)
print(json.dumps(seen))
