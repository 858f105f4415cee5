"""GPT-2's tokenizer: byte-level BPE from a local vocab.json and merges.txt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from src.common.checks import check_ids, check_text, vocabulary_file
from src.common.errors import InputError

END_OF_TEXT = "<|endoftext|>"
_REMEDY = "give a folder with the vocab.json and merges.txt of a GPT-2 vocabulary"


class GPTTokenizer:
    """Text to ids by GPT-2's published encoder and back; see `src.tokenization.Tokenizer`.

    Any text comes back whole, since every byte is a piece. `<|endoftext|>` ends a text, ends a document and pads;
    written in a text it is plain characters, as in the published encoder. Ids that break a character off decode to
    U+FFFD.

    Args:
        path: The folder of vocab.json and merges.txt, or vocab.json with merges.txt beside it.

    Raises:
        InputError: A file is missing, or the two are no byte-level BPE.
    """

    def __init__(self, path: str | Path) -> None:
        vocab_file = vocabulary_file(path, "vocab.json", _REMEDY)
        merges_file = vocabulary_file(vocab_file.parent, "merges.txt", _REMEDY)
        try:
            model = models.BPE.from_file(str(vocab_file), str(merges_file))
        except Exception as error:  # the library has no narrower class
            raise InputError(f"{vocab_file} and {merges_file.name} are no BPE vocabulary; {_REMEDY}") from error
        self._tokenizer = Tokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        vocab = self._tokenizer.get_vocab()
        if not vocab.keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
            raise InputError(f"{vocab_file} lacks some of the 256 byte pieces of a GPT-2 vocabulary; {_REMEDY}")
        if set(vocab.values()) != set(range(len(vocab))):
            raise InputError(f"{vocab_file} does not number its {len(vocab)} pieces 0 .. {len(vocab) - 1}; {_REMEDY}")
        self.vocab_size = len(vocab)
        self.eot_id = self.eod_id = self.pad_id = vocab.get(END_OF_TEXT)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; raises InputError for half a surrogate pair."""
        check_text(text)
        return self._tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; raises InputError for an id outside the vocabulary."""
        check_ids(ids, self.vocab_size)
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)
