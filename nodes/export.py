"""Export Concept and Import LoRA: plain LoRA files, out and in."""

import re
from dataclasses import replace
from pathlib import Path

from comfy_api.latest import io

from ..purecc.concept import Concept, ForeignLoraError
from ..purecc.export import embedding_file, plain_lora, require_exportable, what_is_lost
from ..purecc.learned_embeds import read_learned_embeds
from ..purecc.prompts import KINDS, words_of
from ..purecc.public_code import PEFT_CONFIG, read_lora
from .checks import require_trigger
from .host import when_needed
from .types import CATEGORY, ConceptWire

NO_TOKEN = "none"

folders, loras, token_text = when_needed("folders"), when_needed("loras"), when_needed("token_text")


class ExportConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCExportConcept",
            display_name="Export Concept (plain LoRA)",
            category=CATEGORY,
            description="Writes a concept's LoRA into models/loras, for the stock Load LoRA and for people without this pack, and its "
            "input embeddings, where it has them, into models/embeddings. Layer-wise embeddings, the trigger and the gate stay behind: "
            "the node and the files say so.",
            inputs=[
                ConceptWire.Input("concept", tooltip="From Pure Learning, Train Extractor or Load Concept."),
                io.Model.Input(
                    "model", tooltip="The model that it was trained on: every key is tried on it before the file is written."
                ),
                io.String.Input(
                    "name", default="my concept",
                    tooltip="File name; a/b makes a sub-folder. A file of this name is replaced; one of something else is kept under another "
                    "name.",
                ),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="The model's text encoders, only for concepts with token_embeddings, and only with T5: the file then has what T5 "
                    "read for the class word too. Without, T5 reads nothing in the embedding's place.",
                ),
            ],
            outputs=[
                io.String.Output("path", display_name="path", tooltip="Where the file is."),
                io.String.Output("lost", display_name="lost", tooltip="What a plain LoRA cannot hold."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        return folders.not_a_name(loras.loras_folder(), name) or True

    @classmethod
    def fingerprint_inputs(cls, name: str, **_: object) -> str:
        """Changes with what is in the LoRA's file: one that was deleted is written again."""
        return folders.content_under(loras.loras_folder(), name)

    @classmethod
    def execute(cls, concept: Concept, model, name: str, clip=None) -> io.NodeOutput:
        require_exportable(concept)
        written, kept, called = [], [], ""
        if concept.token_embeddings:
            folder = loras.embeddings_folder()
            # a prompt's word ends at a space, an embedding's name at a square bracket, and round ones are weights
            file = folders.path_inside(folder, re.sub(r"[\s(),\[\]]", "_", name.strip()), ".safetensors")
            called = file.relative_to(folder).with_suffix("").as_posix()
        if concept.lora is not None:
            tensors, metadata = plain_lora(concept, called)
            path = folders.path_inside(loras.loras_folder(), name, ".safetensors")
            loras.require_loadable(model, concept, tensors)
            kept += folders.save_beside_others(path, tensors, metadata)
            written.append((path, f"loras/{path.relative_to(loras.loras_folder()).as_posix()}"))
        if concept.token_embeddings:
            t5 = None if clip is None else token_text.t5_words(clip, concept.placeholder.words)
            kept += folders.save_beside_others(file, *embedding_file(concept, called, t5))
            written.append((file, f"embeddings/{called}.safetensors"))
        lost = "\n".join(what_is_lost(concept, called))
        shown = "\n".join([*(name for _, name in written), *kept, lost])
        return io.NodeOutput("\n".join(str(path) for path, _ in written), lost, ui={"text": [shown]})


class ImportLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCImportLora",
            display_name="Import LoRA (public code, peft, kohya)",
            category=CATEGORY,
            description="Reads an SD3 LoRA from models/loras as a concept: one that the paper's public code wrote, which ComfyUI's own "
            "loader does not take, any by diffusers or peft, or, with the MODEL connected, of any other trainer. Apply Concept then gives "
            "it a trigger and a gate, and holds what is around it.",
            inputs=[
                io.Combo.Input(
                    "file", options=loras.lora_files(),
                    tooltip="A file in models/loras: pytorch_lora_weights.safetensors or adapter_model.safetensors, under any name.",
                ),
                io.String.Input("trigger", default="[v]", tooltip="The word that is to call it in prompts."),
                io.String.Input(
                    "class_word", default="dog", tooltip="What kind of thing it is, in the word that it was trained with: dog, ..."
                ),
                io.Combo.Input("kind", options=list(KINDS), default="instance", tooltip="A certain thing, or a style."),
                io.Float.Input(
                    "alpha", default=0.0, min=0.0, max=1024.0, step=1.0,
                    tooltip="The LoRA's change is multiplied by alpha / rank. 0: what the file, or adapter_config.json beside it, says, "
                    "else the rank, as the public code has it.",
                ),
                io.Combo.Input(
                    "learned_token", options=[NO_TOKEN, *loras.token_files()], default=NO_TOKEN, optional=True,
                    tooltip="The public code's learned_embeds.pt in models/loras, where its LoRA learnt beside a token of its own: the "
                    "trigger then reads as that token in CLIP-L and CLIP-G. Read as plain tensors; nothing in it is run.",
                ),
                io.Model.Input(
                    "model", optional=True,
                    tooltip="The model that the LoRA is for. Needed where its file names ComfyUI's or kohya's modules: they are found by it.",
                ),
            ],
            outputs=[
                ConceptWire.Output("concept", display_name="concept", tooltip="For Apply Concept and Save Concept."),
                io.String.Output("word", display_name="trigger", tooltip="The word that calls it."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        if file is not None and loras.lora_file(file) is None:
            return f'There is no LoRA "{file}" in models/loras. Refresh (R) and choose another.'
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str, learned_token: str = NO_TOKEN, **_: object) -> str:
        """Changes with what is in the files."""
        lora, token = (None if name is None else loras.lora_file(name) for name in (file, learned_token))
        return folders.content_of(lora, lora and lora.with_name(PEFT_CONFIG), token)

    @classmethod
    def execute(
        cls,
        file: str,
        trigger: str,
        class_word: str,
        kind: str,
        alpha: float,
        learned_token: str = NO_TOKEN,
        model=None,
    ) -> io.NodeOutput:
        require_trigger(trigger)
        trigger, class_word = words_of(trigger, class_word)
        concept, left_out = imported(loras.lora_path(file), trigger, class_word, kind, alpha, model)
        if learned_token != NO_TOKEN:
            rows = read_learned_embeds(loras.lora_path(learned_token)).rows
            concept = replace(concept, token_embeddings=rows)
        lora, parts = concept.lora, []
        if lora:
            parts.append(f"{len(lora.matrices)} modules, rank {lora.rank}, alpha {lora.alpha:g}")
        if concept.token_embeddings:
            parts.append(f"a token in {' and '.join(concept.token_embeddings)}")
        if left_out:
            parts.append(f"left out: {left_out} parts, of text encoders or other than a LoRA of a linear layer")
        text = f"{', '.join(parts)}; its base is not known"
        return io.NodeOutput(concept, concept.trigger, ui={"text": [text]})


def imported(path: Path, trigger: str, class_word: str, kind: str, alpha: float, model: object) -> tuple[Concept, int]:
    """A file as a concept, and how many of its parts are left out. Raises ValueError for one that only a MODEL's names would explain."""
    try:
        return read_lora(path, trigger, class_word, kind, alpha), 0
    except ForeignLoraError as error:
        if model is None:
            raise ValueError(
                f"{error} Connect the MODEL that it is for, where it is another trainer's (kohya, ComfyUI's Train LoRA)."
            ) from error
    lora, left_out = loras.lora_on(model, path, alpha)
    concept = Concept(
        trigger=trigger, class_word=class_word, kind=kind, role="concept", base="", lora=lora, embeddings=None,
        settings={"imported": path.name},
    )  # fmt: skip
    return concept, left_out


NODES = [ExportConcept, ImportLora]
