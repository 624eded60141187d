"""What applied concepts do while the host samples: layer-wise embeddings at their rows, gated LoRA in their pictures.

Two wrappers of the host's: one around each call of the model, and one around a whole sampling, which sees which concepts its
prompts name, and warns where none holds a trigger. A call that no concept has a part in goes through untouched.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import comfy.conds
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...purecc.concept import T5_SLOT, Concept, Gate
from .lora import Moved, RowLora, Where
from .marks import CONCEPTS, MAP, concept_of, concepts_in, marks_of, slot_of
from .page import tell_below_node, warn_of_mistake

KEY = "purecc"  # of our wrappers among those of other packs
# keys in transformer_options
NAMED = "purecc_named"  # numbers of the concepts that a prompt of this sampling names
PLACES = "purecc_places"  # Places of this sampling
SILENT = "purecc_silent"  # numbers of concepts that do nothing in this call: their triggers read as the class word


@dataclass(eq=False)
class Places:
    """The last places that were found in a sampling, and in which x_t: nodes that ask for a text apart get the same.

    `drawn`: the noise mask of an inpainting, [batch, channels, height, width].
    """

    drawn: Tensor | None = None
    x_t: Tensor | None = None
    places: dict[int, Tensor] = field(default_factory=dict)  # of concepts, [batch, 1, height, width] from 0 to 1

    def __deepcopy__(self, memo: dict) -> "Places":
        return self

    def of(self, x_t: Tensor) -> dict[int, Tensor]:
        """Those of this x_t, to be added to."""
        last = self.x_t
        alike = last is not None and (last.shape, last.device) == (x_t.shape, x_t.device)
        if not alike or not torch.equal(last, x_t):
            self.x_t, self.places = x_t.clone(), {}
        return self.places

    def drawn_in(self, x_t: Tensor) -> Tensor | None:
        """The noise mask, [batch, 1, height, width]; None without one, and for a part of the picture, as of tiles."""
        if self.drawn is None or self.drawn.shape != x_t.shape:
            return None
        return self.drawn.amax(1, keepdim=True).to(x_t.device)


@dataclass(frozen=True, eq=False)
class Applied:
    """A concept on a MODEL."""

    concept: Concept
    embedding_strength: float
    row_loras: tuple[RowLora, ...]  # none where the LoRA is a weight patch
    gate: Gate = "conditioning"  # of the row_loras
    span: tuple[float, float] = (0.0, 1.0)  # of the sampling, in which it acts: from its start to its end
    holds: bool = False  # leaves the rest to the base model, see holding.py
    acts_anyway: bool = False  # its LoRA does, in prompts without the trigger too
    _vectors: dict[tuple[int, ...], Moved] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> "Applied":
        return self  # the host's clone() deep-copies model_options; nothing in here changes

    def acts(self, sampling: Any, t: Tensor) -> bool:
        """Whether it acts at the noise levels `t`, as the host reckons a span's (Conditioning Set Timestep Range)."""
        start, end = self.span
        level = float(t.max())
        # at its ends the whole sampling counts: a schedule's first level may be above 1, by rounding or by a sampler's churn
        begun = start == 0 or level <= sampling.percent_to_sigma(start)
        return begun and (end == 1 or sampling.percent_to_sigma(end) <= level)

    @property
    def waits_for_its_trigger(self) -> bool:
        """Whether anything of it acts only where a prompt holds its trigger."""
        own, gated = self.concept, bool(self.row_loras) and self.gate != "off"
        embedded = own.embeddings is not None or own.token_embeddings is not None
        return gated or (embedded and self.embedding_strength != 0)

    def vectors(self, slots: tuple[int, ...]) -> Moved:
        """The embeddings of slots, [blocks, slots, width]."""
        if slots not in self._vectors:
            own = self.concept.embeddings
            self._vectors[slots] = Moved(torch.stack([own.slot(slot) for slot in slots], 1))
        return self._vectors[slots]


@dataclass(frozen=True)
class _Place:
    """Where one concept's embeddings go in this call."""

    applied: Applied
    batch: Tensor  # [n] indices of the marked rows, on the device
    row: Tensor  # [n]
    slots: tuple[int, ...]  # [n]

    def act(self, block: int, stream: Tensor) -> Tensor:
        """What joint block `block` is to read in place of the text stream [batch, rows, width]."""
        acted, strength = self.applied.vectors(self.slots).like(stream)[block], self.applied.embedding_strength
        if self.applied.concept.embeddings.mode == "offset":
            acted = stream[self.batch, self.row] + strength * acted
        elif strength != 1:  # lerp is exact at both ends
            acted = torch.lerp(stream[self.batch, self.row], acted, strength)
        return stream.index_put((self.batch, self.row), acted)


def act(
    executor: Any,
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None = None,
    c_crossattn: Tensor | None = None,
    control: Any = None,
    transformer_options: dict | None = None,
    **conditioning: Any,
) -> Tensor:
    """The wrapper around one call of the model (the host's APPLY_MODEL); `x` [batch, ...], `c_crossattn` [batch, rows, width]."""
    options = transformer_options or {}
    marks = marks_of(c_crossattn, conditioning.pop(MAP, None)).cpu()
    go_on = lambda options: executor(x, t, c_concat, c_crossattn, control, options, **conditioning)  # noqa: E731
    named = options.get(NAMED, frozenset())
    sampling = executor.class_obj.model_sampling
    silent = options.get(SILENT, frozenset())
    carried = options.get(CONCEPTS, {})
    acting = {number: one for number, one in carried.items() if number not in silent and one.acts(sampling, t)}
    in_whole_picture = [
        one
        for number, one in acting.items()
        if one.row_loras and (one.gate == "off" or (one.gate == "picture" and number in named))
    ]
    if not marks.any() and not in_whole_picture:
        return go_on(options)
    held = [one for one in _held(marks, carried) if one in acting.values()]
    network = executor.class_obj.diffusion_model
    with ExitStack() as stack:
        if any(one.row_loras for one in [*held, *in_whole_picture]):
            stack.enter_context(_UNCOMPILED)
        for one in dict.fromkeys([*held, *in_whole_picture]):
            here = (marks > 0) & (concept_of(marks) == one.concept.uid)
            where = Where.of(here | (one in in_whole_picture), one.gate, x.device)
            for lora in one.row_loras:
                stack.callback(network.get_submodule(lora.module).register_forward_hook(lora.hook(where)).remove)
        return go_on(_with_embeddings(options, marks, held, len(network.joint_blocks), x.device))


