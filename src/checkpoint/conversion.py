"""Convert a checkpoint to another format, one parameter at a time."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.checkpoint import store
from src.checkpoint.convert_arguments import ConvertArguments
from src.checkpoint.finite import require_finite
from src.checkpoint.formats.parameters import FLOATS, File, Options, Piece, Source, Target
from src.checkpoint.formats.registry import FORMATS, network_of
from src.common.errors import InputError
from src.common.files import flush, naming, temporary_path
from src.common.reading import lines_of, read_text
from src.common.settings import DataConfig, GenerationConfig, TrainingConfig
from src.common.vocabulary import check_vocabulary, check_vocabulary_size, vocabulary_md5
from src.pangu_alpha_config import PanguAlphaConfig, RunConfig
from src.parallel.plan.holder import Holder
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import parameter_shapes
from src.tokenization_jieba import MODEL_NAME, JiebaTokenizer

RESUMED = "source.json"  # in an unfinished folder: the arguments and source files of the conversion
_CHUNK = 1 << 22  # elements that are cast, and bytes that are hashed, at once


@dataclass
class Summary:
    """Summary of a conversion, for the closing line.

    Args:
        parameters: Number of parameters.
        values: Number of elements of all parameters.
        files: Number of written files, without small text files.
        bytes: Size of these files.
        left_out: Names of what else the source holds, such as moments.
        cast_to: The dtype to which parameters were cast; empty if none were.
        cast: Number of parameters that were cast, by their original dtype.
        rounded: Number of elements that changed their value in the cast, by parameter.
        went_on: Bytes that an interrupted conversion had already written.
        lost_md5: The written format has no place for the MD5 of the model's vocabulary.
        lacking: What else should lie beside the weights, and how to get it.
    """

    parameters: int
    values: int
    files: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    cast_to: str = ""
    cast: Counter = field(default_factory=Counter)
    rounded: dict[str, int] = field(default_factory=dict)
    went_on: int = 0
    lost_md5: bool = False
    lacking: str = ""

    def __str__(self) -> str:
        told = [
            f"{self.parameters} parameters, {self.values:,} values in {self.files} file{'s'[: self.files != 1]}, "
            f"{self.bytes:,} bytes"
        ]
        if self.went_on:
            told.append(f"{self.went_on:,} bytes were there already")
        for dtype, number in self.cast.items():
            told.append(f"{number} parameters cast from {dtype} to {self.cast_to}")
        if self.cast:
            told.append(f"{sum(self.rounded.values()):,} values rounded")
        if self.left_out:
            told.append(
                f"left out {len(self.left_out)}: {', '.join(self.left_out[:2])}" + ", ..." * (len(self.left_out) > 2)
            )
        if self.lost_md5:
            told.append("the format has no place for the vocabulary's md5")
        if self.lacking:
            told.append(self.lacking)
        return "; ".join(told)


def convert(arguments: ConvertArguments) -> Summary:
    """Convert a checkpoint as the command line says. Nothing exists at `output` until everything is written.

    Raises:
        InputError: The source is damaged, mixes several checkpoints, or does not fit the arguments.
    """
    path, output = Path(arguments.checkpoint), Path(arguments.output)
    if arguments.md5:
        check_md5(Path(arguments.md5), path)
    options = Options(
        arguments.checkpoint_name,
        arguments.strategy,
        arguments.vocab_size,
        arguments.parts,
        arguments.shard_mb << 20,
        arguments.bin_files,
    )
    source = FORMATS[arguments.from_].open_source(path, options)
    model = network_of(
        source, arguments.num_heads, arguments.size, arguments.vocab_size, heads_needed=not arguments.is_one_file
    )
    kinds = {name: source.kinds[name] for name in parameter_shapes(model)}
    cast = next((dtype for dtype in FLOATS if dtype.name == arguments.dtype), None)
    written = {name: replace(kind, dtype=cast or kind.dtype) for name, kind in kinds.items()}
    options = replace(options, vocabulary_md5=source.vocabulary_md5, end_token=source.end_token)
    # What the source says is checked for every target, also for those that have no such settings.
    data, generation = DataConfig(vocabulary_md5=source.vocabulary_md5), GenerationConfig(end_token=source.end_token)
    summary = Summary(len(kinds), sum(kind.size for kind in kinds.values()), left_out=source.left_out)
    if arguments.has_vocabulary:
        options, summary.lacking = _with_vocabulary(options, source, model, arguments.tokenizer)
    target = FORMATS[arguments.to].target(model, written, options)
    if arguments.is_one_file or arguments.to not in ("mindspore", "safetensors", "hf"):
        summary.lost_md5 = bool(source.vocabulary_md5)
    if cast:
        summary.cast_to = cast.name
        summary.cast = Counter(kind.dtype.name for kind in kinds.values() if kind.dtype != cast)
    read = partial(_read, source, cast, arguments.allow_nan, summary)
    folder = temporary_path(output)
    with naming(output):
        _begin(folder, arguments, source)
        try:
            if arguments.to == "mindspore" and not arguments.is_one_file:
                if options.vocabulary:
                    shutil.copyfile(options.vocabulary, folder / MODEL_NAME)
                    data = DataConfig(
                        tokenizer_path=str(output.absolute() / MODEL_NAME), vocabulary_md5=options.vocabulary_md5
                    )
                config = RunConfig(model, data, TrainingConfig(), arguments.parallel, generation)
                _write_checkpoint(folder, config, read, summary)
            else:
                _write_files(folder, target, read, summary)
            (folder / RESUMED).unlink()
            (folder / store.MODEL_FILE if arguments.is_one_file else folder).rename(output)
            if arguments.is_one_file:
                folder.rmdir()
        except Exception:  # not for Ctrl-C, after which a conversion can go on
            shutil.rmtree(folder)
            raise
    return summary


def _with_vocabulary(options: Options, source: Source, model: PanguAlphaConfig, tokenizer: str) -> tuple[Options, str]:
    """Add the vocabulary to the options of a format that stores it, and say why there is none.

    Raises:
        InputError: `tokenizer` is not the model's vocabulary.
    """
    path = Path(tokenizer) if tokenizer else source.vocabulary
    if path is None:
        return options, "no vocabulary is beside the weights; --tokenizer vocab.model puts one there"
    try:
        check_vocabulary(path, source.vocabulary_md5, "give that one as --tokenizer")
        size = JiebaTokenizer(path).vocab_size
        check_vocabulary_size(size, model.vocab_size, path)
    except InputError as error:
        if tokenizer:
            raise
        return options, f"the vocabulary is not beside the weights: {error}"
    file = path / MODEL_NAME if path.is_dir() else path
    return replace(options, vocabulary=file, vocabulary_md5=vocabulary_md5(file), vocabulary_size=size), ""


def check_md5(listed: Path, folder: Path) -> None:
    """Check files against their published MD5 sums.

    Args:
        listed: A list of sums as md5sum writes it. Its files lie beside it or in `folder`.
        folder: The checkpoint's folder, or a file in it.

    Raises:
        InputError: A file is missing or has another sum, or `listed` is no such list.
    """
    try:
        lines = [line.split(None, 1) for line in lines_of(read_text(listed)) if line.strip()]
        sums = {name.strip().lstrip("*"): expected.lower() for expected, name in lines}
    except ValueError as error:
        raise InputError(f"--md5 {listed} is not a list of md5sum with lines `sum  name`: {error}") from error
    places = [listed.parent, folder if folder.is_dir() else folder.parent]
    files: dict[str, Path] = {}
    for name in sums:
        file = next((place / name for place in places if (place / name).is_file()), None)
        if file is None:
            raise InputError(f"{name}, which --md5 {listed} lists, is not in {places[1]}")
        files[name] = file
    with tqdm(
        total=sum(file.stat().st_size for file in files.values()), unit="B", unit_scale=True, disable=None, desc="md5"
    ) as bar:
        for name, file in files.items():
            digest = hashlib.md5(usedforsecurity=False)
            with file.open("rb") as content:
                while chunk := content.read(_CHUNK):
                    digest.update(chunk)
                    bar.update(len(chunk))
            if digest.hexdigest() != sums[name]:
                raise InputError(
                    f"{file} has the MD5 sum {digest.hexdigest()}, but {listed} says {sums[name]}: fetch it again"
                )


def _begin(folder: Path, arguments: ConvertArguments, source: Source) -> None:
    """Make the unfinished folder, or keep the one that the same conversion left when it was interrupted."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in source.files]
    this = json.dumps({"arguments": asdict(arguments), "files": files})
    note = folder / RESUMED
    if note.is_file() and note.read_text() == this:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        note.write_text(this)
    except OSError:
        shutil.rmtree(folder)
        raise


