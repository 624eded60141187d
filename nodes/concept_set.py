"""Concept Set: pictures, captions and words, encoded once for both stages."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..purecc.concept_set import ConceptSet, build_concept_set
from ..purecc.encoding import TextEncoder
from ..purecc.pictures import (
    SUFFIXES,
    Picture,
    masks_for_all,
    picture_files,
    read_folder,
    require_masks,
    three_channels,
    unread_files,
)
from ..purecc.prompts import KINDS, Kind, Placeholder, words_of
from ..purecc.public_code import csv_file, csv_files, read_csv
from ..purecc.shapes import SHAPES, Size, described
from ..purecc.templates import CAPTIONS, TEMPLATES, Captions, require_templates
from .checks import require_clip, require_trigger, require_vae
from .host import when_needed
from .types import CATEGORY, Data, TrainingData

encoders, folders, page = when_needed("encoders"), when_needed("folders"), when_needed("page")
session, text, training = when_needed("session"), when_needed("text"), when_needed("training")

WIRED = "(pictures from the input)"
EXAMPLES = Path(__file__).parent.parent / "workflows" / "pictures"
_EXAMPLE = "example: "
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


class ConceptSetNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PureCCConceptSet",
            display_name="Concept Set (personalize, customize)",
            category=CATEGORY,
            description="The pictures that show the concept and what is said about them. Texts and pictures are encoded here, "
            "once, by your own CLIP and VAE.",
            is_input_list=True,
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="Text encoders of the model that will be trained; the texts are encoded with them, once.",
                ),
                io.Vae.Input("vae", tooltip="Its VAE; the pictures are encoded with it, once."),
                io.Combo.Input(
                    "folder",
                    options=[WIRED, *_choices()],
                    default=WIRED,
                    tooltip="Where the pictures are: the picture input of this node, a folder inside ComfyUI's input folder, or an "
                    "example of the pack. 3 to 5 pictures are enough. dog.txt beside dog.png is its caption, dog.mask.png its mask. A "
                    "csv (image_path, prompt) of the paper's public code is read too.",
                ),
                io.String.Input(
                    "trigger",
                    default="ohwx",
                    tooltip="The word that will call the concept in prompts. Take one that prompts do not use otherwise.",
                ),
                io.String.Input(
                    "class_word",
                    default="dog",
                    tooltip="What kind of thing it is, in one word that the model knows: dog, backpack, ... "
                    'For a style write "style".',
                ),
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default="instance",
                    tooltip='instance: one certain thing, "a [V] dog". style: a way of drawing, "... in [V] style".',
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip="One line for each picture, with the class word in it: what is to be seen, so that it is not taken for the "
                    "concept. Used where a picture has no caption file. Empty: the trigger and the class word alone. Or templates, "
                    "one a line, where texts says so.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=16,
                    tooltip="Pixels; pictures are scaled to about this number squared, in the shape chosen below. 512 for SD3.5, "
                    "128 for the Pocket Model. Twice as much costs four times the time.",
                ),
                io.Int.Input(
                    "tokens",
                    default=1,
                    min=1,
                    max=8,
                    tooltip="Embeddings that the trigger has in each block. 1 is the paper's; more (2 to 4) hold more detail.",
                ),
                io.Image.Input(
                    "pictures",
                    optional=True,
                    tooltip="3 to 5 pictures that show the concept, a batch or a list of any sizes. Used where folder says so. With a list "
                    "of texts wired to captions, each has its own.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One for each picture: 1 on the concept, 0 elsewhere. Compare measures with them, and Pure Learning leaves "
                    "what is outside to the base model; without them it looks for the concept itself.",
                ),
                # new widgets go last, and may be missing: workflows keep widget values by their place
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default=SHAPES[0],
                    optional=True,
                    tooltip="Shape of the pictures in training; what does not fit is cut off at the edges, masks with it. buckets: the "
                    "nearest of some common formats, upright or lying (a good choice); a batch holds pictures of one bucket. own "
                    "shape: cuts least, but pictures of different shapes share no batch. square: all alike.",
                ),
                io.Boolean.Input(
                    "flip",
                    default=False,
                    optional=True,
                    tooltip="Shows every picture mirrored too, half of the time: as if there were twice as many. Off is the paper's. "
                    "Leave it off where left and right matter: lettering and asymmetric subjects (a parting, a logo, a scar) suffer.",
                ),
                io.Combo.Input(
                    "texts",
                    options=list(CAPTIONS),
                    default=CAPTIONS[0],
                    optional=True,
                    tooltip="What is said about the pictures. captions: each has its own (the paper, and the best where they are true). "
                    "bundled templates: 16 sentences that fit any picture, one drawn for each at each step. own templates: the lines "
                    'of captions, as "a photo of a {concept}". With templates caption files are left aside.',
                ),
            ],
            outputs=[
                Data.Output("data", display_name="data", tooltip="For Train Extractor and Pure Learning."),
                io.String.Output("summary", display_name="summary", tooltip="The texts that will be trained with."),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: list[str], trigger: list[str], class_word: list[str]) -> bool | str:
        if trigger[0] is not None and class_word[0] is not None:  # as a wire's words, which are not known yet
            try:
                require_trigger(trigger[0])
                words_of(trigger[0], class_word[0])
            except ValueError as error:
                return str(error)
        if folder[0] is not None and folder[0] != WIRED and not folder_path(folder[0]).is_dir():
            return f'There is no folder "{folder[0]}". Put it into ComfyUI\'s input folder and refresh (R).'
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: list[str], **_: object) -> str:
        """Changes with the folder's files."""
        path = folder_path(folder[0]) if folder[0] and folder[0] != WIRED else None
        if path is None or not path.is_dir():
            return ""
        files = path.rglob("*") if csv_files(path) else path.iterdir()  # a csv may name pictures in sub-folders
        return repr(sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files))

    @classmethod
    def execute(
        cls, clip, vae, folder, trigger, class_word, kind, captions, resolution, tokens, pictures=None, masks=None,
        shape=SHAPES[:1], flip=(False,), texts=CAPTIONS[:1],
    ) -> io.NodeOutput:  # fmt: skip
        require_clip(clip[0])
        require_vae(vae[0])
        require_trigger(trigger[0])
        vae, path = vae[0], None if folder[0] == WIRED else folder_path(folder[0])
        if path is not None and (pictures or masks):
            raise ValueError(
                f'Pictures or masks are connected, and folder says "{folder[0]}". Choose "{WIRED}" in folder to train on what is connected, or '
                "take the wires off."
            )
        lines = lines_of(captions)
        templates = templates_of(texts[0], lines, kind[0])
        readers = []

        def encoder_of(word: str, placeholder: Placeholder) -> TextEncoder:
            readers.append(text.HostTextEncoder(clip[0], word, placeholder))
            return readers[0]

        def fitted(picture: Picture) -> Picture:
            return picture.fitted(resolution[0], shape[0])

        with session.outside_inference(), torch.no_grad():
            if path is None:
                shown = [fitted(picture) for picture in wired(pictures, masks)]
            else:
                shown = masks_for_all(read(path, trigger[0], class_word[0], fitted))
            require_masks(shown)
            largest = max((p.pixels.shape[:2] for p in shown), key=lambda size: size[0] * size[1])
            page.tell_in_node(training.encoding(clip[0], vae, *largest))
            concept_set = build_concept_set(
                [p.pixels for p in shown],
                captions_of(shown, [] if templates else lines),
                trigger=trigger[0],
                class_word=class_word[0],
                kind=kind[0],
                tokens=tokens[0],
                encode_picture=lambda pixels: session.encode_pictures(vae, pixels[None])[0],
                text_encoder=encoder_of,
                autoencoder=encoders.autoencoder(vae),
                masks=[p.mask for p in shown if p.mask is not None],
                templates=templates,
                flip=flip[0],
                stated=[p.texts for p in shown],
            )
        summary = describe(concept_set, shown)
        unread = {*unread_files(path)} - {p.name for p in shown} if path is not None else ()
        if unread:
            summary += f"\nleft out, for only {', '.join(SUFFIXES)} are read: {', '.join(sorted(unread))}"
        preview = ui.PreviewText(summary)
        return io.NodeOutput(TrainingData(concept_set, vae, readers[0]), summary, ui=preview)


