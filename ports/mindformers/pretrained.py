"""The names of the plug-in's models, and what a name or a folder stands for: settings, weights, vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.checkpoint import store
from src.checkpoint.vocabulary import located
from src.common.errors import InputError, nearest
from src.common.reading import read_yaml
from src.pangu_alpha_config import load_config
from src.tokenization_jieba import MODEL_NAME

CONFIGS = Path(__file__).parent / "configs"
# YAML file of each name.
NAMES = {
    name: CONFIGS / f"run_{name}.yaml"
    for name in (
        "pangualpha_tiny",
        "pangualpha_350m",
        "pangualpha_2_6b",
        "pangualpha_13b",
        "pangualpha_200b",
        "pangualpha_2_6b_prompt_txtcls",
        "pangualpha_2_6b_em_f1",
    )
}
PREFIX = "pangualpha"
DOWNLOADS = Path("checkpoint_download") / PREFIX  # where MindFormers keeps the weights of its names
_RELEASED = "{name}.ckpt is what `python -m src.checkpoint.convert --from official --to mindformers` writes"


@dataclass(frozen=True)
class Pretrained:
    """What a name or a folder stands for.

    Args:
        yaml: MindFormers' file of its settings; None for a run of this project.
        run: Settings file of a run of this project; None for others.
        folder: Where weights and vocabulary are looked for.
        name: Name of its files, if it has one.
    """

    folder: Path
    yaml: Path | None = None
    run: Path | None = None
    name: str = ""

    def settings(self) -> dict[str, Any]:
        """Return the arguments of PanguAlphaConfig.

        Raises:
            InputError: The file of the settings cannot be read, or is another model's.
        """
        if self.run:
            from ports.mindformers.configuration import settings_of

            config = load_config(self.run)
            answer = {"eos_token_id": config.generation.end_token, "max_decode_length": config.model.seq_length}
            return settings_of(config.model) | answer | {"use_past": True}
        assert self.yaml
        return model_settings(self.yaml)

    def weights(self) -> Path:
        """Return the weights, for `store.load`.

        Raises:
            InputError: There are none; it says where they are to be put.
        """
        if not self.name:
            return store.find(self.folder)
        places = [self.folder / f"{self.name}.ckpt", self.folder / self.name]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise InputError(
                f"no weights of {self.name}: put them at {places[0]} (or a run's folder at {places[1]}); "
                + _RELEASED.format(name=self.name)
            )
        return store.find(place)

    def vocabulary(self) -> Path:
        """Return the file vocab.model.

        Raises:
            InputError: There is none; it says where it is to be put.
        """
        places = [self.folder / self.name / MODEL_NAME, self.folder / MODEL_NAME]
        runs = [self.run] if self.run else []
        if self.name and (self.folder / self.name).is_dir():
            runs = [path for path in [store.config_beside(store.find(self.folder / self.name))] if path]
        for run in runs:
            named = Path(located(load_config(run).data, run).tokenizer_path)
            places += [named / MODEL_NAME, named] if str(named) != "." else []
        place = next((place for place in places if place.is_file()), None)
        if place is None:
            raise InputError(
                f"no vocabulary of {self.name or self.folder}: put {MODEL_NAME} at {places[1]} "
                f"(`bash scripts/get_tokenizer.sh {self.folder}` fetches the official one)"
            )
        return place


def find(name_or_path: str | Path) -> Pretrained | None:
    """Return what a name or a folder stands for, or None if it is not a PanGu-α's.

    A folder is one that MindFormers' `save_pretrained` wrote, with a YAML file and a .ckpt file, or a run's folder or
    checkpoint folder of this project.

    Raises:
        InputError: It begins like one of our names but is none, or the folder's checkpoint is damaged.
    """
    name = str(name_or_path)
    if name in NAMES:
        return Pretrained(DOWNLOADS, NAMES[name], name=name)
    path = Path(name_or_path)
    if path.is_dir():
        files = sorted(path.glob("*.yaml"))
        theirs = [file for file in files if _is_ours(file)]
        if len(theirs) > 1:
            raise InputError(f"{path} holds {len(theirs)} files of settings: {', '.join(file.name for file in theirs)}")
        if theirs:
            return Pretrained(path, theirs[0])
        if store.find_folder(path):
            run = store.config_beside(store.find(path))
            return Pretrained(path, run=run) if run else None
        return None
    if name.split("_")[0] == PREFIX and not path.suffix:
        raise InputError(f"'{name}' is none of {', '.join(NAMES)}, nor a folder{nearest(name, NAMES)}")
    return None


def weights_of(name_or_path: str) -> Path:
    """Return the weights of a name, a .ckpt file or a folder of weights, for `store.load`.

    Of the files of a training by MindFormers it is the newest of rank 0, which is whole unless the model was sliced.

    Raises:
        InputError: There are none.
    """
    found = Pretrained(DOWNLOADS, NAMES[name_or_path], name=name_or_path) if name_or_path in NAMES else None
    if found:
        return found.weights()
    first = Path(name_or_path) / "rank_0"
    folder = first if first.is_dir() else Path(name_or_path)
    saved = sorted(folder.glob("*_rank_0-*_*.ckpt"), key=lambda file: file.stat().st_mtime)  # by MindFormers' training
    return store.find(saved[-1] if saved else folder)


def model_settings(yaml: Path) -> dict[str, Any]:
    """Return `model.model_config` of a YAML file, with what its base gives.

    Raises:
        InputError: The file cannot be read, or is another model's.
    """
    content = read_yaml(yaml)
    config = (content.get("model") or {}).get("model_config") or {}
    if base := content.get("base_config"):
        config = model_settings(yaml.parent / base) | config
    kind = config.get("type")
    if kind != "PanguAlphaConfig":
        raise InputError(f"{yaml} is the file of another model: its model.model_config.type is {kind}")
    return config


def _is_ours(yaml: Path) -> bool:
    content = read_yaml(yaml)
    model = content.get("model") if isinstance(content, dict) else None
    config = model.get("model_config") if isinstance(model, dict) else None
    return isinstance(config, dict) and config.get("type") == "PanguAlphaConfig"
