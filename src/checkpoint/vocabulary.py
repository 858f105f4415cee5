"""The vocabulary that a checkpoint's settings name: where it lies, and whether it is the one of the training."""

from dataclasses import replace
from pathlib import Path

from src.common.errors import InputError
from src.common.settings import DataConfig
from src.common.vocabulary import check_vocabulary, vocabulary_md5
from src.data.mindrecord import record_files, vocabulary_of

_PARENTS = 6  # how far above a checkpoint's folder a relative path is looked for
_INSIST = "take that one, or give --data.any_vocabulary true to use this one all the same"


def located(data: DataConfig, beside: Path | None) -> DataConfig:
    """Find the vocabulary of a checkpoint from any working directory, and after the checkpoint's folder was moved.

    Args:
        data: Settings with a tokenizer_path.
        beside: The configuration file beside the checkpoint, or None.

    Returns:
        The settings. A path that does not exist here is replaced by the first of these that exists: a relative path
        from the folder of the checkpoint, or from the nearest of the folders above it; the file of this name in the
        folder of the checkpoint.
    """
    path = Path(data.tokenizer_path)
    if beside is None or not data.tokenizer_path or path.exists():
        return data
    folders = list(beside.absolute().parents)
    places = [folder / path for folder in folders[:_PARENTS]] + [folders[0] / path.name]
    found = next((place for place in places if place.exists()), path)
    return replace(data, tokenizer_path=str(found))


def check_trained_with(data: DataConfig) -> None:
    """Check that the vocabulary is there, and that it is the one that the model was trained with.

    Raises:
        InputError: It is not, and data.any_vocabulary is not set.
    """
    if not Path(data.tokenizer_path).exists():
        raise InputError(
            f"no vocabulary at {data.tokenizer_path}, which the settings name as data.tokenizer_path: give "
            "--data.tokenizer_path, the folder of vocab.model (bash scripts/get_tokenizer.sh DIR)"
        )
    if not data.any_vocabulary:
        check_vocabulary(data.tokenizer_path, data.vocabulary_md5, _INSIST)


def with_records(data: DataConfig) -> DataConfig:
    """Compare the vocabulary of the records with the model's. An unknown one of the model becomes that of the records.

    Args:
        data: Settings as `noted` returns them.

    Returns:
        The settings, with the md5 of the records' vocabulary if they had none and the records have one.

    Raises:
        InputError: Records were made with another vocabulary, and data.any_vocabulary is not set.
    """
    for path in filter(None, (data.train, data.validation)):
        for file in record_files(path):
            md5 = vocabulary_of(file)
            if md5 and data.vocabulary_md5 and md5 != data.vocabulary_md5 and not data.any_vocabulary:
                raise InputError(
                    f"{file} was made with another vocabulary than the model's: its md5 is {md5}, the model's is "
                    f"{data.vocabulary_md5}; give the data or the data.tokenizer_path that belong together, or "
                    "--data.any_vocabulary true"
                )
            data = replace(data, vocabulary_md5=data.vocabulary_md5 or md5)
    return data


def noted(data: DataConfig) -> DataConfig:
    """Return the settings as a run saves them: with the md5 of its vocabulary, and with an absolute path.

    Raises:
        InputError: The vocabulary is missing, or is another one than the settings say.
    """
    if not data.tokenizer_path:
        return data
    check_trained_with(data)
    path = Path(data.tokenizer_path).absolute()
    return replace(data, tokenizer_path=str(path), vocabulary_md5=vocabulary_md5(path))
