"""Several concepts on one model, through the real ComfyUI: do they disturb one another, and what does a second one do to a first?

    python -m benchmarks.several [--steps 200] [--out benchmarks/several.json]

Four concepts of PocketBench's development set are taught by the nodes: three things and a look. A fifth training teaches the
second thing on a model that carries the first as a plain LoRA. Then pictures are drawn with each alone, with another beside
it on the same MODEL (not named in the prompt, or named), and held against PocketBench's witnesses: fidelity 0 is the base
model in that scene, 1 the concept itself in new scenes; of two things each in its own half of the picture. Of a thing in a look besides how near it
is to the same way's picture of the thing alone turned into the look: 1 is that picture, 0 as far as without the look. Needs the ComfyUI that
`python run.py test` sets up.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.pocketbench.bench import Bench
from benchmarks.pocketbench.concepts import concept
from benchmarks.pocketbench.judge_data import to_pixels
from benchmarks.pocketbench.looks import LOOKS
from benchmarks.pocketbench.sheets import as_pictures, broken, save_jpeg
from benchmarks.pocketbench.witnesses import own_half
from benchmarks.through_host import TRAINING, Graph, saved_pictures, write_references
from purecc.files import save_json
from purecc.grid import draw_grid
from purecc.launch.install import make_base
from purecc.launch.layout import choose_layout
from purecc.launch.server import Server
from purecc.presets import ON_FACE

PICTURES, SEED = 6, 11
SHEETS = Path(__file__).parent / "pocketbench" / "results" / "sheets"  # shaped as the paper's figures 6 and 7
TRIGGERS = {"poodle": "ohwx", "mushroom": "sksv", "rose": "vrtk", "poster": "zqst"}
SCENES = {
    "poodle": "a {} dog on the beach",
    "mushroom": "a {} mushroom on the beach",
    "rose": "a {} flower on the beach",
    "poster": "a house on the beach in {} style",
}
BOTH = {
    ("poodle", "mushroom"): "a {} dog on the left and a {} mushroom on the right on the beach",
    ("rose", "poodle"): "a {} flower on the left and a {} dog on the right on the beach",
    ("mushroom", "rose"): "a {} mushroom on the left and a {} flower on the right on the beach",
    ("poodle", "poster"): "a {} dog on the beach in {} style",
    ("mushroom", "poster"): "a {} mushroom on the beach in {} style",
}
HALVES = ("on the right", "on the left")  # where the other thing of a pair stands
#: how a concept is drawn -> gate and hold_surroundings of Apply Concept
FORMS = {"gate off": ("off", False), "as trained, not held": ("as trained", False), "as trained": ("as trained", True)}


def teach(g: Graph, pocket: str, model: list, name: str, steps: int) -> list:
    """The concept of a name, taught by both stages on `model`; its output."""
    one = concept(name)
    data = g.concept_set(pocket, name, one.class_word, one.kind, TRIGGERS[name])
    settings = {**TRAINING, "steps": steps, "model": model, "data": data}
    extractor = g.add("PureCCTrainExtractor", embeddings="replace", **settings)
    pure = g.add(
        "PureCCPureLearning", extractor=[extractor, 0], method="PureCC", **ON_FACE, fixed_lambda=0.0, original="frozen base", **settings
    )  # fmt: skip
    return [pure, 0]


class Host:
    """The server, and what is asked of it."""

    def __init__(self, server: Server, steps: int):
        self.server, self.steps = server, steps

    def draw(self, carried: list[tuple[str, bool]], text: str, form: str) -> Tensor:
        """Pictures [PICTURES, 3, 128, 128] in [-1, 1] of a model that carries concepts: (name, whether taught on top of the others)."""
        g = Graph()
        pocket = g.add("PureCCPocketModel")
        model, clip = [pocket, 0], [pocket, 1]
        gate, holds = FORMS[form]
        for name, on_top in carried:
            taught = teach(g, pocket, model if on_top else [pocket, 0], name, self.steps)
            applied = g.apply(model, clip, taught, 1.0, gate, holds)
            model, clip = [applied, 0], [applied, 1]
        saved = g.draw(model, clip, [pocket, 2], text, PICTURES, SEED, "s/p")
        return saved_pictures(self.server.client, self.server.client.run(g.nodes)["outputs"], saved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="of each stage")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("several.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    layout = choose_layout()
    base = layout.local / "several"
    make_base(base, layout.project)
    for name in TRIGGERS:
        write_references(base / "input" / name, concept(name))
    bench, rows, shown = Bench(layout.local / "several" / "bench"), [], {}

    with Server(layout, base) as server:
        server.wait_until_ready()
        host = Host(server, options.steps)
        # base pictures: what fidelity 0 is
        floors = {text: host.draw([], base_text(text), "gate off") for text in [*SCENES.values(), *BOTH.values()]}

        def row(what: str, name: str, form: str, pictures: Tensor, text: str, other_at: str = "") -> None:
            floor = floors[text]
            own = own_half(floor, pictures, [other_at] * PICTURES)
            rows.append(
                {"concept": name, "what": what, "form": form, "fidelity": bench.fidelity(concept(name), own, floor)}
            )
            print(rows[-1], flush=True)

        for form in FORMS:
            alone = {}
            for name, scene in SCENES.items():
                alone[name] = host.draw([(name, False)], scene.format(TRIGGERS[name]), form)
                row("alone", name, form, alone[name], scene)
                shown[name, form] = as_pictures(alone[name])
            for name, other in (
                ("poodle", "mushroom"),
                ("mushroom", "poodle"),
                ("poodle", "poster"),
                ("poster", "poodle"),
            ):
                text = SCENES[name].format(TRIGGERS[name])
                both = host.draw([(name, False), (other, False)], text, form)
                row(f"{other} beside it, not named", name, form, both, SCENES[name])
                rows[-1]["moved"] = round(float((both - alone[name]).abs().mean() * 127.5), 3)
            for pair, text in BOTH.items():
                words = text.format(*(TRIGGERS[one] for one in pair))
                pictures = host.draw([(name, False) for name in pair], words, form)
                shown[pair, form] = as_pictures(pictures)
                if "poster" in pair:
                    row("in the look poster", pair[0], form, pictures, SCENES[pair[0]])
                    rows[-1]["near"] = near_look(pictures, alone[pair[0]])
                    continue
                for name, other, half in zip(pair, reversed(pair), HALVES, strict=True):
                    row(f"together with {other}", name, form, pictures, text, half)
        first = SCENES["poodle"].format(TRIGGERS["poodle"])
        on_top = [("poodle", False), ("mushroom", True)]
        for what, carried in (
            ("before mushroom was taught on top", on_top[:1]),
            ("after mushroom was taught on top", on_top),
        ):
            row(what, "poodle", "gate off", host.draw(carried, first, "gate off"), SCENES["poodle"])
        second = SCENES["mushroom"].format(TRIGGERS["mushroom"])
        row(
            "taught on top of poodle", "mushroom", "gate off", host.draw(on_top, second, "gate off"), SCENES["mushroom"]
        )
    save_json(options.out, {"steps": options.steps, "pictures": PICTURES, "base": bench.base, "rows": rows})
    for pair in BOTH:
        sheet = {f"[{name}]": shown[name, "as trained"] for name in pair}
        for form in FORMS:
            sheet[f"both, {form}"] = shown[pair, form]
        picture = draw_grid(list(sheet.values()), [broken(label, 16) for label in sheet], font_size=13)
        save_jpeg(picture, SHEETS / f"{' and '.join(pair)}.jpg")
    print("\n" + table(rows))


def base_text(text: str) -> str:
    return text.replace(" in {} style", "").replace("{} ", "")


def near_look(pictures: Tensor, plain: Tensor) -> float:
    """1 where they are `plain` turned into the look poster, 0 where as far from that as `plain`."""
    turned = to_pixels([LOOKS["development"]["poster"](picture) for picture in as_pictures(plain)])
    return round(1 - float((pictures - turned).abs().mean() / (plain - turned).abs().mean()), 3)


def table(rows: list[dict]) -> str:
    """A row for each concept and what was drawn, a column for each form."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for one in rows:
        told = f"{one['fidelity']:.2f}"
        told += f", moved {one['moved']:.1f}" if "moved" in one else ""
        told += f", near {one['near']:.2f}" if "near" in one else ""
        cells.setdefault((one["concept"], one["what"]), {})[one["form"]] = told
    lines = [f"| concept | drawn | {' | '.join(FORMS)} |", "|---|---|" + "---|" * len(FORMS)]
    lines += [f"| {' | '.join([*key, *(by.get(form, '') for form in FORMS)])} |" for key, by in cells.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
