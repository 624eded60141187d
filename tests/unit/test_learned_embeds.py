"""learned_embeds.pt of the public code: read without running it, or refused with the reason."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from tiny import noise

from purecc.learned_embeds import read_learned_embeds


def written(path: Path, **changed: object) -> dict:
    """As the public code writes it; None takes a key's value away."""
    held = {
        "new_concept_token": "<new1>", "initializer_token": "toy", "embedding_one": noise(768, seed=1),
        "embedding_two": noise(1280, seed=2),
    } | changed  # fmt: skip
    torch.save(held, path)
    return held


def test_both_rows_and_words_are_read(tmp_path: Path) -> None:
    path = tmp_path / "learned_embeds.pt"
    held = written(path)
    read = read_learned_embeds(path)
    assert (read.token, read.initializer, set(read.rows)) == ("<new1>", "toy", {"clip_l", "clip_g"})
    assert torch.equal(read.rows["clip_l"], held["embedding_one"][None])
    assert torch.equal(read.rows["clip_g"], held["embedding_two"][None])


def test_one_encoder_other_dtypes_and_several_tokens_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "e.pt"
    held = written(path, embedding_one=None, embedding_two=noise(3, 1280).half(), initializer_token=None)
    read = read_learned_embeds(path)
    assert (read.initializer, set(read.rows)) == ("", {"clip_g"})
    assert read.rows["clip_g"].dtype == torch.float32
    assert torch.equal(read.rows["clip_g"], held["embedding_two"].float())


def test_a_row_of_a_whole_vocabulary_is_copied_alone(tmp_path: Path) -> None:
    """torch.save keeps the storage of a view: the row that is given does not hold on to it."""
    path = tmp_path / "e.pt"
    written(path, embedding_one=noise(20, 768)[7])
    assert read_learned_embeds(path).rows["clip_l"].untyped_storage().nbytes() == 4 * 768


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"new_concept_token": None}, "names no new_concept_token; .* Its keys: embedding_one, embedding_two"),
        ({"new_concept_token": "  "}, "names no new_concept_token"),
        ({"initializer_token": 3}, "names no new_concept_token"),
        ({"embedding_one": None, "embedding_two": None}, "neither embedding_one nor embedding_two is there"),
        ({"embedding_one": torch.ones(1280)}, r"embedding_one is \[1280\]; expected is \[768\]"),
        ({"embedding_one": torch.ones(1, 1, 768)}, r"embedding_one is \[1, 1, 768\]"),
        ({"embedding_two": torch.ones(0, 1280)}, r"embedding_two is \[0, 1280\]"),
        ({"embedding_two": torch.ones(1280, dtype=torch.int64)}, "embedding_two is no tensor of numbers"),
        ({"embedding_two": [0.1] * 1280}, "embedding_two is no tensor of numbers"),
        ({"embedding_two": torch.full((1280,), torch.nan)}, "embedding_two is not finite, or 0"),
        ({"embedding_one": torch.zeros(768)}, "embedding_one is not finite, or 0"),
        ({"embedding_one": torch.ones(2, 768)}, "has 2 and 1 tokens in the two encoders"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "e.pt"
    written(path, **changed)
    with pytest.raises(ValueError, match=f"e.pt.*{message}"):
        read_learned_embeds(path)


class Program:
    """What a pickle can do: run a command when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("torchs", [True, False])
def test_a_program_in_the_file_is_not_run(torchs: bool, tmp_path: Path) -> None:
    path, mark = tmp_path / "e.pt", tmp_path / "ran"
    if torchs:
        written(path, extra=Program(mark))
    else:
        path.write_bytes(pickle.dumps({"new_concept_token": Program(mark)}))
    with pytest.raises(ValueError, match="e.pt (holds more than tensors|is not a readable)") as refused:
        read_learned_embeds(path)
    assert not mark.exists()
    assert "succeed" not in str(refused.value)  # torch's own advice: switch the protection off
    assert not torchs or "it asks for posix.mkdir" in str(refused.value) or "it asks for nt.mkdir" in str(refused.value)
    torch.load(path, weights_only=False) if torchs else pickle.loads(path.read_bytes())
    assert mark.exists()  # it would have run


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.pt"
    with pytest.raises(ValueError, match="There is no file e.pt"):
        read_learned_embeds(path)
    for content in (b"", b"no file of torch's", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="e.pt (holds more than|is not a readable)"):
            read_learned_embeds(path)
    torch.save([torch.ones(768)], path)
    with pytest.raises(ValueError, match="e.pt holds a list"):
        read_learned_embeds(path)
    with path.open("wb") as file:
        file.truncate(2**30 + 1)  # takes no room on the disk
    with pytest.raises(ValueError, match="1073741825 bytes, more than a token embedding can have"):
        read_learned_embeds(path)
    written(path)
    with pytest.raises(ValueError, match="Update torch to 2.6"):
        read_learned_embeds(path, "2.5.1+cu124")
    assert read_learned_embeds(path, "2.10.0a0").token == "<new1>"
