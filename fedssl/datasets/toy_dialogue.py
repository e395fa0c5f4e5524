"""A made-up dialogue that needs no download: sentences of a small grammar, spoken by people of different trades."""

from __future__ import annotations

import numpy as np

SEED = 2411
LENGTH = 36_000
"""Characters, about."""

SPEAKERS = {
    "Miller": ("grain flour sack wheel", "grind bring weigh"),
    "Sailor": ("boat rope sail anchor", "mend pull follow"),
    "Baker": ("bread oven loaf crust", "bake smell cut"),
    "Gardener": ("rose tree seed fence", "plant water paint"),
    "Smith": ("iron hammer horse nail", "strike bend heat"),
    "Doctor": ("herb bottle patient fever", "cure shake count"),
    "Weaver": ("wool thread loom shirt", "spin fold colour"),
    "Shepherd": ("sheep lamb dog hill", "guard lead find"),
}
"""Nouns and verbs of each."""

ADJECTIVES = "old new small heavy red good"
OPENINGS = ("", "today ", "my friend, ", "in the morning ", "if it rains, ")


def toy_dialogue(length: int = LENGTH) -> str:
    """Speeches of one to three sentences; verbs agree with the number of their subject.

    The first speaker says most and the last one least, by Zipf's law with exponent 0.5.

    Args:
        length: Characters, at least; the last speech is finished.
    """
    # RandomState, not Generator: NumPy promises to keep only its stream unchanged
    random = np.random.RandomState(SEED)
    names = list(SPEAKERS)
    shares = 1 / np.sqrt(1 + np.arange(len(names)))
    written: list[str] = []
    while sum(map(len, written)) < length:
        name = names[random.choice(len(names), p=shares / shares.sum())]
        said = [sentence(name, random) for _ in range(random.randint(1, 4))]
        written.append(f"{name}:\n{' '.join(said)}\n\n")
    return "".join(written)


def sentence(speaker: str, random: np.random.RandomState) -> str:
    """One sentence about a speaker's trade."""
    nouns, verbs = (words.split() for words in SPEAKERS[speaker])
    adjectives, many = ADJECTIVES.split(), random.randint(2)
    subject, object_, verb = random.choice(nouns), random.choice(nouns), random.choice(verbs)
    described = f"{random.choice(adjectives)} {object_}" if random.randint(2) else object_
    who, does = ("we", verb) if many else (f"the {subject} man", f"{verb}s")
    opening = OPENINGS[random.randint(len(OPENINGS))]
    return f"{opening}{who} {does} the {described}.".capitalize()