def _choices() -> list[str]:
    """Folders with pictures: the pack's examples, then those in the host's input folder."""
    examples = [_EXAMPLE + p.name for p in sorted(EXAMPLES.iterdir()) if p.is_dir()] if EXAMPLES.is_dir() else []
    return examples + [p.name for p in sorted(folders.input_folder().iterdir()) if p.is_dir() and _holds_pictures(p)]


def read(folder: Path, trigger: str, class_word: str, prepare: Callable[[Picture], Picture]) -> list[Picture]:
    """A folder's pictures, prepared one by one: those that a csv in it names, or all."""
    csv = csv_file(folder) if folder.is_dir() else None
    return read_csv(csv, trigger, class_word, prepare) if csv else read_folder(folder, prepare)


def _holds_pictures(folder: Path) -> bool:
    try:
        return bool(picture_files(folder) or csv_files(folder) or unread_files(folder))  # the last to be told of
    except OSError:  # a folder that may not be read must not take the node down
        return False


def folder_path(name: str) -> Path:
    """The folder of a combo entry. Raises ValueError for a name that leads elsewhere."""
    root, name = (EXAMPLES, name[len(_EXAMPLE) :]) if name.startswith(_EXAMPLE) else (folders.input_folder(), name)
    if name != Path(name).name or name in ("", ".", ".."):
        raise ValueError(f'"{name}" is not a folder inside "{root.name}". Choose one of the list, or press R.')
    return root / name


