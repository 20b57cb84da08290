"""The whole model: batch = single for logits, loss and text (equality 2), the loss, what is trained, and generation."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DogeForCausalLM, GenerationConfig, GraniteSpeechForConditionalGeneration

from asr_doge.models import ASRDogeConfig, ASRDogeForConditionalGeneration, LoadedModel, assemble_model
from tests.models import tiny

EOS, PAD = 1, 2
BITS32 = 1e-5
"""Both Doge and Llama compute their norms in float32, whatever the type of the weights."""


@cache
def build(**options: str | int | bool) -> ASRDogeForConditionalGeneration:
    """A model of random parts that point nowhere."""
    config = ASRDogeConfig(
        encoder_config=tiny.granite_config(),
        text_config=tiny.doge_model(40).config,
        speech_encoder=None,
        language_model=None,
        adapter_hidden_dim=16,
        prompt_ids=[0, 11, 12, 13],
        **options,  # type: ignore[arg-type]
    )
    model = ASRDogeForConditionalGeneration(config)
    tiny.randomize(model, seed=4)
    return model.double().eval()


def labels_of(texts: list[list[int]], width: int = 0) -> Tensor:
    width = max(width, *map(len, texts)) if len(texts) > 1 else max(width, len(texts[0]))
    return torch.tensor([text + [-100] * (width - len(text)) for text in texts])


def random_texts(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 6, (count,), generator=generator).tolist()
    return [[*torch.randint(3, 40, (length,), generator=generator).tolist(), EOS] for length in lengths]


def by_hand(
    model: ASRDogeForConditionalGeneration, clip: Tensor, text: list[int], prompt_ids: list[int] | None = None
) -> Tensor:
    """Log-probabilities `[len(text), V]` of each token of a clip's text, from `[bos] prompt | speech | text`."""
    with torch.no_grad():
        encoded = model.encoder(clip[None], torch.tensor([len(clip)]))
        speech, _ = model.adapter(encoded.speech_embeddings, encoded.speech_lengths)
        embed = model.language_model.get_input_embeddings()
        prompt = embed(torch.tensor([prompt_ids or model.config.prompt_ids]))
        sequence = torch.cat([prompt, speech, embed(torch.tensor([text[:-1]], dtype=torch.long))], dim=1)
        logits: Tensor = model.language_model(inputs_embeds=sequence).logits[0, -len(text) :]
    return logits.log_softmax(dim=-1)


def nll(log_probabilities: Tensor, text: list[int]) -> Tensor:
    return -log_probabilities[range(len(text)), text].sum()


def greedy(model: ASRDogeForConditionalGeneration, clip: Tensor, limit: int, eos: int = EOS) -> list[int]:
    """Greedy search the slow way: the whole sequence again for every token."""
    text: list[int] = []
    while len(text) < limit and (not text or text[-1] != eos):
        text.append(int(by_hand(model, clip, [*text, 0])[-1].argmax()))
    return text


