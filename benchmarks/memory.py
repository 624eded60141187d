"""GPU memory of a training run with SD3 and SD3.5, as it is told before a run; measured too where there is a CUDA GPU.

    python -m benchmarks.memory [--pixels 512|1024] [--peaks | --times] [--part 1/4]

Each figure is given for stage 1, for stage 2 as the paper has it (eq. 15 at eta 1, no anchors) and for stage 2 as the nodes come.
The tests compare the same figures with the bytes alive in real steps, on the CPU and without storage (tests/unit/test_memory.py,
tests/unit/test_speed.py). On CUDA the peak of each rung of `purecc.savings`, by the allocator, stands beside what is told, at SD3.5 Medium's size
with random weights; and what each value of the setting `memory` turns on is timed, its FLOPs beside those of a large matrix product.
Parts may run side by side for the peaks; times need the GPU to themselves.
"""

import argparse
import gc
from dataclasses import dataclass, replace
from functools import cache

import torch

from purecc.memory import Estimate, Inputs, estimate, in_words, is_out_of_memory
from purecc.presets import SHIPPED
from purecc.savings import LADDER, Plan, Room, plan, turned_on
from purecc.settings import MEMORIES, PureSettings, TrainSettings

from .rung import Rung
from .stand_ins import REAL, Size, matrix_rate

TEXT_ROWS = 77 + 77
AMPLE = 10**12  # bytes
AS_SHIPPED = PureSettings(**SHIPPED).without_extractor()
FORMS = {"stage 1": None, "stage 2, paper": PureSettings(), "stage 2, as shipped": AS_SHIPPED}
# of the ladder's rungs, in bytes: SD3.5 Medium, 512 px, batch 2
GOALS = {0: 9.5e9, 4: 5.8e9, 5: 4.3e9, 7: 2.6e9}
RUNGS = [TrainSettings(**changes) for changes in LADDER]


@dataclass(frozen=True)
class Model:
    """What tells the published transformers apart."""

    layers: int
    dual: int
    positions: int
    qk_norm: bool

    @property
    def config(self) -> dict:
        return {
            "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": self.layers, "attention_head_dim": 64,
            "num_attention_heads": self.layers, "joint_attention_dim": 4096, "caption_projection_dim": 64 * self.layers,
            "pooled_projection_dim": 2048, "pos_embed_max_size": self.positions, "sample_size": self.positions,
            "dual_attention_layers": tuple(range(self.dual)), "qk_norm": "rms_norm" if self.qk_norm else None,
        }  # fmt: skip


MODELS = {
    "SD3.5 Medium": Model(24, 13, 384, True),
    "SD3.5 Large": Model(38, 0, 192, True),
    "SD3 Medium": Model(24, 0, 192, False),
}