def wired(pictures: list[Tensor] | None, masks: list[Tensor] | None) -> list[Picture]:
    """The pictures of the node's inputs, batches taken apart; masks by order."""
    pixels = [three_channels(p).clone() for batch in pictures or [] for p in batch]
    flat = [m.float().clone() for batch in masks or [] for m in (batch if batch.ndim == 3 else batch[None])]
    if not pixels:
        raise ValueError("There are no pictures. Connect 3 to 5 pictures of the concept, or choose a folder.")
    if flat and len(flat) != len(pixels):
        raise ValueError(f"Pictures: {len(pixels)}, masks: {len(flat)}. Connect one mask for each, or none.")
    for i, (picture, mask) in enumerate(zip(pixels, flat, strict=False), 1):
        if mask.any() and mask.shape != picture.shape[:2]:  # an empty one is refused with the reason, whatever its size
            (high, wide), (mask_high, mask_wide) = picture.shape[:2], mask.shape
            raise ValueError(
                f"Picture {i} is {wide} x {high} px, its mask {mask_wide} x {mask_high}. Scale the mask to the picture's size."
            )
    return [Picture(p, "", flat[i] if flat else None) for i, p in enumerate(pixels)]


def lines_of(captions: list[str]) -> list[str]:
    """The lines of the widget; or, of a wire that brings a list, a line for each of its texts."""
    lines = captions if len(captions) > 1 else [line for line in captions[0].splitlines() if line.strip()]
    return [" ".join(line.split()) for line in lines]


def captions_of(pictures: list[Picture], lines: list[str]) -> list[str]:
    """Each picture's caption file, else its line of the widget, else nothing."""
    if all(p.caption for p in pictures):
        lines = []
    if lines and len(lines) != len(pictures):
        raise ValueError(f"Pictures: {len(pictures)}, captions: {len(lines)}. Write one line for each picture.")
    return [p.caption or (lines[i] if lines else "") for i, p in enumerate(pictures)]


def templates_of(texts: Captions, lines: list[str], kind: Kind) -> tuple[str, ...]:
    """The templates of the widget `texts`, a person's own in `lines`; none where pictures have captions."""
    if texts == "own templates":
        return require_templates(lines)
    return TEMPLATES[kind] if texts == "bundled templates" else ()


def describe(concept_set: ConceptSet, shown: list[Picture]) -> str:
    """What is trained with, for the canvas. `shown`: the pictures, fitted."""
    sizes = [Size(*p.shape[:2]) for p in concept_set.pictures]
    flipped = ", each mirrored too" if concept_set.examples[0].flipped is not None else ""
    rows = [f"{len(shown)} picture{'s' * (len(shown) > 1)}, {', '.join(map(str, sorted(set(sizes))))} px{flipped}"]
    for i, (picture, size) in enumerate(zip(shown, sizes, strict=True), 1):
        rows.append(f"{picture.name or i}: {described(*picture.came, size)}")
    if len(shown) < 3:
        rows.append(
            "few pictures: what is around the thing, and its one pose, are learnt with it; 3 to 5 different ones are better"
        )
    if flipped and any(_SIDES.search(t.complete) for example in concept_set.examples for t in example.all_texts):
        rows.append(
            "captions say left or right, which mirrored pictures turn round: turn flip off, or leave the words out"
        )
    cut_outs = sum(picture.cut_out for picture in shown)
    rows += [f"cut-outs: {cut_outs}, on white; their masks are what is not transparent"] if cut_outs else []
    texts = dict.fromkeys(t for example in concept_set.examples for t in example.all_texts)
    templates = len(concept_set.examples[0].all_texts)
    rows += [f"{templates} templates, one drawn for each picture at each step:"] if templates > 1 else []
    rows += [f"- {t.complete}   |   base: {t.base}" for t in texts]
    return "\n".join([*rows, f"target: {concept_set.examples[0].texts.target}"])


NODES = [ConceptSetNode]