def trainable(model: ASRDogeForConditionalGeneration) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@settings(max_examples=30)
@example(lengths=[1, 200], stack=3, norm=True, padding=1e30, extra_labels=2)
@example(lengths=[15, 30, 16], stack=2, norm=False, padding=float("nan"), extra_labels=0)
@given(
    lengths=st.lists(st.integers(1, 230), min_size=1, max_size=4),
    stack=st.integers(1, 3),
    norm=st.booleans(),
    padding=st.sampled_from([0.0, -3.0, 1e30, float("nan")]),
    extra_labels=st.sampled_from([0, 1, 5, 300]),
)
def test_logits_and_loss_of_a_batch_are_those_of_its_clips(
    lengths: list[int], stack: int, norm: bool, padding: float, extra_labels: int
) -> None:
    model = build(adapter_stack=stack, adapter_output_norm=norm)
    clips, texts = tiny.random_clips(lengths), random_texts(len(lengths))
    features, mask = tiny.padded(clips, padding)
    width = max(map(len, texts)) + extra_labels
    with torch.no_grad():
        together = model(features, mask, labels_of(texts, width))
    assert together.logits.shape[1] <= width + 1
    total = torch.zeros((), dtype=torch.float64)
    for row, clip, text in zip(together.logits, clips, texts, strict=True):
        wanted = by_hand(model, clip, text)
        predicted = row[-len(text) - 1 : -1].log_softmax(dim=-1)
        assert tiny.relative_difference(predicted, wanted) < BITS32
        total += nll(wanted, text)
        with torch.no_grad():
            single = model(clip[None], labels=torch.tensor([text]))
        assert tiny.relative_difference(row[-len(text) - 1 :], single.logits[0]) < BITS32
        assert float(single.loss) == pytest.approx(float(nll(wanted, text)) / len(text), rel=BITS32)
    assert float(together.loss) == pytest.approx(float(total) / sum(map(len, texts)), rel=BITS32)


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 230), min_size=2, max_size=3),
    stack=st.integers(1, 3),
    norm=st.booleans(),
    num_beams=st.sampled_from([1, 3]),
)
def test_text_of_a_batch_is_that_of_its_clips(lengths: list[int], stack: int, norm: bool, num_beams: int) -> None:
    model = build(adapter_stack=stack, adapter_output_norm=norm)
    clips = tiny.random_clips(lengths)
    features, mask = tiny.padded(clips, padding=4.0)
    options: dict[str, Any] = {
        "num_beams": num_beams,
        "max_new_tokens": 7,
        "pad_token_id": PAD,
        "eos_token_id": [EOS, 5, 17, 30],
    }
    together = model.generate(features, mask, **options).tolist()
    for row, clip in zip(together, clips, strict=True):
        single = model.generate(clip[None], **options)[0].tolist()
        assert row == single + [PAD] * (len(row) - len(single))


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 120), min_size=2, max_size=4),
    prompt_lengths=st.lists(st.integers(1, 6), min_size=4, max_size=4),
    num_beams=st.sampled_from([1, 3]),
)
def test_rows_of_a_batch_may_have_prompts_of_their_own(
    lengths: list[int], prompt_lengths: list[int], num_beams: int
) -> None:
    """As where each names another language."""
    model = build()
    clips, texts = tiny.random_clips(lengths), random_texts(len(lengths))
    features, mask = tiny.padded(clips)
    prompts = [[3 + row, *range(11, 10 + length)] for row, length in enumerate(prompt_lengths[: len(lengths)])]
    with torch.no_grad():
        together = model(features, mask, labels_of(texts), prompt_ids=labels_of(prompts))
    options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": 5, "pad_token_id": PAD, "eos_token_id": EOS}
    written = model.generate(features, mask, prompt_ids=labels_of(prompts), **options).tolist()
    total = torch.zeros((), dtype=torch.float64)
    for row, clip, text, prompt, tokens in zip(together.logits, clips, texts, prompts, written, strict=True):
        wanted = by_hand(model, clip, text, prompt)
        assert tiny.relative_difference(row[-len(text) - 1 : -1].log_softmax(dim=-1), wanted) < BITS32
        total += nll(wanted, text)
        single = model.generate(clip[None], prompt_ids=torch.tensor([prompt]), **options)[0].tolist()
        assert tokens == single + [PAD] * (len(tokens) - len(single))
    assert float(together.loss) == pytest.approx(float(total) / sum(map(len, texts)), rel=BITS32)


def test_beam_search_ranks_texts_by_their_probability() -> None:
    """And not by the mean over their tokens, by which the likeliest of all is a repetition that never ends."""
    model = build(adapter_stack=1, adapter_output_norm=True)
    (clip,) = tiny.random_clips([60])
    stops = [EOS, 5, 17, 30]
    found = model.generate(
        clip[None], num_beams=4, num_return_sequences=4, max_new_tokens=7, pad_token_id=PAD, eos_token_id=stops
    ).tolist()
    texts = [row[: next((at + 1 for at, token in enumerate(row) if token in stops), len(row))] for row in found]
    assert len({len(text) for text in texts}) > 1  # else the two rankings are the same
    likelihoods = [-float(nll(by_hand(model, clip, text), text)) for text in texts]
    assert likelihoods == sorted(likelihoods, reverse=True)


