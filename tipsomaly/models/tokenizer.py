"""Sentences to token ids, as the TIPS text tower wants them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor


class Tokenizer:
    """A SentencePiece model; sentences are lower-cased, cut to `max_length` ids and padded with id 0, no BOS or EOS.

    `words` are all words that the text tower was trained on, lower-cased, where they are so few that a class name may
    hold others; None where the tower has seen the web."""

    def __init__(self, model: str | Path | bytes, max_length: int = 64, words: Iterable[str] | None = None) -> None:
        self.model = model if isinstance(model, bytes) else Path(model).read_bytes()
        self.max_length = max_length
        self.words = None if words is None else frozenset(words)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self.model)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model: {error}") from None

    @property
    def vocab_size(self) -> int:
        """Number of pieces; ids are below it."""
        return self._processor.GetPieceSize()

    def unknown(self, text: str) -> list[str]:
        """The words of a text that the text tower was not trained on, as far as that is known."""
        if self.words is None:
            return []
        return [word for word in dict.fromkeys(text.lower().split()) if word not in self.words]

    def __call__(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(n, max_length) int64 ids and (n, max_length) bool, true where an id is not padding."""
        ids = np.zeros((len(sentences), self.max_length), dtype=np.int64)
        valid = np.zeros((len(sentences), self.max_length), dtype=bool)
        for row, pieces in enumerate(self._processor.EncodeAsIds([s.lower() for s in sentences])):
            pieces = pieces[: self.max_length]
            ids[row, : len(pieces)] = pieces
            valid[row, : len(pieces)] = True
        return torch.from_numpy(ids), torch.from_numpy(valid)
