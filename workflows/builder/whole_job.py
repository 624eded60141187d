"""01 and 03: five pictures -> extractor -> pure learning -> pictures, beside the base model, on the same seed."""

from dataclasses import dataclass

from purecc.presets import ON_FACE

from .branch import KEPT, Sampling, keep, sample
from .graph import Graph, Node

ROOM = 1160  # for a training node: its chart, its text and its preview come while it runs
START = 500  # below the note that says what to do: the model
_BRANCHES = 1720  # where the sampling branches begin


@dataclass(frozen=True)
class Plan:
    """What differs from model to model."""

    folder: str  # of the pictures, as Concept Set lists it
    trigger: str
    class_word: str
    resolution: int  # pixels, of training
    training: tuple  # steps, batch size, learning rate, embedding rate, rank
    with_lora: bool  # a plain LoRA too, to compare with
    prompt: str  # with the trigger
    other_prompt: str  # without it
    file: str  # of the concept
    prefix: str  # of the pictures' names, below purecc/
    seed: int
    steps: int  # of sampling
    cfg: float
    scheduler: str
    size: int  # pixels, of the pictures sampled
    count: int  # pictures a branch
    negative: str
    notes: dict[str, tuple[str, ...]]  # place -> paragraphs: "start", "training", "gate"

    @property
    def tall(self) -> int:
        """Pixels of the groups left of the pictures."""
        return 2460 if self.with_lora else 1820

    @property
    def sheet_width(self) -> int:
        """Of two rows of pictures: no wider than lets it stay in its row, where it is shown across the node's whole width."""
        return min(480, 170 * self.count)


ETA = (
    "**eta is 0 as it comes:** the two anchors hold the rest, and the extractor gives the starting point alone. Turn eta up, and the "
    "extractor guides, as in the paper (1): more stays as it was, less is learnt. At 0 you may bypass Train Extractor (Ctrl+B) "
    "and save its time."
)

POCKET = Plan(
    folder="example: pink poodle", trigger="[V]", class_word="dog", resolution=128, training=(240, 4, 5e-4, 5e-3, 4),
    with_lora=True, prompt="a big [V] dog in the middle in the snow", other_prompt="a big dog on the left in the city",
    file="pink poodle", prefix="", seed=7, steps=28, cfg=4.0, scheduler="normal", size=128, count=4, negative="",
    notes={
        "start": (
            "**Teach the model one dog from five pictures, and leave all else as it was.**",
            "Press *Run*: some minutes on a CPU. Stage 1 learns what the concept looks like; stage 2 teaches it to the model "
            "while holding everything else in place.",
            "The Pocket Model is small, so that the whole way runs anywhere. Its pictures are 128 x 128 px and rough. "
            "Workflow 03 does the same with SD3.5.",
            "**Your own pictures:** put 3 to 5 into a folder inside ComfyUI's *input* folder, press R, and choose it in "
            "*Concept Set*.",
        ),
        "training": (
            "**Cancel at any time:** *Run* goes on from the last step. A run that is finished is not trained again, also after "
            "a restart.",
            "The lower Pure Learning node trains without pure learning (the loss L_CC alone), on the same data and steps.",
            ETA,
        ),
        "gate": (
            "*as trained*: prompts without [V] give the base model's picture exactly. *off*: the LoRA always acts, as the plain "
            "one below does.",
            "*hold_surroundings*: around the concept the base model draws on; it takes nearly twice the time.",
        ),
    },
)  # fmt: skip

CHECKPOINT = "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors"
CHECKPOINT_URL = f"https://huggingface.co/Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/{CHECKPOINT}"

SD35 = Plan(
    folder="my pictures", trigger="ohwx", class_word="dog", resolution=512, training=(400, 2, 1e-4, 5e-3, 4),
    with_lora=False, prompt="a photo of a ohwx dog on a surfboard, sea in the background",
    other_prompt="a photo of a dog on a sofa, a cat beside it", file="my concept", prefix="sd35/", seed=7, steps=28, cfg=4.5,
    scheduler="sgm_uniform", size=512, count=2, negative="",
    notes={
        "start": (
            "**Before you press Run**",
            "1. Make a folder *my pictures* inside ComfyUI's *input* folder and put 3 to 5 pictures of your thing into it. "
            "Press R.",
            "2. *Concept Set*: write what kind of thing it is as *class_word* (dog, backpack, teapot) and, in *captions*, one "
            "line a picture with that word in it: what else is to be seen.",
            "3. Write your own prompts on the right, with *ohwx* before the class word in the first group.",
            "No model yet? The page offers the download when you open this workflow (11.6 GB): move it into models/checkpoints, press R. Split "
            "files go as well: Load Diffusion Model, TripleCLIPLoader and Load VAE in place of Load Checkpoint.",
        ),
        "training": (
            "**The paper's** rank 4, learning rate 1e-4, 400 steps, batch 2, 512 px. eta and the two anchors are the pack's own.",
            "**Memory.** The paper reports 28 and 30 GB. Here 7.7 to 9.3 GB, measured on an H200; where the GPU has less, the pack turns on "
            "what saves memory, down to 0.7 GB, and the report tells what. Still too little? batch_size 1, resolution 384.",
            "A 16-bit model file trains more exactly than an fp8 one; in this file only T5 is fp8.",
            ETA,
            "**Cancel at any time:** *Run* goes on from the last step.",
        ),
        "gate": (
            "*as trained*: prompts without the trigger give the base model's picture exactly. *off*: the LoRA always acts, as "
            "a plain LoRA does.",
            "*hold_surroundings*: around the concept the base model draws on; it takes nearly twice the time.",
        ),
    },
)  # fmt: skip