def test_texts_differ_between_clips() -> None:
    """Else the equality of texts above says little."""
    model = build(adapter_stack=1, adapter_output_norm=True)
    for num_beams in (1, 3):
        texts = [
            tuple(model.generate(clip[None], num_beams=num_beams, max_new_tokens=7, eos_token_id=EOS)[0].tolist())
            for clip in tiny.random_clips([30, 60, 90, 120])
        ]
        assert len(set(texts)) >= 3


def test_speech_embeddings_may_be_given_instead_of_features() -> None:
    """What the feature cache holds (equality 3)."""
    model = build(adapter_stack=2)
    clips, texts = tiny.random_clips([40, 95]), random_texts(2)
    features, mask = tiny.padded(clips)
    encoded = model.encode(features, mask)
    cached = [row[:length] for row, length in zip(encoded.speech_embeddings, encoded.speech_lengths, strict=True)]
    embeddings, embeddings_mask = tiny.padded(cached, padding=8.0, extra=3)
    with torch.no_grad():
        computed = model(features, mask, labels_of(texts))
        from_cache = model(speech_embeddings=embeddings, attention_mask=embeddings_mask, labels=labels_of(texts))
        without_mask = model(speech_embeddings=cached[0][None], labels=torch.tensor([texts[0]]))
    assert tiny.relative_difference(from_cache.logits, computed.logits) < BITS32
    assert float(from_cache.loss) == pytest.approx(float(computed.loss), rel=BITS32)
    assert torch.equal(without_mask.logits, model(clips[0][None], labels=torch.tensor([texts[0]])).logits)
    text = model.generate(features, mask, max_new_tokens=6)
    same = model.generate(speech_embeddings=embeddings, attention_mask=embeddings_mask, max_new_tokens=6)
    assert torch.equal(text, same)


def test_assembling_leaves_the_pretrained_parts_as_they_are(
    assembled: LoadedModel, granite_folder: Path, doge_folder: Path
) -> None:
    granite = GraniteSpeechForConditionalGeneration.from_pretrained(granite_folder, dtype=torch.float64).eval()
    doge = DogeForCausalLM.from_pretrained(doge_folder, dtype=torch.float64).eval()
    (clip,) = tiny.random_clips([77])
    ours = assembled.model.encode(clip[None], torch.ones(1, 77, dtype=torch.long)).speech_embeddings
    ids = torch.tensor([[0, 5, 9, 44]])
    with torch.no_grad():
        assert tiny.relative_difference(ours, granite.get_audio_features(clip[None]).pooler_output) < 1e-9
        assert torch.equal(assembled.model.language_model(ids).logits, doge(ids).logits)
    # Twice the same call gives the same model, except for the untrained adapter.
    other = assemble_model(granite_folder, doge_folder, device="cpu", dtype=torch.float64).model.state_dict()
    for name, tensor in assembled.model.state_dict().items():
        assert name.startswith("adapter.") or torch.equal(tensor, other[name])


def test_a_new_adapter_speaks_as_loudly_as_token_embeddings(granite_folder: Path, doge_folder: Path) -> None:
    model = assemble_model(granite_folder, doge_folder, device="cpu", adapter_output_norm=True).model
    (clip,) = tiny.random_clips([300])
    encoded = model.encode(clip[None], torch.ones(1, 300, dtype=torch.long))
    speech, _ = model.adapter(encoded.speech_embeddings, encoded.speech_lengths)
    loudness = [float(x.detach().square().mean().sqrt()) for x in (speech, model.get_input_embeddings().weight)]
    assert loudness[0] == pytest.approx(loudness[1], rel=0.05)


