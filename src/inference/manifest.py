"""model.json: the description of an exported or quantised folder, checked before the model is loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from src.common.errors import InputError
from src.common.files import fingerprint, write_text
from src.common.reading import read_json
from src.common.vocabulary import check_vocabulary, check_vocabulary_size
from src.pangu_alpha_config import PanguAlphaConfig
from src.tokenization import Tokenizer, load_tokenizer

FORMAT_VERSION = 1
MANIFEST_FILE = "model.json"
_AGAIN = "make it again (python export.py --help; for quantised ones python -m src.cpu.quantize --help)"


@dataclass
class Manifest:
    """The description of a folder.

    Args:
        model: Configuration of the whole model.
        tokenizer: jieba or gpt.
        vocabulary_md5: md5 of the vocabulary file; None if the vocabulary was unknown.
        end_token: Id that ends an answer.
        rows: Rows of the KV cache; 0 if the user of the folder chooses them.
        prefill_lengths: Number of tokens that each graph for prompts reads, ascending.
        score_lengths: Number of tokens that each graph for scoring reads; empty if there are no such graphs.
        rank: Number of the rank whose slice of the model this is.
        world_size: Number of slices.
        attention: flash if the graphs of generation attend by the operators of Ascend A2 and A3; else plain.
        quantization: Fields of the `Format` in which `src.cpu` stores the weights; None for MindIR graphs.
        files: Size and CRC-32 of each file.
    """

    model: PanguAlphaConfig
    tokenizer: str
    vocabulary_md5: str | None
    end_token: int
    rows: int
    prefill_lengths: list[int]
    score_lengths: list[int]
    rank: int = 0
    world_size: int = 1
    attention: str = "plain"
    quantization: dict | None = None
    files: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def graphs(self) -> dict[str, list[tuple[int, ...]]]:
        """Kinds of graphs in the folder, with the shapes of their int32 inputs.

        A kind is the number of tokens that the graph reads (1 for decoding), `reorder`, or `score_` and a number of
        tokens.
        """
        rows = self.rows
        return {
            **{str(length): [(1, length), (1,), (1,), (1,)] for length in self.prefill_lengths},
            "1": [(rows, 1), (rows,), (rows,), (rows,)],
            "reorder": [(rows,)],
            **{f"score_{length}": [(1, length), (length,)] for length in self.score_lengths},
        }

    @property
    def identity(self) -> str:
        """Digest of the description and of the fingerprints of all files. Another model has another one."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def write(self, folder: Path) -> None:
        """Write model.json with the fingerprints of all other files in the folder."""
        self.files = {
            str(path.relative_to(folder)): fingerprint(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != MANIFEST_FILE
        }
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        write_text(folder / MANIFEST_FILE, json.dumps(content, indent=1) + "\n")

    @classmethod
    def read_settings(cls, folder: str | Path) -> Manifest:
        """Read the manifest of a folder without a check of the other files.

        Raises:
            InputError: There is no manifest, or it has another version.
        """
        path = Path(folder) / MANIFEST_FILE
        if not path.is_file() and any(Path(folder).glob("**/*.onnx")):
            raise InputError(
                f"{folder} holds ONNX files of another tool, which are not read here: quantise the checkpoint itself, "
                "which takes minutes (python -m src.cpu.quantize --checkpoint FILE --output FOLDER; docs/cpu.md)"
            )
        if not path.is_file():
            raise InputError(f"{folder} holds no exported or quantised model ({MANIFEST_FILE}); {_AGAIN}")
        try:
            content = read_json(path)
            version = content.pop("format_version")
            if version == FORMAT_VERSION:
                return cls(**content | {"model": PanguAlphaConfig(**content["model"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} can't be read ({error}); {_AGAIN}") from error
        raise InputError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}; {_AGAIN}")

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """Read the manifest of a folder, and check that its files are unchanged since they were written.

        Raises:
            InputError: As `read_settings`; or a file is missing or damaged.
        """
        manifest = cls.read_settings(folder)
        manifest.check_files(Path(folder))
        return manifest

    def check_files(self, folder: Path) -> None:
        """Raise InputError if a file of the folder is missing or damaged."""
        for name, recorded in self.files.items():
            file = folder / name
            if not file.is_file():
                raise InputError(f"{file} is missing; copy the whole folder, or {_AGAIN}")
            found = file.stat().st_size
            if found != recorded["bytes"]:
                raise InputError(
                    f"{file} has {found} bytes, {recorded['bytes']} were written: it is truncated or of "
                    f"another model; copy it again, or {_AGAIN}"
                )
            if fingerprint(file) != recorded:
                raise InputError(f"{file} was changed after it was written; copy it again, or {_AGAIN}")

    def require_graphs(self, folder: str | Path) -> None:
        """Raise InputError if the folder holds no MindIR graphs."""
        if self.quantization is not None:
            raise InputError(
                f"{folder} holds a model for the CPU engine, not MindIR graphs; export.py writes those. "
                "pangu_inference.py and serving_increment.flask.server run this one"
            )

    def load_tokenizer(self, path: str | Path) -> Tokenizer:
        """Load the vocabulary at `path`.

        Raises:
            InputError: There is no vocabulary, or it is not the model's.
        """
        if str(path):  # before it is read: a damaged file may not even be readable
            check_vocabulary(
                path, self.vocabulary_md5, "take that one, or export or quantise the model again with this one"
            )
        tokenizer = load_tokenizer(self.tokenizer, path)
        check_vocabulary_size(tokenizer.vocab_size, self.model.vocab_size, path)
        return tokenizer
