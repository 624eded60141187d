"""A concept and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from purecc.concept import (
    T5_SLOT,
    Concept,
    ConceptEmbeddings,
    LoraWeights,
    load_concept,
    save_concept,
)
from purecc.export import embedding_file, plain_lora
from purecc.files import load_tensors, save_beside_others, save_tensors


def concept(**changes) -> Concept:
    matrices = {f"transformer_blocks.{i}.attn.to_q": (torch.randn(4, 8), torch.randn(8, 4)) for i in range(2)}
    made = Concept(
        trigger="[V]", class_word="dog", kind="instance", role="concept", base="0123456789abcdef",
        lora=LoraWeights(matrices, alpha=8.0),
        embeddings=ConceptEmbeddings(torch.randn(2, 3, 8), torch.randn(2, 2, 8), "offset"),
        settings={"steps": 400, "name": "Süß"}, summary={"loss": 0.25},
    )  # fmt: skip
    return replace(made, **changes)


def same(a: Concept, b: Concept) -> bool:
    plain = lambda c: replace(c, lora=None, embeddings=None)  # noqa: E731
    one, two = a.tensors(), b.tensors()
    return plain(a) == plain(b) and one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("changes", [{}, {"lora": None}, {"embeddings": None}, {"role": "extractor", "kind": "style"}])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, changes: dict) -> None:
    saved = concept(**changes)
    save_concept(saved, tmp_path / "c.safetensors")
    loaded = load_concept(tmp_path / "c.safetensors")
    assert same(saved, loaded)
    assert loaded.uid == saved.uid
    assert (loaded.lora is None) == (saved.lora is None) and (loaded.embeddings is None) == (saved.embeddings is None)
    if saved.embeddings:
        assert loaded.embeddings.mode == "offset"
    if saved.lora:
        assert (loaded.lora.alpha, loaded.lora.rank, loaded.lora.scale) == (8.0, 4, 2.0)


def test_every_lora_module_has_its_alpha_and_the_names_that_stock_loaders_read(tmp_path: Path) -> None:
    save_concept(concept(), tmp_path / "c.safetensors")
    tensors, metadata = load_tensors(tmp_path / "c.safetensors")
    modules = {key.split(".lora_")[0] for key in tensors if ".lora_" in key}
    assert modules == {f"transformer.transformer_blocks.{i}.attn.to_q" for i in range(2)}
    assert all(float(tensors[f"{module}.alpha"]) == 8.0 for module in modules)
    assert metadata["modelspec.trigger_phrase"] == "[V]"
    assert all(isinstance(value, str) for value in metadata.values())


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path, good = tmp_path / "c.safetensors", concept()
    save_concept(good, path)
    with pytest.raises(TypeError):
        save_concept(concept(settings={"not JSON": object()}), path)
    assert same(load_concept(path), good)
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    "changes",
    [{"class_word": "cat"}, {"trigger": "[W]"}, {"role": "extractor"}, {"base": "another model's"}, {"kind": "style"}],
)
@pytest.mark.parametrize("content", ["concept", "plain LoRA", "embedding"])
def test_a_file_of_another_concept_gives_way_and_is_kept(tmp_path: Path, changes: dict, content: str) -> None:
    vectors = {"clip_l": torch.randn(1, 8), "clip_g": torch.randn(1, 8)}
    parts = {
        "concept": lambda c: (c.tensors(), c.metadata()),
        "plain LoRA": plain_lora,
        "embedding": lambda c: embedding_file(replace(c, token_embeddings=vectors), "c"),
    }[content]
    path, kept = tmp_path / "c.safetensors", [tmp_path / f"c_kept_{number}.safetensors" for number in (1, 2)]
    first, again, other = concept(), concept(), concept(**changes)  # the second is the first learnt otherwise
    assert save_beside_others(path, *parts(first)) is None
    assert save_beside_others(path, *parts(again)) is None
    was = path.read_bytes()
    assert save_beside_others(path, *parts(other)) == kept[0] and kept[0].read_bytes() == was
    others = path.read_bytes()
    assert save_beside_others(path, *parts(first)) == kept[1] and kept[1].read_bytes() == others
    for _ in range(3):  # two nodes of one name take turns
        save_beside_others(path, *parts(other)), save_beside_others(path, *parts(first))
    assert sorted(tmp_path.iterdir()) == sorted([path, *kept])


def test_a_file_of_another_kind_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    loras = [
        safetensors.torch.save({"lora": torch.full((1,), value)}) for value in (0.0, 1.0)
    ]  # without metadata, of others
    for number, content in enumerate((b"not a tensor", *loras), 1):
        path.write_bytes(content)
        kept = save_beside_others(path, concept().tensors(), concept().metadata())
        assert kept == tmp_path / f"c_kept_{number}.safetensors" and kept.read_bytes() == content


def test_where_the_disk_is_full_no_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "c.safetensors", concept(class_word="cat")
    save_concept(concept(), path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left: make room, and run again.*c.safetensors"):
        save_beside_others(path, other.tensors(), other.metadata())
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


def test_other_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no concept file absent.safetensors"):
        load_concept(tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="broken.safetensors is not a readable safetensors file"):
        load_concept(broken)
    lora = tmp_path / "lora.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, lora, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not a PureCC concept: its metadata lacks trigger.*Load LoRA"):
        load_concept(lora)
    save_concept(concept(kind="scent"), tmp_path / "kind.safetensors")
    with pytest.raises(ValueError, match='of kind "scent"; this version knows instance, style'):
        load_concept(tmp_path / "kind.safetensors")


Q = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{Q}.lora_B.weight": None}, f"it lacks {Q}.lora_B.weight"),
        ({f"{Q}.alpha": None}, f"it lacks {Q}.alpha"),
        ({f"{Q}.lora_B.weight": torch.full((8, 4), float("nan"))}, "is not finite"),
        ({f"{Q}.alpha": torch.tensor(2.0)}, "modules of different alpha"),
        ({f"{Q}.alpha": torch.tensor(float("nan"))}, "alpha is no number"),
        ({f"{Q}.alpha": torch.ones(2)}, "alpha is no number"),
        ({f"{Q}.lora_B.weight": torch.ones(8, 9)}, "do not go together"),
        ({f"{Q}.lora_A.weight": torch.ones(7, 8), f"{Q}.lora_B.weight": torch.ones(8, 7)}, "modules of different rank"),
        ({f"{Q}.lora_A.weight": torch.full((4, 8), float("inf"))}, "is not finite"),
        ({"concept.clip": torch.ones(3)}, "concept.clip .* is of another shape"),
        ({"concept.t5": torch.full((2, 2, 8), float("nan"))}, "concept.t5 .* is not finite"),
        ({"purecc.embedding_mode": '"hum"'}, 'embeddings of mode "hum"'),
        ({"purecc.embedding_mode": None}, 'embeddings of mode "None"'),
        ({"purecc.settings": "{"}, "its metadata is damaged"),
        ({"purecc.settings": "[]", "purecc.trigger": "5"}, "its trigger, settings cannot be read"),
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_file_is_refused_with_the_reason(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "c.safetensors"
    save_concept(concept(), path)
    tensors, metadata = load_tensors(path)
    for key, value in change.items():
        part = metadata if key.startswith("purecc.") else tensors
        part.pop(key)
        if value is not None:
            part[key] = value
    save_tensors(path, tensors, metadata)
    with pytest.raises(ValueError, match=message):
        load_concept(path)


def test_the_number_is_stable_small_and_of_the_content() -> None:
    torch.manual_seed(0)
    one = concept()
    again = replace(one, settings={}, summary={}, trigger="[v]")
    assert one.uid == again.uid and 0 < one.uid < 2**29
    shifted = ConceptEmbeddings(one.embeddings.clip + 1, one.embeddings.t5, "offset")
    assert len({one.uid, replace(one, trigger="<w>").uid, replace(one, embeddings=shifted).uid}) == 3


def test_slots_of_the_two_parts_of_the_text() -> None:
    embeddings = concept().embeddings
    assert torch.equal(embeddings.slot(1), embeddings.clip[:, 1])
    assert torch.equal(embeddings.slot(4), embeddings.clip[:, 1])  # beyond the last, from the first
    assert torch.equal(embeddings.slot(T5_SLOT + 3), embeddings.t5[:, 1])
    assert ConceptEmbeddings(embeddings.clip).slot(T5_SLOT) is None


def test_the_placeholder_has_a_class_word_for_each_token() -> None:
    assert concept().placeholder.words == "dog dog dog"
    assert concept(embeddings=None).placeholder.words == "dog"


@pytest.mark.parametrize(
    ("kind", "trained", "expected"),
    [
        ("instance", "off", "picture"), ("style", "off", "conditioning"), ("style", "rows", "rows"),
        ("style", "picture", "picture"), ("instance", "conditioning", "conditioning"),
    ],
)  # fmt: skip
def test_the_gate_when_nobody_says_otherwise(kind: str, trained: str, expected: str) -> None:
    assert concept(kind=kind, gate=trained).sampling_gate == expected


def test_beside_a_learnt_word_there_is_no_base_to_leave_anything_to() -> None:
    assert [concept(kind=kind).held for kind in ("instance", "style")] == ["instance", "style"]
    word = {"clip_l": torch.zeros(1, 8)}
    assert concept(token_embeddings=word).held is None
