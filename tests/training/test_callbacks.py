import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from src.training.callbacks import LossCurve, MetricsFile, ProgressBar, TensorBoard, read_metrics


def step(number, loss=2.0):
    return {
        "step": number,
        "loss": loss,
        "learning_rate": 1e-3,
        "grad_norm": 0.5,
        "loss_scale": 4.0,
        "overflow": False,
        "skipped_steps": 0,
        "tokens_per_second": 123.4,
    }


def validation(number):
    return {"step": number, "validation_loss": 1.5, "validation_perplexity": 4.48}


def test_metrics_come_back_as_they_were(tmp_path):
    told = [step(1, 0.1 + 0.2), validation(1), step(2, float("nan"))]
    writer = MetricsFile(tmp_path, 0)
    writer.on_step(told[0])
    writer.on_validation(told[1])
    assert read_metrics(tmp_path) == told[:2]  # readable while the run continues
    writer.on_step(told[2])
    writer.close()
    assert json.dumps(read_metrics(tmp_path)) == json.dumps(told)


def test_a_resumed_run_replaces_what_lies_after_its_first_step(tmp_path):
    for first, numbers in ((0, (1, 2, 3, 4)), (2, (3,))):
        writer = MetricsFile(tmp_path, first)
        for number in numbers:
            writer.on_step(step(number, loss=first))
        writer.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 0), (2, 0), (3, 2)]


def test_a_line_that_was_cut_off_is_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(step(1)) + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [step(1)]
    MetricsFile(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(step(1)) + "\n"


def test_numbers_that_are_not_finite_are_null_in_the_file(tmp_path):
    writer = MetricsFile(tmp_path, 0)
    writer.on_step(step(1, float("nan")) | {"grad_norm": float("inf")})
    writer.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line["loss"] is None and line["grad_norm"] is None and line["loss_scale"] == 4.0
    LossCurve(tmp_path).close()


@pytest.mark.parametrize("garbage", ["\0\0\0", "[1]", '{"loss": 2}', '{"step": "x"}', "\ufffd", "[" * 100000])
def test_a_garbage_line_is_skipped(tmp_path, garbage):
    lines = [json.dumps(step(1)), garbage, json.dumps(step(2))]
    (tmp_path / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    assert read_metrics(tmp_path) == [step(1), step(2)]
    MetricsFile(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(step(1)) + "\n" + json.dumps(step(2)) + "\n"


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path) == []
    LossCurve(tmp_path).close()
    assert (tmp_path / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_curve_is_drawn_from_the_file(tmp_path):
    LossCurve(tmp_path).close()
    empty = (tmp_path / "loss_curve.png").read_bytes()
    writer = MetricsFile(tmp_path, 0)
    for number in range(1, 9):
        writer.on_step(step(number, 5 / number))
    writer.on_validation(validation(8))
    writer.close()
    LossCurve(tmp_path).close()
    assert (tmp_path / "loss_curve.png").read_bytes() != empty


def test_progress_tells_loss_rate_and_speed(capsys):
    bar = ProgressBar(3, 10)
    bar.on_step(step(5))
    bar.on_validation(validation(5))
    bar.on_step(step(6))
    bar.close()
    output = capsys.readouterr()
    assert output.out == "step 5: validation loss 1.5000, perplexity 4.48\n"
    assert "6/10" in output.err and "loss 2.0000, lr 1.00e-03, 123 tokens/s" in output.err


def test_progress_tells_overflow(capsys):
    for told in ({"overflow": True, "skipped_steps": 2, "loss_scale": 1024.0}, {"skipped_steps": 2}):
        bar = ProgressBar(0, 10)
        bar.on_step(step(3) | told)
        bar.close()
    first, second = capsys.readouterr().err.strip().split("\n")
    assert first.endswith("123 tokens/s, 2 skipped, overflow at loss scale 1024]")
    assert second.endswith("123 tokens/s, 2 skipped]")


def read_events(folder):
    """Read event files. Each event has its length (8 bytes) and a checksum (4) before it, and a checksum (4) after
    it."""
    events = []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            events.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return events


def test_tensorboard_events(tmp_path):
    for first, numbers in ((0, (1, 2, 3)), (2, (3, 4))):
        board = TensorBoard(tmp_path, first)
        for number in numbers:
            board.on_step(step(number, loss=10 * first + number))
        board.on_validation(validation(number))
        board.close()
    events = read_events(tmp_path / "tensorboard")
    scalars = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    losses = [(step, value) for step, tag, value in scalars if tag == "loss"]
    assert losses == [(1, 1), (2, 2), (3, 3), (3, 23), (4, 24)]
    assert [step for step, tag, _ in scalars if tag == "validation_perplexity"] == [3, 4]
    # This event makes TensorBoard drop the replaced step.
    assert [event.step for event in events if event.session_log.status == event.session_log.START] == [3]
