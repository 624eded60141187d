"""What runs along a PURECC_SETTINGS wire: which value wins."""

from __future__ import annotations

from dataclasses import replace

from common import Result, check, noise, random_concept
from purecc_pack.nodes.settings import Settings, advanced_of
from purecc_pack.nodes.train import embeddings_of
from purecc_pack.nodes.types import Advanced


@check
def settings_win_over_faces_and_presets_over_both() -> Result:
    result = Result()
    face = {"steps": 7, "batch_size": 1, "learning_rate": 0.1, "embedding_rate": 0.2, "rank": 8, "seed": 3}
    plain = Advanced().train_settings("pure", embeddings="offset", **face)
    seen = (plain.steps, plain.alpha, plain.embeddings, plain.gate)
    result.sentences[f"nothing connected: {seen}"] = seen == (7, 8.0, "offset", "off")
    own = Advanced(train={"gate": "rows", "alpha": 2.0}, pure={"base_anchor": 0.5}, extractor_lora=False)
    seen = (own.train_settings("pure", embeddings="none", **face).gate, own.pure_settings(eta=3.0).base_anchor)
    result.sentences[f"the node's values: {seen}"] = seen == ("rows", 0.5)
    result.sentences["its alpha"] = own.train_settings("extractor", embeddings="none", **face).alpha == 2.0
    result.sentences["rank 0 needs no alpha"] = (
        Advanced().train_settings("pure", embeddings="replace", **{**face, "rank": 0}).alpha == 0
    )
    code = Advanced(train={"gate": "rows"}, pure={"scale_multiplier": 9.0}, preset="public code")
    one, two = (code.train_settings(stage, embeddings="offset", **face) for stage in ("extractor", "pure"))
    seen = (one.steps, one.batch_size, one.embeddings, two.steps, two.batch_size, two.embeddings, two.gate, two.seed)
    result.sentences[f"a preset: {seen}"] = seen == (400, 4, "none", 800, 4, "offset", "off", 3)
    pure = code.pure_settings(method="LoRA", eta=9.0, original="frozen base", fixed_scale=None)
    seen = (pure.method, pure.eta, pure.fixed_scale, pure.original, pure.scale_multiplier, code.guides_with_lora)
    result.sentences[f"and its method: {seen}"] = seen == ("PureCC", 2.0, 1.0, "trainable", 1.0, False)
    result.sentences["the node says so"] = "preset public code" in code.described() and "gate: rows" in code.described()
    result.sentences["nothing changed is said"] = Advanced().described() == "nothing changed"
    as_it_comes = advanced_of({one.id: one.default for one in Settings.define_schema().inputs}).described()
    result.sentences[f"also of the node as it comes: {as_it_comes}"] = as_it_comes == "nothing changed"
    result.raises("another name", "no preset", lambda: Advanced(preset="best").described())
    return result


@check
def settings_by_their_names() -> Result:
    """Of what the node gives, the bounds and the last block have a value for none."""
    result = Result()
    values = {
        "preset": "as shown", "gate": "rows", "last_block": -1, "alpha": 0.0, "stage2_embeddings": "as the extractor",
        "extractor_lora": True, "target": "in-context", "lambda_multiplier": 2.0, "lambda_min": -100.0, "lambda_max": 3.0,
        "validation_prompts": "a dog \n\n b", "validation_every": 5, "validation_seeds": "3, 0 3",
    }  # fmt: skip
    made = advanced_of(values)
    result.sentences[f"of both stages: {made.train}"] = made.train == {"gate": "rows", "alpha": 0.0, "last_block": None}
    expected = {"target": "in-context", "scale_multiplier": 2.0, "scale_min": None, "scale_max": 3.0}
    result.sentences[f"of the method: {made.pure}"] = made.pure == expected
    result.sentences[f"prompts: {made.validation_prompts}"] = made.validation_prompts == ("a dog", "b")
    result.sentences[f"seeds: {made.validation_seeds}"] = made.validation_seeds == (3, 0)
    result.sentences["stage 2 as the extractor"] = made.stage2_embeddings is None
    return result


@check
def stage_two_has_the_extractors_embeddings() -> Result:
    """Of either kind, whatever the settings of stage 1 say; or none."""
    result, face = (
        Result(),
        {"steps": 7, "batch_size": 1, "learning_rate": 0.1, "embedding_rate": 0.2, "rank": 0, "seed": 3},
    )
    tokens = replace(random_concept(embeddings=False), token_embeddings={"clip_l": noise(1, 128)})
    layers = random_concept(mode="offset")
    for advanced in (Advanced(), Advanced(train={"token_embeddings": False}), Advanced(preset="public code")):
        got = advanced.train_settings("pure", **embeddings_of(tokens, None), **face)  # nothing else learns
        result.sentences[f"{advanced}: input embeddings"] = (got.embeddings, got.token_embeddings) == ("none", True)
    got = Advanced(train={"token_embeddings": True}).train_settings("pure", **embeddings_of(layers, None), **face)
    result.sentences["layer-wise ones alone"] = (got.embeddings, got.token_embeddings) == ("offset", False)
    for extractor in (tokens, layers):
        result.sentences[f"none of {extractor.uid}"] = embeddings_of(extractor, "none") == {
            "embeddings": "none",
            "tokens": False,
        }
    result.sentences["no extractor"] = [embeddings_of(None, asked)["embeddings"] for asked in (None, "none")] == [
        "replace",
        "none",
    ]
    result.raises("none to begin with", "no layer-wise embeddings", lambda: embeddings_of(tokens, "replace"))
    return result
