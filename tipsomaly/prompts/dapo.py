"""DAPO: defect-aware prompt optimisation, the whole method. One normal prompt and one for each kind of defect.

A prompt is a row of learned context vectors before fixed words that say the kind:

    [V1 .. Vl] normal object          [W1 .. Wl] scratch anomaly object

W is shared by all kinds, so a kind that was never trained is used by writing its name. Learned tokens beside those of
the transformer blocks tune the towers progressively: each block's are its own plus a share of what the block before
made of the previous ones. A patch gets a probability for every kind; their sum is the map.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tipsomaly.models.config import TipsConfig
from tipsomaly.models.encoder import LayerTokens
from tipsomaly.names import clean_kinds
from tipsomaly.prompts.losses import image_loss, local_loss, upsample
from tipsomaly.prompts.method import Option, PromptMethod, Recipe, TextEncoder, TrainingBatch
from tipsomaly.prompts.prototypes import pair, probabilities

LOCAL_WEIGHT = 4.0
"""The weight of the local loss against the image's ("weight balance")."""
MAX_SENTENCES = 4096
"""That a file may ask the text tower for."""


class Dapo(PromptMethod):
    """Context vectors `normal` V and `abnormal` W (E, l, D): E rows of l vectors; `text_tokens` (blocks, m, D) and
    `vision_tokens` (blocks, n, D), in front of the blocks of the towers, or None."""

    NAME: ClassVar[str] = "dapo"
    RECIPE: ClassVar[Recipe] = Recipe(epochs=5, seed=42, shuffle=True)
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "tokens": Option(int, "learned vectors of a prompt; default: 5", 1, 16),
        "rows": Option(int, "prompts of a state; default: 10", 1, 64),
        "image_tokens": Option(int, "tokens a block of the vision tower; the paper has 4; default: 0", 0, 64),
    }
    TELLS_KINDS: ClassVar[bool] = True
    temperature: float
    abnormal: Tensor
    text_tokens: Tensor | None
    vision_tokens: Tensor | None

    def __init__(
        self,
        normal: Tensor,
        abnormal: Tensor,
        text_tokens: Tensor | None = None,
        vision_tokens: Tensor | None = None,
        *,
        kinds: Sequence[str],
        temperature: float,
        normal_sentence: str = "normal object",
        abnormal_sentence: str = "{} anomaly object",
        mix: float = 0.01,
        local_weight: float = LOCAL_WEIGHT,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if normal.ndim != 3 or normal.shape != abnormal.shape or not normal.numel():
            shapes = f"{tuple(normal.shape)} and {tuple(abnormal.shape)}"
            raise ValueError(f"DAPO's context vectors are two tensors (E, l, D) of one shape, not {shapes}")
        for name, tokens in (("text", text_tokens), ("vision", vision_tokens)):
            if tokens is not None and (tokens.ndim != 3 or not tokens.numel()):
                raise ValueError(f"DAPO's {name} tokens are a tensor (blocks, m, D), not {tuple(tokens.shape)}")
        if not all(isinstance(text, str) and len(text) <= 200 for text in (normal_sentence, abnormal_sentence)):
            raise ValueError("the sentences behind the vectors must be texts of at most 200 characters")
        if abnormal_sentence.count("{}") != 1:
            raise ValueError(f"the abnormal sentence {abnormal_sentence!r} must contain {{}} exactly once")
        if not 0 < temperature < math.inf:
            raise ValueError(f"the temperature must be positive, not {temperature}")
        self.kinds = clean_kinds(kinds)
        sentences = len(normal) * (1 + len(self.kinds))
        if sentences > MAX_SENTENCES:
            raise ValueError(f"{len(normal)} rows for {len(self.kinds)} kinds are more than {MAX_SENTENCES} sentences")
        if not 0 <= mix <= 1:
            raise ValueError(f"the share that is mixed from block to block must be from 0 to 1, not {mix}")
        given = {"normal": normal, "abnormal": abnormal, "text_tokens": text_tokens, "vision_tokens": vision_tokens}
        for name, value in given.items():
            own = None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
            self.register_parameter(name, own)
        self.image_score = {"spatial": 1.0}
        self.temperature, self.mix, self.local_weight = temperature, mix, local_weight
        self.normal_sentence, self.abnormal_sentence = normal_sentence, abnormal_sentence
        self.metadata = dict(metadata or {})

    @classmethod
    def start(
        cls,
        config: TipsConfig,
        *,
        temperature: float,
        seed: int = 42,
        kinds: Sequence[str] = ("damaged",),
        rows: int = 10,
        tokens: int = 5,
        text_tokens: int = 4,
        image_tokens: int = 0,
        **options: Any,
    ) -> Self:
        """Small random numbers for E = `rows` rows of l = `tokens` vectors, and that many tokens a block of the
        towers; the paper has 4 image tokens, of which 0 leave the vision tower as it is. The other options are those
        of the constructor."""
        dim, generator = config.text.dim, torch.Generator().manual_seed(seed)

        def small(*shape: int) -> Tensor:
            return 0.02 * torch.randn(*shape, dim, generator=generator)

        normal, abnormal, text = small(rows, tokens), small(rows, tokens), small(config.text.depth, text_tokens)
        bound = (6 / (3 * config.vision.patch_size**2 + dim)) ** 0.5
        vision = bound * (2 * torch.rand(config.vision.depth, image_tokens, dim, generator=generator) - 1)
        layers = (layer if layer.numel() else None for layer in (text, vision))
        return cls(normal, abnormal, *layers, kinds=kinds, temperature=temperature, **options)

    def settings(self) -> dict[str, Any]:
        return {
            "kinds": list(self.kinds),
            "normal_sentence": self.normal_sentence,
            "abnormal_sentence": self.abnormal_sentence,
            "mix": self.mix,
            "local_weight": self.local_weight,
        }

    @property
    def blocks(self) -> tuple[int, int]:
        text, vision = self.text_tokens, self.vision_tokens
        return 0 if text is None else len(text), 0 if vision is None else len(vision)

    @property
    def image_tokens(self) -> LayerTokens | None:
        return None if self.vision_tokens is None else LayerTokens(self.vision_tokens, self.mix)

    def of_kinds(self, kinds: Sequence[str]) -> Self:
        """See `PromptMethod.of_kinds`."""
        given = {**dict(self.named_parameters()), **self.settings(), "kinds": kinds}
        return type(self)(**given, temperature=self.temperature, metadata=self.metadata)

    def prototypes(self, encode: TextEncoder) -> Tensor:
        rows, states = len(self.normal), 1 + len(self.kinds)
        sentences = [self.normal_sentence, *(self.abnormal_sentence.replace("{}", kind) for kind in self.kinds)]
        context = torch.stack([self.normal, *[self.abnormal] * len(self.kinds)], dim=1)  # (E, 1 + K, l, D)
        layers = None if self.text_tokens is None else LayerTokens(self.text_tokens, self.mix)
        embeddings = encode(sentences * rows, context.flatten(0, 1), layers)
        return F.normalize(embeddings.unflatten(0, (rows, states)).mean(0), dim=-1)

    def losses(
        self, batch: TrainingBatch, encode: TextEncoder, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """A defective pixel carries its picture's kind; the image score is that of the spatial token."""
        prototypes = self.prototypes(encode)
        number = {"": 0, **{kind: k for k, kind in enumerate(self.kinds, 1)}}
        own = torch.tensor([number[kind] for kind in batch.kinds]).to(batch.masks)
        maps = upsample(probabilities(batch.tokens.patches, prototypes, self.temperature), batch.masks.shape[1:])
        parts = local_loss(maps, batch.masks * own[:, None, None])
        parts["image"] = image_loss(batch.tokens.spatial, pair(prototypes), self.temperature, batch.labels)
        local = parts["focal"] + parts["dice_abnormal"] + parts["dice_normal"]
        return {"total": self.local_weight * local + parts["image"], **parts}