def test_exactly_one_kind_of_input_is_needed() -> None:
    model = build()
    with pytest.raises(ValueError, match="either input_features or speech_embeddings"):
        model()
    with pytest.raises(ValueError, match="either input_features or speech_embeddings"):
        model(torch.zeros(1, 15, 160), speech_embeddings=torch.zeros(1, 3, tiny.SPEECH_SIZE))


def test_the_loss_is_of_text_and_eos_alone() -> None:
    """One more token in the prompt or in the speech adds no term; the end of sequence does."""
    model = build()
    (clip,) = tiny.random_clips([31])
    text = [7, 8, 9]
    with_eos, without = (
        float(model(clip[None], labels=torch.tensor([labels]), num_items_in_batch=1).loss.detach())
        for labels in ([*text, EOS], text)
    )
    log_probabilities = by_hand(model, clip, [*text, EOS])
    assert without == pytest.approx(float(nll(log_probabilities, text)), rel=BITS32)
    assert with_eos - without == pytest.approx(-float(log_probabilities[-1, EOS]), rel=1e-4)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    """What gradient accumulation rests on: the Trainer gives the number of labels of all micro-batches."""
    model = build()
    clips, texts = tiny.random_clips([20, 75, 16, 33]), random_texts(4, seed=5)
    assert len(set(map(len, texts))) > 1
    labels = sum(map(len, texts))

    def loss(chosen: slice, items: int | Tensor | None) -> float:
        features, mask = tiny.padded(clips[chosen])
        return float(model(features, mask, labels_of(texts[chosen]), num_items_in_batch=items).loss.detach())

    whole = loss(slice(None), None)
    parts = [loss(slice(0, 1), torch.tensor(labels)), loss(slice(1, 4), labels)]
    assert sum(parts) == pytest.approx(whole, rel=BITS32)
    # A mean of the micro-batches' means is another number.
    assert (loss(slice(0, 1), None) + loss(slice(1, 4), None)) / 2 != pytest.approx(whole, rel=1e-3)


def test_without_labels_there_is_one_prediction_and_no_loss() -> None:
    model = build()
    (clip,) = tiny.random_clips([31])
    output = model(clip[None])
    assert output.loss is None
    assert output.logits.shape == (1, 1, 40)
    assert tiny.relative_difference(output.logits[0, -1:].log_softmax(-1), by_hand(model, clip, [EOS])) < BITS32


@pytest.mark.parametrize("choice", ["none", "lora", "full"])
def test_only_what_is_trained_gets_gradients(granite_folder: Path, doge_folder: Path, choice: str) -> None:
    model = assemble_model(granite_folder, doge_folder, device="cpu", train_language_model=choice).model
    adapter = {f"adapter.{name}" for name, _ in model.adapter.named_parameters()}
    parts = {name.split(".")[0] for name in trainable(model)}
    assert adapter <= trainable(model)
    assert parts == ({"adapter"} if choice == "none" else {"adapter", "language_model"})
    if choice == "lora":
        assert all(".lora_" in name for name in trainable(model) - adapter)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # begins at zero, which would hide lora_A's gradients
                torch.nn.init.normal_(parameter)
    model.train()
    (clip,) = tiny.random_clips([31])
    model(clip[None].float(), labels=torch.tensor([[7, 8, EOS]])).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == trainable(model)
    counts = model.count_parameters()
    assert counts.trainable == sum(p.numel() for n, p in model.named_parameters() if n in trainable(model))
    moved = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(moved) > 0.9 * len(with_gradient)