def pocket_whole_job() -> Graph:
    g = Graph()
    model = g.add("PureCCPocketModel", 20, START, 380, 70)
    return _whole_job(g, model, POCKET)


def sd35_whole_job() -> Graph:
    g = Graph()
    model = g.add(
        "CheckpointLoaderSimple", 20, START, 380, 110, CHECKPOINT,
        properties={"models": [{"name": CHECKPOINT, "url": CHECKPOINT_URL, "directory": "checkpoints"}]},
    )  # fmt: skip
    return _whole_job(g, model, SD35)


def _whole_job(g: Graph, model: Node, plan: Plan) -> Graph:
    g.group("1  Model and pictures", 0, 0, 420, plan.tall)
    g.note(20, 60, 380, START - 110, *plan.notes["start"])
    data = g.add(
        "PureCCConceptSet", 20, START + 160, 380, 600, plan.folder, plan.trigger, plan.class_word, "instance", "", plan.resolution, 1,
        "buckets", False, "captions", clip=model["CLIP"], vae=model["VAE"],
    )  # fmt: skip
    pure, lora = _training(g, model, data, plan)

    g.group("3  Apply", 1320, 0, 360, plan.tall)
    latent = g.add("EmptySD3LatentImage", 1340, 60, 320, 130, plan.size, plan.size, plan.count)
    arms = [("original", model)]
    for name, concept, y in (("PureCC", pure, 240), ("plain LoRA", lora, 800)):
        if concept:
            gate = "off" if concept is lora else "as trained"
            applied = g.add(
                "PureCCApplyConcept", 1340, y, 320, 315, 1.0, 1.0, gate, 0.0, 1.0, concept is not lora, title=f"Apply: {name}",
                model=model["MODEL"], clip=model["CLIP"], concept=concept["concept"],
            )  # fmt: skip
            arms.append((name, applied))
    g.note(1340, 600, 320, 160, *plan.notes["gate"])

    how = Sampling(
        latent["LATENT"], model["VAE"], plan.seed, plan.steps, plan.cfg, plan.scheduler, negative=plan.negative
    )
    tall = len(arms) * KEPT + 60
    _pictures(g, 0, tall, "4  With the concept", "with", plan.prompt, arms, data, how, plan)
    title = "5  A prompt without it: how far does it move?"
    _pictures(g, tall + 40, tall, title, "without", plan.other_prompt, arms, data, how, plan)
    return g


def _training(g: Graph, model: Node, data: Node, plan: Plan) -> tuple[Node, Node | None]:
    """Both stages; the nodes with the concept and, where the plan has it, the plain LoRA."""
    g.group("2  Training", 440, 0, 860, plan.tall)
    extractor = g.add(
        "PureCCTrainExtractor", 460, 60, 400, 700, *plan.training, "replace", 0, model=model["MODEL"], data=data["data"]
    )
    wires = {"model": model["MODEL"], "data": data["data"], "extractor": extractor["extractor"]}
    # eta, fixed lambda, original; seed, the two anchors
    anchors = (ON_FACE["background_anchor"], ON_FACE["scene_anchor"])
    settings = (ON_FACE["eta"], 0.0, "frozen base", *plan.training, 0, *anchors)
    pure = g.add("PureCCPureLearning", 880, 60, 400, 730, "PureCC", *settings, title="Pure Learning", **wires)
    lora = None
    if plan.with_lora:
        title = "To compare: a plain LoRA"
        lora = g.add("PureCCPureLearning", 880, 120 + ROOM, 400, 730, "LoRA", *settings, title=title, **wires)
    g.add("PureCCSaveConcept", 460, 1000, 400, 120, plan.file, concept=pure["concept"])
    title = "Base without the trigger, customised with it"
    g.add("SaveImage", 460, 1180, 400, 290, f"purecc/{plan.prefix}validation", title=title, images=pure["validation"])
    g.note(460 if plan.with_lora else 880, 1740 if plan.with_lora else 60 + ROOM, 400, 300 if plan.with_lora else 560,
           *plan.notes["training"])  # fmt: skip
    return pure, lora


def _pictures(
    g: Graph, top: int, tall: int, title: str, part: str, prompt: str, arms: list[tuple[str, Node]], data: Node,
    how: Sampling, plan: Plan,
) -> None:  # fmt: skip
    """A group with one branch for each arm, and each customised arm compared with the original."""
    g.group(title, _BRANCHES - 20, top, 2060, tall)
    decoded: list[Node] = []
    for row, (arm, source) in enumerate(arms):
        y = top + 60 + row * KEPT
        text = prompt if arm != "original" else prompt.replace(f"{plan.trigger} ", "")
        picture = sample(g, _BRANCHES, y, arm, source, text, how)
        keep(g, _BRANCHES + 880, y, arm, f"{plan.prefix}{part}_{arm.replace(' ', '_')}", picture)
        decoded.append(picture)
        if row == 0:
            continue
        where = "with the trigger" if part == "with" else "without it"
        compared = g.add(
            "PureCCCompare", _BRANCHES + 1220, y, 300, 170, f"{arm}, {where}", title=f"Compare: {arm}",
            original=decoded[0]["IMAGE"], customised=picture["IMAGE"], **({"data": data["data"]} if part == "with" else {}),
        )  # fmt: skip
        name = f"purecc/{plan.prefix}sheet_{part}_{arm.replace(' ', '_')}"
        g.add(
            "SaveImage",
            _BRANCHES + 1540,
            y,
            plan.sheet_width,
            290,
            name,
            title=f"Sheet: {arm}",
            images=compared["sheet"],
        )
