"""Surroundings held at the base model's while the host samples, against the core."""

from __future__ import annotations

from dataclasses import replace

import torch
from common import Prediction, Result, check, encode, host, picture, predict, random_concept, rel
from of_concepts import NEGATIVE, PLAIN, PROMPT, TIMES, encoded, expected, joined, scaled
from purecc_pack.nodes.host.apply import apply_concept
from purecc_pack.purecc.place import kept_in_place


def _seen(model, clip, prompt: str = PROMPT, batch: int = 2) -> Prediction:
    return predict(model, encode(clip, prompt), encode(clip, NEGATIVE), TIMES, batch=batch)


@check
def surroundings() -> Result:
    """In the place the concept's velocities, around it the base's, for prompt and negative; nothing where no trigger is."""
    result, (model, clip, _) = Result(), host()
    concept = random_concept(tokens=2)
    texts = encoded(NEGATIVE, concept), encoded(PROMPT, concept)
    held, knows = apply_concept(model, clip, concept, gate="picture", hold_surroundings=True)
    free, _ = apply_concept(model, clip, concept, gate="picture")
    got, acted = _seen(held, knows), _seen(free, knows)
    ours, base = ([expected(one, got.x, text) for text in texts] for one in (concept, None))
    negative, positive = kept_in_place(ours, base, [False, True])
    result.figure("picture: the prompt's", got.positive, positive, acted.positive)
    result.figure("picture: the negative's", got.negative, negative, acted.negative)
    result.figure("picture: not the base's either", got.positive, positive, base[1])
    result.sentences[f"picture: two forwards ({got.batches})"] = got.batches == [4, 4]

    held, knows = apply_concept(model, clip, concept, gate="conditioning", hold_surroundings=True)
    got = _seen(held, knows)
    ours, base = (expected(one, got.x, texts[1]) for one in (concept, None))
    result.figure("conditioning: the prompt's", got.positive, kept_in_place([ours], [base], [True])[0], ours)
    plain = _seen(model, clip, PLAIN)
    result.sentences["conditioning: the negative is the base's"] = torch.equal(got.negative, plain.negative)
    result.sentences[f"conditioning: the base reads the prompt alone ({got.batches})"] = got.batches == [4, 2]

    base = picture(model, encode(clip, PLAIN), encode(clip, NEGATIVE), batch=2)
    held, knows = apply_concept(model, clip, concept, gate="picture", hold_surroundings=True)
    same = picture(held, encode(knows, PLAIN), encode(knows, NEGATIVE), batch=2)
    result.sentences["without the trigger: the base's picture"] = torch.equal(same, base)
    once = _seen(held, knows, PLAIN)
    result.sentences[f"without the trigger: one forward ({once.batches})"] = once.batches == [4]
    later, _ = apply_concept(model, clip, concept, gate="picture", span=(0.5, 1.0), hold_surroundings=True)
    before = predict(later, encode(knows, PROMPT), encode(knows, NEGATIVE), 0.99)
    result.sentences[f"before its span: one forward ({before.batches})"] = before.batches == [2]
    off, knows_too = apply_concept(model, clip, concept, gate="off", hold_surroundings=True)
    result.sentences["the gate off is a plain LoRA"] = _seen(off, knows_too).batches == [4]
    style, _ = apply_concept(model, clip, replace(concept, kind="style"), gate="picture", hold_surroundings=True)
    result.sentences["a style has no surroundings"] = _seen(style, knows).batches == [4]
    return result


@check
def surroundings_of_two() -> Result:
    """Two concepts have one place if both hold; one that does not goes on acting in the surroundings too."""
    result, (model, clip, _) = Result(), host()
    one, two = (scaled(random_concept(word, seed), 0.5) for word, seed in (("[V]", 5), ("<w>", 6)))
    prompt = "a [V] and a <w> on the beach"
    texts = encoded(NEGATIVE, one, two), encoded(prompt, one, two)
    for second_holds, around in ((True, None), (False, two)):
        chain = apply_concept(model, clip, one, gate="picture", hold_surroundings=True)
        chain, knows = apply_concept(*chain, two, gate="picture", hold_surroundings=second_holds)
        got = _seen(chain, knows, prompt)
        ours = [expected(joined(one, two), got.x, text) for text in texts]
        base = [
            expected(around, got.x, text)
            for text in (encoded(NEGATIVE, two), encoded(prompt.replace("[V]", "dog"), two))
        ]
        if around is None:
            base = [expected(None, got.x, text) for text in texts]
        result.figure(
            f"the second holds: {second_holds}", got.positive, kept_in_place(ours, base, [False, True])[1], ours[1]
        )
    result.sentences[f"two forwards ({got.batches})"] = got.batches == [4, 4]
    result.figures["where one alone holds is another picture"] = (0.0, rel(base[1], ours[1]))
    return result
