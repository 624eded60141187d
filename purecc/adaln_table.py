"""adaLN's shifts, scales and gates computed ahead of the steps: a third of SD3.5 Medium's weights need not be on the GPU.

The adaLN layers read the time and the pooled text alone, no LoRA touches them, and a run's times and texts are known by its
seed. So they stay in main memory; for a window of steps each layer visits the device once, and its outputs wait in main
memory until their forward. What was not foreseen is computed when it is asked for; of a picture that is sampled, whose times are told by
`expect`, all that is to come at once.

A forward's rows are computed together, as they are without the table, so that the result is the same bit for bit. A layer's outputs leave the
device together, and a forward's come to it together: each copy waits, and there are hundreds of both.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

Rows = tuple[Tensor, Tensor]  # times [batch] in [0, 1], pooled texts [batch, width]
Key = tuple[bytes, ...]  # of a forward's rows, in their order
ON_DEVICE = 16  # forwards whose outputs are on the device: those of a step, until its backward pass
WINDOW = 25  # steps that are computed ahead
UNFORESEEN = 256  # rows of other forwards kept in main memory: of four preview pictures, 16 steps of 4 rows


def is_modulation(name: str) -> bool:
    """Whether a parameter of diffusers' transformer belongs to an adaLN layer."""
    return "norm1.linear." in name or "norm1_context.linear." in name or name.startswith("norm_out.linear.")


