"""Save Concept and Load Concept."""

from comfy_api.latest import io

from ..purecc.concept import Concept, load_concept
from .host import when_needed
from .types import CATEGORY, ConceptWire

folders = when_needed("folders")


class SaveConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCSaveConcept",
            display_name="Save Concept",
            category=CATEGORY,
            description="Writes a concept into models/purecc as one .safetensors file: LoRA, embeddings, trigger and figures.",
            inputs=[
                ConceptWire.Input("concept", tooltip="From Pure Learning or Train Extractor."),
                io.String.Input(
                    "name",
                    default="my concept",
                    tooltip="File name; a/b makes a sub-folder. A file of this name is replaced; one of another concept is kept under another name.",
                ),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="Where the file is.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        return folders.not_a_name(folders.concepts_folder(), name) or True

    @classmethod
    def fingerprint_inputs(cls, name: str, **_: object) -> str:
        """Changes with what is in the file: one that was deleted is written again."""
        return folders.content_under(folders.concepts_folder(), name)

    @classmethod
    def execute(cls, concept: Concept, name: str) -> io.NodeOutput:
        path = folders.path_inside(folders.concepts_folder(), name, ".safetensors")
        kept = folders.save_beside_others(path, concept.tensors(), concept.metadata())
        shown = path.relative_to(folders.concepts_folder().parent.parent).as_posix()
        return io.NodeOutput(str(path), ui={"text": ["\n".join([shown, *kept])]})


class LoadConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCLoadConcept",
            display_name="Load Concept",
            category=CATEGORY,
            description="Reads a concept from models/purecc, or an example that comes with the pack.",
            inputs=[io.Combo.Input("name", options=folders.concept_files(), tooltip="A file that Save Concept wrote.")],
            outputs=[
                ConceptWire.Output("concept", display_name="concept", tooltip="For Apply Concept."),
                io.String.Output("trigger", display_name="trigger", tooltip="The word that calls it in prompts."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        if name is not None and folders.concept_file(name) is None:
            return f'There is no concept file "{name}" in models/purecc. Refresh (R) and choose another.'
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        """Changes with what is in the file."""
        return folders.content_of(folders.concept_file(name)) if name is not None else ""

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        concept = load_concept(folders.concept_path(name))
        text = f"{concept.trigger} {concept.class_word} ({concept.role})"
        return io.NodeOutput(concept, concept.trigger, ui={"text": [text]})


NODES = [SaveConcept, LoadConcept]
