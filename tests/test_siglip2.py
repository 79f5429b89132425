"""SigLIP 2 against transformers' own forward passes, on a random small configuration; then through the package."""

import builtins
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from tipsomaly import LearnedPrompts, ModelError, Pipeline
from tipsomaly.data.layouts import read_dataset
from tipsomaly.data.samples import Sample
from tipsomaly.errors import OptionError
from tipsomaly.prompts.dapo import Dapo
from tipsomaly.studies.evaluation import evaluate
from tipsomaly.studies.training import Features, train

TEXTS = ["a photo of a flawless object", "Object with a DEFECT"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random SigLIP 2 as transformers saves it: 32 px, patches of 16, words as tokens."""
    folder, generator = tmp_path_factory.mktemp("siglip2"), torch.Generator().manual_seed(5)
    words = ["<pad>", "<unk>", "a", "of", "the", "photo", "object", "flawless", "perfect", "with", "defect", "damaged"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="right"
    ).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision, text = {"image_size": 32, "patch_size": 16}, {"vocab_size": len(words), "max_position_embeddings": 16}
    model = SiglipModel(SiglipConfig(vision_config=sizes | vision, text_config=sizes | text))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.logit_scale.data, model.logit_bias.data = torch.tensor([1.5]), torch.tensor([-0.7])
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return Pipeline.from_pretrained(folder, mode="fixed")


@pytest.fixture(scope="module")
def oracle(folder):
    return SiglipModel.from_pretrained(folder).eval()


@torch.inference_mode()
@pytest.mark.parametrize("size", [(32, 32), (48, 64)])
def test_tokens_are_those_of_transformers(pipe, oracle, size):
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    [first, tokens] = pipe.encode_layers(pixels, [0, -1])
    expected = oracle.vision_model((pixels - 0.5) / 0.5, interpolate_pos_encoding=True)
    torch.testing.assert_close(tokens.object, expected.pooler_output, atol=1e-5, rtol=1e-4)
    assert torch.equal(tokens.spatial, tokens.object)
    assert tokens.patches.shape == (2, size[0] // 16, size[1] // 16, 32)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected.last_hidden_state, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(first.patches, tokens.patches)
    [pooled] = pipe.with_options(readout="pooled").encode_layers(pixels, [-1])
    alone = oracle.vision_model.head(expected.last_hidden_state.flatten(0, 1)[:, None])
    torch.testing.assert_close(pooled.patches.flatten(0, 2), alone, atol=1e-5, rtol=1e-4)
    assert torch.equal(pooled.object, tokens.object)


@torch.inference_mode()
def test_sentences_and_scores_are_those_of_transformers(folder, pipe, oracle):
    ids = PreTrainedTokenizerFast.from_pretrained(folder)(
        [text.lower() for text in TEXTS], padding="max_length", max_length=16, return_tensors="pt"
    )["input_ids"]
    detector = pipe.detector("object")
    embeddings = detector.encode(TEXTS)
    expected = F.normalize(oracle.text_model(ids).pooler_output, dim=-1)
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-4)
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    probabilities = oracle(input_ids=ids, pixel_values=2 * pixels - 1).logits_per_image.sigmoid()
    ours = type(detector)(
        type(detector.image)(embeddings, detector.image.temperature),
        type(detector.image)(embeddings, detector.image.temperature),
        detector.encode,
    ).score(pipe.encode(pixels))
    torch.testing.assert_close(ours.images, probabilities[:, 1:].expand(-1, 2), atol=1e-5, rtol=1e-4)
    patches = F.normalize(oracle.vision_model(2 * pixels - 1).last_hidden_state, dim=-1)
    normal, abnormal = (patches @ expected.T * oracle.logit_scale.exp() + oracle.logit_bias).sigmoid().unbind(-1)
    torch.testing.assert_close(ours.patches.flatten(1), (1 - normal + abnormal) / 2, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_learned_vectors_go_before_the_words(pipe, oracle):
    """Vectors that are embedded words themselves do what the words do; what they push out at the end is cut."""
    encode, embedding = pipe.detector().encode, oracle.text_model.embeddings.token_embedding.weight
    torch.testing.assert_close(encode(["object"], embedding[[2, 5, 3]]), encode(["a photo of object"]))
    whole = " ".join(["defect"] * 15)
    torch.testing.assert_close(encode([whole], embedding[[2, 5]]), encode([f"a photo {whole}"]))


def test_train_detect_evaluate_and_save(pipe, drawn, tmp_path):
    samples = [sample for sample in read_dataset(drawn) if sample.class_name == "felt"]
    learning = pipe.with_options(readout="pooled")
    start = LearnedPrompts.start(pipe.tips.config, tokens=3, metadata={"readout": "pooled"})
    prompts = train(learning, Features(learning, samples), tmp_path / "own.safetensors", start, epochs=1)
    assert not torch.equal(prompts.normal, start.normal)
    tuned = learning.with_options(prompts=prompts, mode="decoupled")
    found = tuned(samples[0].image, "felt")
    assert found.patch_map.shape == (2, 2)
    assert 0 <= found.score <= 2
    assert set(tuned.compare(samples[0].image, "felt")) == {"fixed", "learned", "decoupled"}
    assert all(np.isfinite(value) for value in evaluate(tuned, samples).mean().values())
    tuned.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(tmp_path / "saved")
    assert again.settings() == tuned.settings()
    assert again(samples[0].image, "felt").score == found.score


def test_what_has_no_meaning_is_refused_in_one_line(folder, pipe, drawn, tmp_path, monkeypatch, here):
    with pytest.raises(ModelError, match="multiple of 16, not 56"):
        pipe.with_options(image_size=56)
    with pytest.raises(ModelError, match="no readout 'values': choose tokens, pooled"):
        pipe.with_options(readout="values")
    sample = Sample(drawn / "felt/test/good/000.png", None, "felt", "good", 0)
    with pytest.raises(OptionError, match="no spatial token: S2 means nothing, choose S1 or S5"):
        evaluate(pipe, [sample], strategy="S2")
    refused = here("export", tmp_path / "out", "--model", folder, "--mode", "fixed")
    assert (refused.returncode, refused.stderr) == (2, "error: an export takes a TIPS, and this model is a siglip\n")
    dapo = Dapo.start(pipe.tips.config, temperature=0.1, seed=0)
    with pytest.raises(ModelError, match="dapo need a backbone with a softmax"):
        pipe.with_options(prompts=dapo, mode="learned")
    plain = builtins.__import__

    def without(name, *rest, **more):
        if name == "transformers":
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError, match=r"pip install 'tipsomaly\[siglip2\]'"):
        Pipeline.from_pretrained(folder, mode="fixed")


def test_a_damaged_folder_gets_one_line(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    state = load_file(copy / "model.safetensors")
    del state["vision_model.head.probe"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors, first 'vision_model.head.probe'$"):
        Pipeline.from_pretrained(copy, mode="fixed")
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 10**9
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"depth must be a whole number from 1 to 128"):
        Pipeline.from_pretrained(copy, mode="fixed")
