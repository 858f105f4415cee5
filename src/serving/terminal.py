"""Prompts and answers at the terminal, for the programs that continue texts."""

import io
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, TimeoutError
from pathlib import Path
from typing import TYPE_CHECKING

from src.common.errors import InputError
from src.common.reading import lines_of
from src.generate import TextGenerator

if TYPE_CHECKING:
    from src.parallel.mesh import Mesh

HEARTBEAT_SECONDS = 20.0  # a rank that waits much longer for a message of another rank takes it for dead
_PROMPT, _NOTHING_YET, _END = b"p", b"n", b"e"  # first bytes of rank 0's messages


def read_prompts(path: str) -> list[str]:
    """Return the lines of a file of prompts. Bytes that are not UTF-8 become surrogates, which `answer_file` reports.

    Raises:
        InputError: The file cannot be read, or it is empty.
    """
    try:
        prompts = lines_of(Path(path).read_bytes().decode("utf-8-sig", errors="surrogateescape"))
    except OSError as error:
        raise InputError(f"--prompt_file {path} can't be read: {error.strerror}") from error
    if not prompts:
        raise InputError(f"--prompt_file {path} is empty; give one prompt a line")
    return prompts


def ask_for_prompts() -> Iterator[str]:
    """Yield the prompts that a user types at the terminal, until the end of the input."""
    print("A prompt a line; Ctrl-D ends.", file=sys.stderr)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # otherwise bytes that are not UTF-8 end the program
    while True:
        try:
            prompt = input("> ")
            prompt.encode()
        except EOFError:
            return
        except UnicodeEncodeError:
            print("error: this line is not UTF-8 text", file=sys.stderr)
            continue
        if prompt:
            yield prompt


def ask_on_rank_0(mesh: "Mesh") -> Iterator[str]:
    """Ask for prompts on rank 0, and yield them on all ranks. All of them must call it; all end with the input.

    While the user thinks, rank 0 sends messages without a prompt, because communication has time limits.
    """
    if mesh.rank:
        while (message := mesh.from_rank_0(b""))[:1] != _END:
            if message[:1] == _PROMPT:
                yield message[1:].decode()
        return
    prompts = ask_for_prompts()
    while True:
        asked: Future[str | None] = Future()
        # A daemon, so that the program can end while the thread waits for input.
        threading.Thread(target=_ask, args=(prompts, asked), daemon=True).start()
        while True:
            try:
                prompt = asked.result(HEARTBEAT_SECONDS)
                break
            except TimeoutError:
                mesh.from_rank_0(_NOTHING_YET)
        mesh.from_rank_0(_END if prompt is None else _PROMPT + prompt.encode())
        if prompt is None:
            return
        yield prompt


def _ask(prompts: Iterator[str], asked: "Future[str | None]") -> None:
    try:
        asked.set_result(next(prompts, None))
    except BaseException as error:
        asked.set_exception(error)


def answer(generator: TextGenerator, prompts: list[str], stream: bool, numbers: list[int] | None = None) -> None:
    """Print prompts and their continuations.

    Args:
        generator: The model.
        prompts: Texts to continue.
        stream: Whether to print a continuation while it is generated. It is the first sample of each prompt then.
        numbers: Number of each prompt, see `src.inference.loop.stream_tokens`.
    """
    if stream:
        for prompt in prompts:
            print(f"Input: {prompt}\nOutput: ", end="", flush=True)
            for piece in generator.stream(prompt):
                print(piece, end="", flush=True)
            print()
        return
    for prompt, completions in zip(prompts, generator.generate(prompts, numbers), strict=True):
        print(f"Input: {prompt}")
        for completion in completions:
            print(f"Output: {completion.text}", flush=True)


def answer_file(generator: TextGenerator, prompts: list[str], stream: bool, batch_size: int) -> None:
    """Print the continuations of a file's prompts in batches. A bad line is reported on stderr; others are answered.

    Args:
        generator: The model.
        prompts: Lines of the file.
        stream: See `answer`.
        batch_size: Number of texts of seq_length tokens in a batch. Shorter texts make larger batches.

    Raises:
        InputError: Some lines were bad; at the end.
    """
    sizes = {}
    for number, prompt in enumerate(prompts):
        where = f"--prompt_file, line {number + 1}"
        try:
            prompt.encode()
            sizes[number] = generator.size(prompt)
        except UnicodeEncodeError:
            print(f"error: {where} is not UTF-8 text", file=sys.stderr)
        except InputError as error:
            told = str(error).replace("prompt 1 of 1", where)
            print("error: " + (told if where in told else f"{where}: {told}"), file=sys.stderr)
    for numbers in _batches(sizes, batch_size * generator.runtime.seq_length):
        answer(generator, [prompts[number] for number in numbers], stream, numbers)
    if len(sizes) < len(prompts):
        raise InputError(f"{len(prompts) - len(sizes)} of {len(prompts)} lines of --prompt_file can't be continued")


def _batches(sizes: dict[int, int], room: int) -> Iterator[list[int]]:
    """Group numbers in order so that a group's padded texts have at most `room` tokens, or that it is one text.

    Args:
        sizes: Tokens that each text takes, with its answers.
        room: Most tokens of a group.
    """
    group: list[int] = []
    for number, size in sizes.items():
        if group and (len(group) + 1) * max(size, *(sizes[other] for other in group)) > room:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def answer_all(generator: TextGenerator, prompts: list[str], stream: bool, mesh: "Mesh | None" = None) -> None:
    """Print the continuations of prompts. Without prompts, ask for them at the terminal; see `answer`.

    Args:
        generator: The model.
        prompts: Texts to continue.
        stream: See `answer`.
        mesh: The ranks that the model is spread over; None for one process.
    """
    if prompts:
        answer(generator, prompts, stream)
        return
    for prompt in ask_on_rank_0(mesh) if mesh and mesh.plan.world_size > 1 else ask_for_prompts():
        try:
            answer(generator, [prompt], stream=generator.config.num_samples == 1)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
