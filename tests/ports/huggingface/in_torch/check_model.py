"""The PyTorch model gives the peer's golden numbers, whatever attention, cache and padding it uses."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ports.huggingface.configuration_pangu_alpha import PanguAlphaConfig
from ports.huggingface.modeling_pangu_alpha import PanguAlphaForCausalLM

PAD = 6
CACHES = [{}, {"use_cache": False}, {"cache_implementation": "static"}]
GRADIENTS = {  # in a layer: our name, the official name, whether ours is the transpose
    "ln_1.weight": ("layernorm1.gamma", False),
    "attn.q_proj.weight": ("attention.dense1.weight", False),
    "attn.k_proj.weight": ("attention.dense2.weight", False),
    "attn.v_proj.bias": ("attention.dense3.bias", False),
    "attn.c_proj.weight": ("attention.projection.weight", True),
    "ln_2.bias": ("layernorm2.beta", False),
    "mlp.c_fc.weight": ("output.mapping.weight", True),
    "mlp.c_proj.weight": ("output.projection.weight", True),
}


@pytest.fixture
def batch(golden):
    """Return ids (2, 49), positions that restart after each end of a document, and ids of labels with -100."""
    ids = torch.tensor(golden["peer"]["ids"]).long()
    labels = torch.where(ids[:, :-1] == PAD, -100, ids[:, 1:])
    return ids, torch.tensor(golden["peer"]["position_ids"]).long(), labels


def largest(values):
    return values.abs().max().item()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_logits_are_the_peer_s(load, golden, batch, attention, use_cache):
    ids, positions, _ = batch
    model = load(attn_implementation=attention)
    with torch.no_grad():
        # Positions that restart separate the documents, also if keys are kept.
        logits = model(ids[:, :-1], position_ids=positions, use_cache=use_cache).logits
        assert largest(logits - torch.tensor(golden["peer"]["logits"])) < 2e-4
        is_token = ids[:, :-1] != PAD
        logits = model(ids[:, :-1], attention_mask=is_token.long(), use_cache=use_cache).logits
        assert largest((logits - torch.tensor(golden["peer"]["eval_logits"]))[is_token]) < 2e-4


def loss_and_gradients(model, batch):
    ids, positions, labels = batch
    model.train()
    loss = model(ids[:, :-1], position_ids=positions, shift_labels=labels).loss
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_loss_and_gradients_are_the_peer_s(load, golden, batch):
    loss, gradients = loss_and_gradients(load(), batch)
    assert loss == pytest.approx(float(golden["peer"]["losses"][0]), abs=3e-5)
    official = {
        "transformer.wte.weight": ("backbone.embedding.word_embedding.embedding_table", False),
        "transformer.wpe.weight": ("backbone.embedding.position_embedding.embedding_table", False),
        "transformer.wqe.weight": ("backbone.top_query_embedding.embedding_table", False),
        "transformer.ln_f.weight": ("backbone.layernorm.gamma", False),
    }
    for number, prefix in enumerate(("blocks.0", "blocks.1", "top_query_layer")):
        official |= {
            f"transformer.h.{number}.{ours}": (f"backbone.{prefix}.{name}", transposed)
            for ours, (name, transposed) in GRADIENTS.items()
        }
    for ours, (name, transposed) in official.items():
        peer = torch.tensor(golden["gradients"][name])
        difference = gradients[ours] - (peer.T if transposed else peer)
        assert largest(difference) < 2e-4 * max(1, largest(peer)), ours


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_stay_when_layers_run_twice(load, batch, reentrant):
    loss, plain = loss_and_gradients(load(), batch)
    model = load()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    again, gradients = loss_and_gradients(model, batch)
    assert again == loss
    assert all(torch.equal(gradients[name], plain[name]) for name in plain)


def test_labels_are_shifted_as_the_library_s_are(load, batch):
    ids, _, _ = batch
    model = load()
    there = model(ids[:, :20], labels=ids[:, :20]).loss
    assert there.item() == pytest.approx(model(ids[:, :19], shift_labels=ids[:, 1:20]).loss.item(), abs=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_greedy_tokens_are_the_peer_s(load, golden, cache, attention):
    prompt = torch.tensor(golden["peer"]["ids"][:1, :7]).long()
    model = load(attn_implementation=attention)
    greedy = golden["peer"]["greedy"].tolist()
    answer = model.generate(prompt, max_new_tokens=len(greedy), do_sample=False, eos_token_id=None, **cache)
    assert answer[0, 7:].tolist() == greedy


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_rows_that_are_padded_on_the_left_answer_as_alone(load, batch, cache):
    model, ids = load(), batch[0]
    texts = [ids[0, :5], ids[0, :12], ids[1, :9]]
    rows = torch.full((3, 12), PAD)
    for row, text in zip(rows, texts, strict=True):
        row[12 - len(text) :] = text
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    together = model.generate(rows, attention_mask=(rows != PAD).long(), **settings, **cache)[:, 12:]
    for text, answer in zip(texts, together, strict=True):
        assert torch.equal(answer, model.generate(text[None], **settings)[0, len(text) :])
    with torch.no_grad():  # also without generate(), which makes the positions itself
        logits = model(rows, attention_mask=(rows != PAD).long()).logits[0, -1]
        assert largest(logits - model(texts[0][None]).logits[0, -1]) < 2e-4


def test_steps_with_a_cache_are_one_whole_step(load, batch):
    model, ids = load(), batch[0][:1, :20]
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        first = model(ids[:, :13])
        name = "cache" if "cache" in first else "past_key_values"
        # Both names are taken, whatever the library's version.
        second = model(ids[:, 13:17], past_key_values=first[name])
        third = model(ids[:, 17:], cache=second[name], logits_to_keep=2)
    together = torch.cat([first.logits, second.logits, third.logits], 1)
    assert largest(together - torch.cat([whole[:, :17], whole[:, 18:]], 1)) < 2e-4


def test_hidden_states_and_weights_of_attention_can_be_seen(load, batch):
    model = load(attn_implementation="eager")
    with torch.no_grad():
        seen = model(batch[0][:, :9], output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in seen.hidden_states] == [(2, 9, 32)] * 4
    assert [tuple(weights.shape) for weights in seen.attentions] == [(2, 4, 9, 9)] * 3
    torch.testing.assert_close(seen.attentions[-1].sum(-1), torch.ones(2, 4, 9))
    assert len(model(batch[0][:, :9], return_dict=False)) == 2


def test_a_saved_model_has_the_same_bits_and_its_code(load, tokenizer, work):
    model = load()
    model.save_pretrained(work / "saved")
    tokenizer.save_pretrained(work / "saved")
    there, again = model.state_dict(), load(work / "saved").state_dict()
    assert there.keys() == again.keys() and all(torch.equal(there[name], again[name]) for name in there)
    assert (work / "saved/modeling_pangu_alpha.py").is_file() and (work / "saved/vocab.model").is_file()


def test_a_published_folder_is_loaded(load, port, tmp_path):
    """Published files have no code for Transformers 5, the activation gelu, masks, and at times no word embedding."""
    weights = load_file(port / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("transformer.wte.weight")
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 48, 48, dtype=torch.bool)
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    config = json.loads((port / "config.json").read_text())
    ours = ("auto_map", "dtype", "eod_token_id", "vocabulary_md5")
    published = {name: value for name, value in config.items() if name not in ours}
    published |= {"architectures": ["GPTPanguForCausalLM"], "activation_function": "gelu", "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(published))
    model, report = PanguAlphaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    there, golden_model = model.state_dict(), load().state_dict()
    assert all(torch.equal(there[name], golden_model[name]) for name in golden_model)
    assert model.transformer.h[0].mlp.act(torch.tensor(1.0)).item() == pytest.approx(0.8413447, abs=1e-6)
    assert load().transformer.h[0].mlp.act(torch.tensor(1.0)).item() == pytest.approx(0.8457958, abs=1e-6)


@pytest.mark.parametrize("size", ["350M", "2.6B", "13B"])
def test_sizes(expected, size):
    settings, parameters = expected["sizes"][size]
    with torch.device("meta"):
        model = PanguAlphaForCausalLM(PanguAlphaConfig(**settings))
    sizes = [parameter.numel() for parameter in model.parameters()]
    assert sum(sizes) == parameters
    assert len(sizes) == {"350M": 389, "2.6B": 517, "13B": 645}[size]


def test_new_weights_are_drawn_as_pangu_s():
    torch.manual_seed(0)
    model = PanguAlphaForCausalLM(PanguAlphaConfig(vocab_size=500, hidden_size=128, num_layers=2, num_heads=4))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "ln_" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.05), name


def test_every_line_of_the_plans_finds_a_layer(load):
    names = {name.removeprefix("transformer.") for name, _ in load().named_modules()}
    numbered = {".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names}
    plans = (PanguAlphaConfig.base_model_tp_plan, PanguAlphaConfig.base_model_fsdp_plan, PanguAlphaForCausalLM._tp_plan)
    assert all(plan.keys() <= numbered and plan for plan in plans)
    # What tensor parallelism leaves whole: LayerNorms and the embeddings of positions.
    whole = {name for name in numbered if name.split(".")[-1] in ("wpe", "wqe", "ln_f", "ln_1", "ln_2")}
    assert whole == {"wpe", "wqe", "ln_f", "h.*.ln_1", "h.*.ln_2"} and not whole & plans[0].keys()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hidden_size": 30, "num_heads": 4}, "num_heads 4 does not divide hidden_size 30"),
        ({"num_layers": 1}, "a block and the query layer"),
        ({"tie_word_embeddings": False}, "its head is the word embedding"),
    ],
)
def test_settings_that_pangu_does_not_have_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        PanguAlphaConfig(**settings)


def test_inputs_that_it_cannot_compute_are_refused(load):
    model = load()
    with pytest.raises(ValueError, match="49 tokens, but the model has 48 positions"):
        model(torch.zeros(1, 49, dtype=torch.long))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