def _read(source: Source, cast: np.dtype | None, allow_nan: bool, summary: Summary, name: str) -> np.ndarray:
    """Read a parameter, and cast it if `cast` is given."""
    values = source.read(name)
    if not allow_nan:
        require_finite(values, name, source.path)
    if cast is None or values.dtype == cast:
        return values
    result = np.empty(values.shape, cast)
    rows = max(1, _CHUNK * len(values) // max(1, values.size))
    summary.rounded[name] = 0
    for first in range(0, len(values), rows):
        given = values[first : first + rows].astype(np.float32)
        with np.errstate(over="ignore"):
            result[first : first + rows] = given.astype(cast)
        back = result[first : first + rows].astype(np.float32)
        if not np.array_equal(np.isfinite(back), np.isfinite(given)):
            raise InputError(
                f"'{name}' has values up to {np.abs(given[np.isfinite(given)]).max():g}, which {cast.name}"
                " can't hold: choose another --dtype"
            )
        summary.rounded[name] += int(np.count_nonzero((back != given) & ~np.isnan(given)))
    return result


def _write_files(folder: Path, target: Target, read: Callable[[str], np.ndarray], summary: Summary) -> None:
    total = sum(piece.kind.nbytes for file in target.files for piece in file.pieces)
    with tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar:
        for file in target.files:
            done = _resumed(folder / file.name, file)
            there = sum(piece.kind.nbytes for piece in file.pieces[:done])
            summary.went_on += there
            bar.update(there)
            if not (folder / file.name).exists():
                part = _part(folder / file.name)
                file.write(part, file.pieces[done:], _values(file.pieces[done:], read, bar))
                flush(part)
                part.rename(folder / file.name)
    for name, text in target.texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, file in target.copies.items():
        shutil.copyfile(file, folder / name)
    summary.files = len(target.files)
    summary.bytes = sum((folder / file.name).stat().st_size for file in target.files)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _resumed(path: Path, file: File) -> int:
    """Count the pieces that an interrupted conversion wrote to a file, and cut off an incomplete piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    if path.exists():
        return len(file.pieces)
    if not part.exists():
        return 0
    done, whole = file.resume(part, file.pieces) if file.resume else (0, 0)
    os.truncate(part, whole)
    return done


def _values(pieces: list[Piece], read: Callable[[str], np.ndarray], bar: tqdm) -> Iterator[np.ndarray]:
    for piece in pieces:
        yield piece.change(read(piece.parameter))
        bar.update(piece.kind.nbytes)


def _write_checkpoint(folder: Path, config: RunConfig, read: Callable[[str], np.ndarray], summary: Summary) -> None:
    """Write a checkpoint folder of this project with settings and the slices of their plan's ranks."""
    plan, shapes = Plan.of(config.parallel, config.model), parameter_shapes(config.model)
    reports = []
    for rank in tqdm(range(plan.world_size), unit="rank", disable=None):
        holder = Holder(plan, rank, shapes)

        def take(name: str, holder: Holder = holder) -> np.ndarray:
            return read(name)[holder.box(name).index]

        held = [name for name in shapes if holder.writes(name)]
        reports.append(store.write_slices(folder, holder, {store.MODEL: {name: partial(take, name) for name in held}}))
    store.complete(folder, reports, {"step": 0}, config.save)
    files = [file for report in reports for file in report["files"].values()]
    summary.files, summary.bytes = len(files), sum(file["bytes"] for file in files)
