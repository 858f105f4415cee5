"""Evaluation through MindSpore Serving's REST interface, against the same model in this process."""

import http.server
import json
import threading
from contextlib import contextmanager
from itertools import chain, repeat

import numpy as np
import pytest

import eval as program
import predict
from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.evaluation.backends import model_here
from src.evaluation.config import flags_of_client
from src.inference.mindspore.load import open_checkpoint
from src.inference.score_request import Request
from tests.support.evaluation import MODEL, configuration, evaluate


class Serving(http.server.BaseHTTPRequestHandler):
    """MindSpore Serving's REST interface (docs/serving.md) in front of a model in this process."""

    def do_POST(self):
        instances = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["instances"]
        method = {"score": self.score, "predict": self.predict, "identity": self.identity}[self.path.split(":")[1]]
        reply = json.dumps({"instances": [method(**instance) for instance in instances]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def score(self, input_ids, start):
        [(_, [log_probs])] = self.server.scorer.score([[Request(input_ids, start)]])
        return {"log_probs": log_probs.tolist()}

    def predict(self, input_ids, max_generate_length, number, **settings):
        config = GenerationConfig(max_new_tokens=max_generate_length, **settings)
        [(_, text)] = self.server.answerer.answer([(number, input_ids)], config)
        return {"output_sentence": text, "finish_reason": "end"}

    def identity(self):
        return {"identity": next(self.server.identities)}

    def log_message(self, *message):
        """Print nothing."""


@contextmanager
def serving(handler, **what):
    """Start a server, yield its address, and stop it at the end of the block."""
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        vars(server).update({"identities": repeat("one model")} | what)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def through_server(vocab, folder, address):
    """Return a command line of predict.py with the ModelZoo's names of flags."""
    [_, *model] = MODEL
    return [*model, "--enable_client", f"--server={address}", f"--tokenizer_path={vocab}", f"--eval_data_url={folder}"]


@pytest.mark.parametrize("task", ["c3", "cmrc2018"])
def test_a_server_says_what_a_model_says(task, eval_vocab, c3_folder, cmrc_folder, tmp_path, monkeypatch):
    folder, length = {"c3": c3_folder, "cmrc2018": cmrc_folder}[task], "--model.seq_length=128"
    here = evaluate(eval_vocab, folder, tmp_path / "here", f"--task={task}", length)
    config = configuration(eval_vocab, folder, tmp_path, f"--task={task}", length)
    scorer, answerer = model_here(open_checkpoint(config, None), config.batch_size)
    with serving(Serving, scorer=scorer, answerer=answerer) as address:
        monkeypatch.setattr(
            "sys.argv",
            [
                "predict.py",
                *through_server(eval_vocab, folder, address),
                length,
                f"--eval_task={task}",
                f"--output={tmp_path / 'there'}",
            ],
        )
        predict.main()
    there = (tmp_path / "there" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    for one, other in zip(here, map(json.loads, there), strict=True):
        np.testing.assert_allclose(one.pop("scores", 0), other.pop("scores", 0), atol=1e-5)
        assert one == other


class Refusing(Serving):
    """A server without graphs that score."""

    def score(self, input_ids, start):
        return {"error_code": 1, "error_msg": "no graph to score with was exported"}


class Short(Serving):
    """A server that scores too few tokens."""

    def score(self, input_ids, start):
        return {"log_probs": [-1.0]}


class Stranger(Serving):
    """Another program at the address."""

    def do_POST(self):
        self.send_error(404, "Not here")


@pytest.mark.parametrize(
    "handler, message",
    [
        (Refusing, "answers to score: .*no graph to score with was exported"),
        (Short, "answers to score: 1 log_probs for [0-9]+ tokens"),
        (Stranger, "answers to identity: .*404"),
    ],
)
def test_what_a_server_can_t_do_is_told(handler, message, eval_vocab, c3_folder, tmp_path):
    with serving(handler) as address, pytest.raises(InputError, match=f"--server {address} {message}"):
        program.main(
            flags_of_client(
                [*through_server(eval_vocab, c3_folder, address), "--eval_task=c3", f"--output={tmp_path / 'run'}"]
            )
        )
    assert not (tmp_path / "run" / "result.json").exists()


class Unnamed(Serving):
    """A server that does not tell its model."""

    def identity(self):
        return {}


@pytest.fixture
def evaluate_through(eval_vocab, tnews_folder, tmp_path, capsys):
    """Return a function that evaluates through a server, always in the same folder, and returns what is printed."""
    config = configuration(eval_vocab, tnews_folder, tmp_path, "--task=tnews")
    scorer, answerer = model_here(open_checkpoint(config, None), config.batch_size)

    def evaluated(identities, handler=Serving):
        with serving(handler, scorer=scorer, answerer=answerer, identities=identities) as address:
            flags = [*through_server(eval_vocab, tnews_folder, address), "--eval_task=tnews", "--limit=3"]
            program.main(flags_of_client([*flags, "--model.seq_length=96", f"--output={tmp_path / 'run'}"]))
        return capsys.readouterr().out

    return evaluated


def test_another_model_at_the_address_is_noticed(evaluate_through, tmp_path):
    """The model is known by its identity: neither the server's address nor its restart counts."""
    evaluate_through(repeat("one model"))
    assert "3 of them from an earlier run" in evaluate_through(repeat("one model"))
    told = evaluate_through(repeat("another model"))
    assert "3 earlier predictions are not used, since they were made with other weights" in told
    assert "from an earlier run" not in told and (tmp_path / "run/earlier_1/predictions.jsonl").is_file()


def test_another_model_in_the_middle_is_noticed(evaluate_through, tmp_path):
    with pytest.raises(InputError, match="has got another model during the evaluation; .*earlier_1; evaluate again"):
        evaluate_through(chain(["one model"], repeat("another model")))
    assert len((tmp_path / "run/earlier_1/predictions.jsonl").read_text().splitlines()) == 3
    assert "from an earlier run" not in evaluate_through(repeat("one model"))


def test_a_server_that_does_not_tell_its_model_is_refused(evaluate_through):
    with pytest.raises(InputError, match="does not say which model it serves; does it run another version"):
        evaluate_through(repeat(""), Unnamed)


@pytest.mark.parametrize(
    "address, message",
    [
        ("127.0.0.1:1500", "is no address such as http://127.0.0.1:1500"),
        ("http://127.0.0.1:9", "does not answer .* start it: bash"),
    ],
)
def test_no_server(address, message, eval_vocab, c3_folder, tmp_path):
    with pytest.raises(InputError, match=f"--server {address} {message}"):
        program.main(
            flags_of_client(
                [*through_server(eval_vocab, c3_folder, address), "--eval_task=c3", f"--output={tmp_path / 'run'}"]
            )
        )


def test_the_server_of_this_machine_is_asked_if_none_is_named():
    flags = flags_of_client(["--enable_client=True", "--eval_task", "c3", "--limit=2"])
    assert flags == ["--task", "c3", "--limit=2", "--server", "http://127.0.0.1:1500"]