class _Uncompiled:
    """A compiled network does not look for hooks that came after it was compiled, and is left aside.

    That is of the whole process, and newer hosts call a model in a thread for each of several GPUs: from the first to the last of them.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._stance = Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside and hasattr(torch.compiler, "set_stance"):
                self._stance = torch.compiler.set_stance("force_eager")
                self._stance.__enter__()
            self._inside += 1

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None


_UNCOMPILED = _Uncompiled()


def _held(marks: Tensor, carried: dict[int, Applied]) -> list[Applied]:
    """The applied concepts that the marks name. Raises RuntimeError for one that the MODEL does not carry."""
    numbers = concept_of(marks[marks > 0]).unique().tolist()
    if not carried.keys() >= set(numbers):
        have = ", ".join(f'"{one.concept.trigger}"' for one in carried.values())
        raise RuntimeError(
            f"A prompt uses a PureCC concept that this MODEL does not carry (it has {have}). "
            "Connect MODEL and CLIP through the same Apply Concept nodes."
        )
    return [carried[number] for number in numbers]


def _with_embeddings(options: dict, marks: Tensor, applied: list[Applied], blocks: int, device: torch.device) -> dict:
    """transformer_options with each joint block patched, around whatever other nodes put there.

    Patched for the call only, so that a node behind ours cannot take the host's one place for a block from us.
    """
    places = []
    for one in applied:
        if one.concept.embeddings is not None and one.embedding_strength:
            here = (marks > 0) & (concept_of(marks) == one.concept.uid)
            if one.concept.embeddings.t5 is None:
                here &= slot_of(marks) < T5_SLOT  # T5's rows keep the class word
            batch, row = here.nonzero(as_tuple=True)
            slots = tuple(slot_of(marks[batch, row]).tolist())
            places.append(_Place(one, batch.to(device), row.to(device), slots))
    if not places:
        return options
    replaced = options.get("patches_replace", {})
    of_blocks = dict(replaced.get("dit", {}))
    for block in range(blocks):
        of_blocks["double_block", block] = _block_patch(block, places, of_blocks.get(("double_block", block)))
    return {**options, "patches_replace": {**replaced, "dit": of_blocks}}


def _block_patch(block: int, places: list[_Place], other: Callable | None) -> Callable[[dict, dict], dict]:
    """The host's patch of one joint block: `other` is another node's patch of it."""

    def patch(args: dict, extra: dict) -> dict:
        stream = args["txt"]
        for place in places:
            stream = place.act(block, stream)
        args = {**args, "txt": stream}
        return other(args, extra) if other else extra["original_block"](args)

    return patch


def attach(model: ModelPatcher) -> None:
    """Puts both wrappers on a MODEL (a clone) that has them not yet."""
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, act)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, check_prompts)


def check_prompts(
    executor: Any,
    noise: Tensor,
    latent: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """The wrapper around a whole sampling (the host's OUTER_SAMPLE): notes which concepts its prompts name, for the gate
    "picture", and what is drawn; says in the node which triggers no prompt holds."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    carried = options.get(CONCEPTS, {})
    texts = [one for side in guider.conds.values() for one in side or ()]
    named = concepts_in(texts)
    waiting = [one for number, one in carried.items() if number not in named and one.waits_for_its_trigger]
    silent = ", ".join(f'"{one.concept.trigger}"' for one in waiting)
    idle = ", ".join(f'"{one.concept.trigger}"' for one in waiting if not one.acts_anyway)
    if silent and not named and not any(MAP in one.get("model_conds", ()) for one in texts):
        warn_of_mistake(
            f"PureCC: this MODEL carries {silent}, but the prompts were encoded by a CLIP that does not know the trigger. "
            "Connect the CLIP output of Apply Concept to the text encode nodes; nodes that set hooks or a device on a CLIP belong before Apply Concept."
        )
    elif idle:
        tell_below_node(f"PureCC: no {idle} in these prompts, so its concept does nothing.")
    if any(MAP in one.get("model_conds", ()) for one in texts):
        for one in texts:  # a map for all, or the host draws apart what the base draws together
            if "cross_attn" in one and MAP not in one.get("model_conds", {}):
                none = torch.zeros(one["cross_attn"].shape[:2], dtype=torch.int64, device=one["cross_attn"].device)
                one["model_conds"] = {**one.get("model_conds", {}), MAP: comfy.conds.CONDRegular(none)}
    options |= {NAMED: frozenset(named), PLACES: Places(_drawn(denoise_mask, noise))}
    try:
        return executor(noise, latent, sampler, sigmas, denoise_mask, *args, **kwargs)
    finally:
        del options[NAMED], options[PLACES]


def _drawn(mask: Tensor | None, noise: Tensor) -> Tensor | None:
    """An inpainting's mask in the shape of the noise, in which newer hosts give it."""
    if mask is None or mask.shape == noise.shape:
        return mask
    return comfy.utils.reshape_mask(mask, noise.shape)