@cache
def told(model: Model, pixels: int, pure: PureSettings | None, settings: TrainSettings) -> Estimate:
    """Of a form in bfloat16 on CUDA, rank 4."""
    return estimate(model.config, Inputs((pixels // 16) ** 2, TEXT_ROWS), settings, pure, torch.bfloat16)


def words_for(settings: TrainSettings) -> str:
    return turned_on(TrainSettings(), settings).replace(" (not quite the same result)", "") or "nothing"


def estimated(pixels: int) -> list[str]:
    """A table of the rungs: GPU memory of the forms by model."""
    rows = [
        f"| turned on, {pixels} px | {' | '.join(MODELS)} | main memory (SD3.5 Medium) |",
        "|---|" + "---|" * (len(MODELS) + 1),
    ]
    for settings in RUNGS:
        by_model = {
            name: [told(model, pixels, pure, settings) for pure in FORMS.values()] for name, model in MODELS.items()
        }
        cells = [" / ".join(in_words(one.peak) for one in forms) for forms in by_model.values()]
        host = max(one.host for one in by_model["SD3.5 Medium"])
        rows.append(f"| {words_for(settings)} | {' | '.join(cells)} | {in_words(host) if host else ''} |")
    return rows


def planned(model: Model, pixels: int, memory: str) -> Plan:
    """What stage 2 as shipped gets on a card of that size. Raises ValueError where it is too small."""
    of = lambda settings: told(model, pixels, AS_SHIPPED, replace(settings, memory="auto"))  # noqa: E731
    return plan(of, TrainSettings(memory=memory), Room("cuda", AMPLE, AMPLE, records=True))


def sizes(pixels: int) -> list[str]:
    """A table of the setting `memory`."""
    rows = [f"| memory, {pixels} px | {' | '.join(MODELS)} |", "|---|" + "---|" * len(MODELS)]
    for memory in MEMORIES[1:-1]:
        cells = []
        for model in MODELS.values():
            try:
                chosen = planned(model, pixels, memory)
                cells.append(f"{words_for(chosen.settings)}: {in_words(chosen.needed.peak)}")
            except ValueError:
                cells.append("too little")
        rows.append(f"| {memory} | {' | '.join(cells)} |")
    return rows


@dataclass(frozen=True)
class Row:
    """Of a table of measured figures; `bound`: bytes that the allocator is held to, 0 for none."""

    words: str
    settings: TrainSettings
    pure: PureSettings | None
    bound: float = 0.0


def of_rungs() -> list[Row]:
    """Each rung in each form, but for those that a form has no use for."""
    return [
        Row(f"{words_for(of)} | {form}", of, pure)
        for of in RUNGS
        for form, pure in FORMS.items()
        if pure is AS_SHIPPED or not of.scenes_apart
    ]


def of_settings(pixels: int) -> list[Row]:
    """Each value of the setting `memory`, the allocator held to what its name says, and the rungs that none of them needs; as shipped."""
    rows = []
    for memory in MEMORIES[1:-1]:
        settings = planned(MODELS["SD3.5 Medium"], pixels, memory).settings
        rows.append(Row(f"{memory} | {words_for(settings)}", settings, AS_SHIPPED, 1e9 * float(memory.split()[0])))
    chosen = {words_for(row.settings) for row in rows}
    return rows + [Row(f"as set | {words_for(of)}", of, AS_SHIPPED) for of in RUNGS if words_for(of) not in chosen]


def on_this_gpu(size: Size, row: Row, rate: float) -> str:
    """A row's figures. `rate`: FLOPs a second of a large product, for its time too; 0 for its peak alone."""
    rung = Rung(size, row.settings, row.pure)
    torch.cuda.empty_cache()
    expected = rung.estimated().peak
    if row.bound:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, row.bound / total))
    try:
        peak = rung.peak()
        found = f"{in_words(expected)} | {in_words(peak)} | {expected / peak - 1:+.1%} |"
        if not rate:
            return found
        seconds = rung.seconds()
        torch.cuda.set_per_process_memory_fraction(1.0)  # to count under checkpointing takes more
        flops = rung.flops()
        return f"{found} {seconds:.3f} | {flops / 1e12:.1f} | {flops / seconds / rate:.0%} | {'yes' if rung.recorder.on else 'no'} |"
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return f"{in_words(expected)} | does not fit |"
    finally:
        rung.release()
        del rung
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)


def print_measured(pixels: int, peaks: bool, times: bool, part: slice) -> None:
    size = replace(REAL, pixels=pixels, positions=pixels // 16)  # as the nodes cut the table of positions
    print(f"\nMeasured on {torch.cuda.get_device_name()}, SD3.5 Medium's size, random weights, {pixels} px")
    if peaks:
        print(f"\n| turned on | form | estimated | allocated | apart |\n{'|---' * 5}|")
        for row in of_rungs()[part]:
            print(f"| {row.words} | {on_this_gpu(size, row, rate=0.0)}", flush=True)
    if times:
        rate = matrix_rate(size)
        print(f"\nThe rate of a large product: {rate / 1e12:.0f} TFLOP a second")
        head = "memory (stage 2 as shipped) | turned on | estimated | allocated | apart | s a step | TFLOP a step | of that rate | recorded"
        print(f"\n| {head} |\n{'|---' * 9}|")
        for row in of_settings(pixels)[part]:
            print(f"| {row.words} | {on_this_gpu(size, row, rate)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, choices=[512, 1024], help="a side of the pictures; if left out, both")
    parser.add_argument("--peaks", action="store_true", help="on CUDA: the peaks of all rungs alone")
    parser.add_argument("--times", action="store_true", help="on CUDA: the times of the setting's values alone")
    parser.add_argument("--part", default="1/1", help="rows that are measured: 2/4 is every fourth from the second on")
    arguments = parser.parse_args()
    every = (arguments.pixels,) if arguments.pixels else (512, 1024)
    first, step = map(int, arguments.part.split("/"))
    both = arguments.peaks == arguments.times
    for pixels in every:
        print(f"\nEstimated: {TEXT_ROWS} text rows, bfloat16, batch 2, {' / '.join(FORMS)}\n")
        print(*estimated(pixels), sep="\n")
        print("\nThe setting memory: stage 2, as shipped\n", *sizes(pixels), sep="\n")
    goals = (f"{words_for(RUNGS[rung])}: {in_words(int(goal))}" for rung, goal in GOALS.items())
    print(f"\nGoals at 512 px for SD3.5 Medium: {'; '.join(goals)}")
    if not torch.cuda.is_available():
        print("\nNot measured: there is no CUDA GPU here. What an allocator loses (a few percent) comes on top.")
        return
    for pixels in every:
        print_measured(pixels, arguments.peaks or both, arguments.times or both, slice(first - 1, None, step))


if __name__ == "__main__":
    main()
