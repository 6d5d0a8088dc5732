"""Names of persons and places by Presidio with a local spaCy model. Optional; it never reaches the network.

Only Presidio's spaCy recogniser is set up: those with rules of their own would load a list of public suffixes from
the network, and what they find, our own detectors find. The model is looked for before Presidio is asked for it,
since Presidio would download one that is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from luthier.corpus.personal.spans import Span
from luthier.errors import DataError

ENTITIES = {"PERSON": "person", "LOCATION": "location"}
TYPES = tuple(ENTITIES.values())
PIECE_CHARS = 100_000  # spaCy refuses texts of a million characters; memory goes with the length


def names(text: str, model: str | None) -> Iterator[Span]:
    """Persons and places in a text; nothing without a model."""
    if model is None:
        return
    language = language_of(model)
    for offset, piece in pieces(text):
        for found in analyzer(model).analyze(text=piece, language=language, entities=list(ENTITIES)):
            if any(char.isalpha() for char in piece[found.start : found.end]):  # bare numbers are no names
                yield Span(ENTITIES[found.entity_type], offset + found.start, offset + found.end, found.score)


def pieces(text: str) -> Iterator[tuple[int, str]]:
    """Where each piece begins, and the piece: cut at white space where there is any."""
    start = 0
    while start < len(text):
        end = min(start + PIECE_CHARS, len(text))
        if end < len(text):
            space = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
            end = space if space > 0 else end
        yield start, text[start:end]
        start = end


def language_of(model: str) -> str:
    """spaCy's models begin with their language: `en_core_web_sm`."""
    return Path(model).name[:2]


def check_model(model: str) -> None:
    """Raise DataError where Presidio or the model is not installed, with the command that installs it."""
    for package, distribution in (("presidio_analyzer", "presidio-analyzer"), ("spacy", "spacy")):
        if importlib.util.find_spec(package) is None:
            raise DataError(f"steps.personal.names: presidio needs {distribution}: pip install {distribution}")
    spacy: Any = importlib.import_module("spacy")
    if not (spacy.util.is_package(model) or Path(model).is_dir()):
        raise DataError(
            f'steps.personal.names_model: no spaCy model "{model}" on this machine, and none is downloaded unasked. '
            f"Install it: python -m spacy download {model}, or give the folder of a model."
        )


@cache
def analyzer(model: str) -> Any:
    """Presidio's engine with the spaCy recogniser alone, loaded once a process."""
    check_model(model)
    presidio: Any = importlib.import_module("presidio_analyzer")
    engines: Any = importlib.import_module("presidio_analyzer.nlp_engine")
    recognisers: Any = importlib.import_module("presidio_analyzer.predefined_recognizers")
    language = language_of(model)
    configuration = {"nlp_engine_name": "spacy", "models": [{"lang_code": language, "model_name": model}]}
    recogniser = recognisers.SpacyRecognizer(supported_language=language, supported_entities=list(ENTITIES))
    return presidio.AnalyzerEngine(
        registry=presidio.RecognizerRegistry(recognizers=[recogniser], supported_languages=[language]),
        nlp_engine=engines.NlpEngineProvider(nlp_configuration=configuration).create_engine(),
        supported_languages=[language],
    )