class ModulationTable:
    """Takes an SD3 transformer's adaLN layers into main memory and answers for them.

    `rows_of(number)`: the texts of step `number`, from 1 to `steps`, each by a name; `window`: steps computed ahead.
    """

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        rows_of: Callable[[int], Mapping[str, Rows]],
        steps: int,
        window: int = WINDOW,
    ):
        self.device, self.dtype = transformer.device, transformer.dtype
        self.rows_of, self.steps, self.window = rows_of, steps, window
        self.embed = transformer.time_text_embed
        self.layers: list[nn.Linear] = []
        self.computed_ahead = 0  # forwards
        self._foreseen: dict[Key, Tensor] = {}  # of a forward all layers' outputs, one after the other
        self._others: OrderedDict[Key, Tensor] = OrderedDict()
        self._course = torch.empty(0, device=self.device)  # times of a picture that is sampled, as the layers read them
        self._slots: list[Sequence[Tensor] | None] = [None] * ON_DEVICE
        self._next = 0
        self._patterns: set[tuple[tuple[str, int], ...]] = set()  # forwards of a step, by text and place in its batch
        self._places: dict[bytes, dict[int, tuple[str, int]]] = {}  # row -> step -> text, place
        self._step = 1  # of the last forward that was foreseen
        for number in range(1, steps + 1):
            for text, (times, pooled) in rows_of(number).items():
                for i, row in enumerate(_keys(*self._as_asked(times, pooled))):
                    self._places.setdefault(row, {}).setdefault(number, (text, i))
        transformer.time_text_embed = _Slots(self)
        for block in transformer.transformer_blocks:
            self._take(block.norm1)
            self._take(block.norm1_context)
        self._take(transformer.norm_out)

    def slot(self, timestep: Tensor, pooled: Tensor) -> int:
        """Where the outputs for these rows are, on the device."""
        key = _keys(timestep, pooled)
        held = self._foreseen.get(key, self._others.get(key))  # two forwards of a step may read the same rows
        if held is None:
            held = self._ahead(key)
        if held is None:
            held = self._unforeseen(key, timestep, pooled)
        slot, self._next = self._next, (self._next + 1) % ON_DEVICE
        parts = held.to(self.device, non_blocking=True).split([len(key) * layer.out_features for layer in self.layers])
        self._slots[slot] = [part.view(len(key), -1) for part in parts]
        return slot

    def expect(self, times: Tensor) -> None:
        """Times in [0, 1], [steps], at which the same texts will be asked for in turn."""
        self._course = 1000 * times.to(self.device).float()

    def output(self, slot: int, layer: int) -> Tensor:
        return self._slots[slot][layer]

    def clear(self) -> None:
        """Lets go of the layers and of all outputs: the table, and the transformer it is in, are of no more use."""
        self.layers.clear()
        self._foreseen.clear()
        self._others.clear()
        self._slots = [None] * ON_DEVICE
        self.embed.to("meta")

    def _take(self, norm: nn.Module) -> None:
        self.layers.append(norm.linear.cpu())
        norm.silu = nn.Identity()  # what comes in is a slot's number
        norm.linear = _Output(self, len(self.layers) - 1)

    def _ahead(self, key: Key) -> Tensor | None:
        """Computes forwards of this kind for a window of steps. None where the rows belong to no step."""
        places = [self._places.get(row, {}) for row in key]
        steps = set.intersection(*(set(of) for of in places))  # times of a grid come again
        if not steps:
            return None
        number = min(steps, key=lambda step: (step < self._step, step))
        self._step, pattern = number, tuple(of[number] for of in places)
        last = min(number + self.window - 1, self.steps)
        new = pattern not in self._patterns
        self._patterns.add(pattern)
        if not new:  # the window is at its end: what was not asked for is of no more use
            self._foreseen.clear()
        asked = {}
        for step in range(number, last + 1):
            rows = self.rows_of(step)
            for one in [pattern] if new else self._patterns:
                chosen = [tuple(part[i : i + 1] for part in rows[text]) for text, i in one if i < len(rows[text][0])]
                if len(chosen) == len(one):
                    together = self._as_asked(*(torch.cat(parts) for parts in zip(*chosen, strict=True)))
                    asked[_keys(*together)] = together
        self.computed_ahead += len(asked)
        self._foreseen |= self._compute(asked)
        return self._foreseen.get(key)

    def _unforeseen(self, key: Key, timestep: Tensor, pooled: Tensor) -> Tensor:
        """Computes a forward, and those of the same texts at the expected times after it."""
        asked = {key: (timestep, pooled)}
        at = (self._course == timestep[0]).nonzero()
        if len(at) and bool((timestep == timestep[0]).all()):
            for time in self._course[int(at[0]) + 1 :][: max(UNFORESEEN // len(key) - 1, 0)]:
                later = time.expand_as(timestep)
                asked[_keys(later, pooled)] = later, pooled
        asked = {one: rows for one, rows in asked.items() if one not in self._foreseen and one not in self._others}
        self._others |= self._compute(asked)
        while len(self._others) > len(asked) and sum(map(len, self._others)) > UNFORESEEN:
            self._others.popitem(last=False)
        return self._others[key]

    @torch.no_grad()
    def _compute(self, asked: Mapping[Key, Rows]) -> dict[Key, Tensor]:
        """All layers' outputs for each forward, in main memory; each layer is on the device once."""
        activated = [nn.functional.silu(self.embed(*rows)) for rows in asked.values()]
        width, begin = sum(layer.out_features for layer in self.layers), 0
        found = {key: torch.empty(len(key) * width, dtype=self.dtype) for key in asked}
        for layer in self.layers:
            weight, bias = layer.weight.to(self.device), layer.bias.to(self.device)
            outputs = [nn.functional.linear(value.to(weight.dtype), weight, bias).flatten() for value in activated]
            parts = torch.cat(outputs).cpu().split([len(output) for output in outputs])
            for (key, whole), part in zip(found.items(), parts, strict=True):
                whole[len(key) * begin :][: len(part)] = part
            begin += layer.out_features
        return found

    def _as_asked(self, times: Tensor, pooled: Tensor) -> Rows:
        """As `AdaptedNetwork.velocity` hands them to the transformer."""
        return 1000 * times.to(self.device).float(), pooled.to(self.device, self.dtype)


class _Slots(nn.Module):
    """In the place of time_text_embed: its output is the number of a slot, kept on the CPU, so that reading it never waits."""

    def __init__(self, table: ModulationTable):
        super().__init__()
        self._table = [table]  # in a list: its layers are not to be modules of the transformer

    @property
    def table(self) -> ModulationTable:
        return self._table[0]

    def forward(self, timestep: Tensor, pooled: Tensor) -> Tensor:
        return torch.tensor([self._table[0].slot(timestep, pooled)], dtype=torch.float32)


class _Output(nn.Module):
    """In the place of an adaLN layer; a checkpointed block asks again in the backward pass, by the same slot."""

    def __init__(self, table: ModulationTable, layer: int):
        super().__init__()
        self._table, self.layer = [table], layer

    def forward(self, slot: Tensor) -> Tensor:
        return self._table[0].output(int(slot), self.layer)


def table_of(transformer: SD3Transformer2DModel) -> ModulationTable | None:
    """The table that answers for a transformer's adaLN layers, if there is one."""
    slots = transformer.time_text_embed
    return slots.table if isinstance(slots, _Slots) else None


def _keys(timestep: Tensor, pooled: Tensor) -> Key:
    """Of each row its time and a digest of its text: a run's rows are all remembered, and a pooled text has 8 KB."""
    times, texts = timestep.detach().float().cpu(), pooled.detach().float().cpu()
    digests = (hashlib.blake2b(text.numpy().tobytes(), digest_size=16).digest() for text in texts)
    return tuple(t.numpy().tobytes() + digest for t, digest in zip(times, digests, strict=True))
