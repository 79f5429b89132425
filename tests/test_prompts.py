import numpy as np
import pytest
import torch

from tipsomaly.models.tokenizer import Tokenizer
from tipsomaly.names import clean_class_name
from tipsomaly.prompts.learned import LearnedPrompts
from tipsomaly.prompts.prototypes import prototypes
from tipsomaly.prompts.sentences import ENSEMBLES, PromptEnsemble

SENTENCES = ["a photo of a flawless metal nut.", "damaged", "A Cropped PHOTO of the bottle with scratch ü", "x"]


def test_tokenizer_gives_the_reference_ids(golden):
    ids, valid = Tokenizer(golden.tokenizer)(SENTENCES)
    np.testing.assert_array_equal(ids, golden.expected["text_ids"])
    np.testing.assert_array_equal(~valid.numpy(), golden.expected["text_paddings"].astype(bool))


def test_tokenizer_cuts_long_sentences_and_refuses_other_files(golden):
    ids, valid = Tokenizer(golden.tokenizer)(["scratch " * 100, ""])
    assert ids.shape == valid.shape == (2, 64)
    assert valid.sum(1).tolist() == [64, 0]
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Tokenizer(b"nonsense")


@pytest.mark.parametrize(
    "domain, normal, abnormal", [("industrial", 28, 20), ("medical", 80, 64), ("object-agnostic", 1, 1)]
)
def test_ensembles_have_every_state_in_every_template(domain, normal, abnormal):
    sentences = ENSEMBLES[domain].sentences("metal_nut")
    assert [len(set(state)) for state in sentences] == [normal, abnormal]
    assert all("metal nut" in text and "{" not in text for state in sentences for text in state)


def test_the_paper_example_is_among_the_sentences():
    assert "a bad photo of a flawless bottle." in ENSEMBLES["industrial"].sentences("bottle")[0]


@pytest.mark.parametrize("domain", ENSEMBLES)
def test_fixed_prototypes_equal_the_reference(golden, domain):
    pipe = golden.pipe.with_options(domain=domain)
    for row, class_name in enumerate(golden.case["classes"]):
        global_prototypes, _ = pipe.prototypes(class_name)
        expected = golden.expected[f"fixed_{domain.replace('-', '_')}"][row]
        np.testing.assert_allclose(global_prototypes, expected, atol=1e-5)


@pytest.mark.parametrize("form", ["paper", *ENSEMBLES])
def test_learned_prototypes_equal_the_reference_in_both_literal_forms(golden, form):
    learned = golden.pipe.prompts
    pipe = golden.pipe.with_options(prompts=LearnedPrompts(learned.normal, learned.abnormal, form))
    _, local_prototypes = pipe.prototypes()
    np.testing.assert_allclose(local_prototypes, golden.expected[f"learned_{form.replace('-', '_')}"][0], atol=1e-5)


def test_a_long_sentence_with_learned_prompts_is_cut_back_to_64(golden):
    tower, learned = golden.pipe.tips.text_encoder, golden.pipe.prompts
    ids, valid = golden.pipe.tokenizer(["crack " * 100])
    with torch.no_grad():
        whole = tower(ids, valid, learned.normal)
        assert torch.equal(whole, tower(ids[:, :56], valid[:, :56], learned.normal))
        assert not torch.equal(whole, tower(ids[:, :55], valid[:, :55], learned.normal))


def test_own_prompts_take_the_place_of_an_ensemble(golden):
    own = PromptEnsemble(normal=["clean {}"], abnormal=["dirty {}", "{} with rust"], templates=["photo of {}"])
    assert own.sentences("gear")[1] == ["photo of dirty gear", "photo of gear with rust"]
    pipe = golden.pipe.with_options(domain=own)
    with torch.no_grad():
        direct = prototypes(pipe.tips.text_encoder, pipe.tokenizer, own.sentences("gear"))
    assert torch.equal(pipe.prototypes("gear", "fixed")[0], direct)


@pytest.mark.parametrize(
    "strings", [{"normal": []}, {"normal": ["good"]}, {"abnormal": ["{} or {}"]}, {"normal": "good {}"}]
)
def test_odd_own_prompts_are_refused(strings):
    with pytest.raises(ValueError, match="prompt"):
        PromptEnsemble(**{"normal": ["good {}"], "abnormal": ["bad {}"], **strings})


def test_class_names():
    assert clean_class_name("  metal_nut-M4 ") == "metal nut M4"
    # Braces in a name are words like any other.
    assert ENSEMBLES["object-agnostic"].sentences("{} {0}")[1] == ["damaged {} {0}"]
    with pytest.raises(ValueError, match="empty"):
        clean_class_name(" _- ")


def test_prompt_files_survive_a_round_trip(tmp_path):
    prompts = LearnedPrompts(torch.randn(8, 16), torch.randn(8, 16), "paper", {"backbone": "x", "seed": "1"})
    prompts.save(tmp_path / "p.safetensors")
    again = LearnedPrompts.load(tmp_path / "p.safetensors")
    assert torch.equal(again.normal, prompts.normal)
    assert torch.equal(again.abnormal, prompts.abnormal)
    assert (again.ensemble, again.metadata) == ("paper", {"backbone": "x", "seed": "1"})


def test_other_files_are_no_prompt_files(tmp_path, golden):
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 10)
    for path, message in (
        (tmp_path / "junk.safetensors", "not a safetensors file"),
        (golden.folder / "model.safetensors", "not a Tipsomaly prompt file"),
    ):
        with pytest.raises(ValueError, match=message):
            LearnedPrompts.load(path)
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        LearnedPrompts.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "normal, abnormal, message",
    [
        (torch.zeros(8, 4), torch.zeros(8, 5), "one shape"),
        (torch.zeros(8), torch.zeros(8), "one shape"),
        (torch.full((8, 4), float("nan")), torch.zeros(8, 4), "NaN"),
    ],
)
def test_odd_vectors_are_refused(normal, abnormal, message):
    with pytest.raises(ValueError, match=message):
        LearnedPrompts(normal, abnormal)