def test_a_step_of_training_lowers_the_loss_and_leaves_frozen_parts_alone(
    granite_folder: Path, doge_folder: Path
) -> None:
    model = assemble_model(granite_folder, doge_folder, device="cpu").model.train()
    tiny.randomize(model.adapter, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = {
        "input_features": torch.stack(tiny.random_clips([31, 31])).float(),
        "labels": torch.tensor([[7, 8, EOS], [9, 9, EOS]]),
    }
    losses = []
    for _ in range(30):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == trainable(model)


@pytest.mark.parametrize("choice", ["none", "lora", "full"])
def test_frozen_parts_stay_in_eval_mode_while_training(granite_folder: Path, doge_folder: Path, choice: str) -> None:
    """The encoder's dropout is 0.5: a single forgotten layer would change its output."""
    model = assemble_model(granite_folder, doge_folder, device="cpu", train_language_model=choice).model
    features, mask = tiny.padded(tiny.random_clips([31, 50]))
    still = model.encode(features, mask).speech_embeddings
    model.train()
    assert torch.equal(model.encode(features, mask).speech_embeddings, still)
    assert model.training
    assert model.adapter.training
    assert not any(module.training for module in model.encoder.modules())
    assert model.language_model.training == (choice != "none")
    model.eval()
    assert not any(module.training for module in model.modules())


def test_the_frozen_encoder_is_never_in_lower_precision(granite_folder: Path, doge_folder: Path) -> None:
    """Training in bfloat16 without a feature cache is then the same as with one (equality 3)."""
    model = assemble_model(granite_folder, doge_folder, device="cpu").model
    features, mask = tiny.padded(tiny.random_clips([31, 50]))
    still = model.encode(features, mask)
    labels = torch.tensor([[7, 8, EOS], [9, EOS, -100]])
    embeddings = {"speech_embeddings": still.speech_embeddings, "labels": labels}
    embeddings["attention_mask"] = (
        torch.arange(still.speech_embeddings.shape[1]) < still.speech_lengths[:, None]
    ).long()
    full = model(**embeddings).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = model.encode(features, mask).speech_embeddings
        cached, computed = model(**embeddings).loss, model(features, mask, labels).loss
    assert encoded.dtype == torch.float32
    assert torch.equal(encoded, still.speech_embeddings)
    assert cached == computed
    assert cached != full  # what is trained does run in bfloat16


def test_lora_begins_as_the_model_it_adapts(granite_folder: Path, doge_folder: Path) -> None:
    (clip,) = tiny.random_clips([31])
    logits = []
    choices: list[dict[str, Any]] = [
        {},
        {"train_language_model": "lora", "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}},
    ]
    for options in choices:
        model = assemble_model(granite_folder, doge_folder, device="cpu", **options).model
        tiny.randomize(model.adapter, seed=1)
        logits.append(model(clip[None].float()).logits)
    assert torch.equal(logits[0], logits[1])
    adapted = {name.split(".")[-4] for name in trainable(model) if "lora_" in name}
    assert adapted == {"q_proj", "v_proj"}
    assert model.config.lora is not None
    assert isinstance(LoraConfig(**model.config.lora), LoraConfig)


@pytest.mark.parametrize("frames", [9, 77, 205])
def test_generate_is_a_greedy_search(frames: int) -> None:
    model = build()
    (clip,) = tiny.random_clips([frames])
    wanted = greedy(model, clip, limit=9)
    assert model.generate(clip[None], max_new_tokens=9, eos_token_id=EOS)[0].tolist() == wanted


def test_generate_stops_at_eos_and_at_its_limit() -> None:
    model = build()
    (clip,) = tiny.random_clips([40])
    free = greedy(model, clip, limit=8, eos=-1)
    eos = next(token for token in free[2:] if token not in free[:2])
    end = free.index(eos) + 1
    assert model.generate(clip[None], max_new_tokens=8, eos_token_id=eos)[0].tolist() == free[:end]
    for limit in (1, 3):
        assert model.generate(clip[None], max_new_tokens=limit, eos_token_id=None)[0].tolist() == free[:limit]


def test_options_and_a_generation_config_may_be_mixed(caplog: pytest.LogCaptureFixture) -> None:
    model = build()
    (clip,) = tiny.random_clips([40])
    config = GenerationConfig(max_new_tokens=8, eos_token_id=None, pad_token_id=PAD)
    wanted = greedy(model, clip, limit=8, eos=-1)
    assert model.generate(clip[None], generation_config=config)[0].tolist() == wanted
    assert model.generate(clip[None], generation_config=config, max_new_tokens=2)[0].tolist() == wanted[:2]
    assert config.max_new_tokens == 8
    # Options that are no part of a configuration go through too.
    output = model.generate(clip[None], generation_config=config, return_dict_in_generate=True, output_scores=True)
    assert len(output.scores) == len(output.sequences[0]) == 8


def test_a_step_from_the_cache_computes_nothing_in_vain() -> None:
    """Backwards through the language model's weights costs what forwards does: they have no gradients of their own."""
    model = build()
    embeddings, labels = torch.randn(2, 12, model.encoder.hidden_size).double(), labels_of([[5, 6, EOS], [7, EOS]])

    def operations(run: Callable[[], object]) -> int:
        """Of the layers; attention itself has no weights."""
        with FlopCounterMode(display=False) as counter:
            run()
        counts = counter.get_flop_counts()["Global"]
        return sum(count for name, count in counts.items() if name in (torch.ops.aten.mm, torch.ops.aten.addmm))

    adapter = operations(lambda: model.adapter(embeddings, torch.tensor([12, 12])))
    forward = operations(lambda: model(speech_embeddings=embeddings, labels=labels))
    step = operations(lambda: model(speech_embeddings=embeddings, labels=labels).loss.backward())
    model.zero_grad()
    assert 1.5 * forward < step <= 2 * forward + adapter


def test_labels_in_a_batch_do_not_disturb_generation(assembled: LoadedModel) -> None:
    batch = assembled.processor([tiny.random_waveform(0.6)], text=["the sea"])
    alone = assembled.processor([tiny.random_waveform(0.6)])
    generated = [assembled.model.generate(**inputs, max_new_tokens=4).tolist() for inputs in (batch, alone)]
    assert generated[0] == generated[1]


def test_the_prompt_is_read() -> None:
    (clip,) = tiny.random_clips([40])
    model = build()
    before = model(clip[None]).logits
    prompt = model.config.prompt_ids
    try:
        model.config.prompt_ids = [0, 11, 12, 14]
        assert (model(clip[None]).logits - before).abs().max() > 0.01
        model.config.prompt_ids = None
        assert torch.isfinite(model(clip[None]).logits).all()
    finally:
        model.config.prompt_ids = prompt


def test_cross_entropy_by_hand_is_that_of_torch() -> None:
    """The hand computation above is itself held to torch's."""
    model = build()
    (clip,) = tiny.random_clips([40])
    text = [5, 6, EOS]
    log_probabilities = by_hand(model, clip, text)
    assert torch.allclose(nll(log_probabilities, text), F.nll_loss(log_probabilities, torch.tensor(text)) * 3)


def test_reading_a_mixed_batch_computes_little_padding_and_each_row_as_alone() -> None:
    model = build()
    lengths = torch.tensor([20, 200, 40, 60, 160, 80, 100, 130, 30])
    generator = torch.Generator().manual_seed(0)
    speech = torch.randn(9, 200, model.encoder.hidden_size, generator=generator, dtype=torch.float64)
    mask = torch.arange(200)[None] < lengths[:, None]
    texts, more = random_texts(9), torch.full((9, 2), 7)
    computed = []
    hook = model.language_model.register_forward_pre_hook(
        lambda module, args, inputs: computed.append(inputs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    logits, state = model.prefill(speech, mask, labels_of(texts))
    hook.remove()
    assert sum(computed) < 1.05 * state.mask.sum()
    later = model.extend(state, more)
    for row, text in enumerate(texts):
        clip = slice(row, row + 1)
        alone, state = model.prefill(speech[clip, : lengths[row]], mask[clip, : lengths[row]], labels_of([text]))
        assert tiny.relative_difference(logits[row, -len(text) - 1 :], alone[0]) < BITS32
        assert tiny.relative_difference(later[row], model.extend(state, more[clip])[0]) < BITS32
