"""CoPS: conditional prompt synthesis (arXiv 2508.03447), the whole method. The prompts are made for each picture.

A prompt has vectors in place of words, once for the normal and once for the abnormal state:

    [context] [state] [category] .

Three parts, by the paper's names, fit it to the picture:

- ESTS, explicit state token synthesis: cross-attention extracts prototypes of both states from the picture's patches;
  they are added to the learned state vectors.
- ICTS, implicit category token sampling: a small variational autoencoder learns how global tokens vary; vectors decoded
  from its samples are added to the learned category vectors, which makes a prompt for each sample.
- SAGA, spatially-aware global-local alignment: a patch's probability is weighted by its distances to the extracted
  prototypes, and the image score mixes the global probability with the largest weighted patch.

Where the paper and its released code differ, it is said which of them is followed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tipsomaly.errors import OptionError
from tipsomaly.models.config import TipsConfig
from tipsomaly.models.encoder import ImageTokens, LayerTokens
from tipsomaly.prompts.losses import image_loss, local_loss, upsample
from tipsomaly.prompts.method import Conditioned, Option, PromptMethod, Recipe, TextEncoder, TrainingBatch
from tipsomaly.prompts.prototypes import probabilities

Ests = Literal["own", "exchanged", "off"]
Icts = Literal["prior", "posterior", "off"]


@dataclass(frozen=True)
class CopsOptions:
    """What there is to choose besides the vectors; the defaults are those of the released code for training on VisA.
    Raises OptionError for a value that cannot be."""

    pool: int = 5
    """K: a patch is averaged over K x K patches; odd."""
    alpha: float = 0.26
    """SAGA: the share of the distance to the normal prototypes; the distance to the abnormal ones has the rest."""
    beta: float = 0.9
    """SAGA: the share of the global probability in the image score; the largest weighted patch has the rest."""
    sentence: str = "."
    """The words behind the vectors."""
    category_rows: int = 2
    """How many vectors of a prompt, its last ones, are category vectors."""
    heads: int = 1
    """Attention heads of the extractor."""
    local_weight: float = 4.0
    """Of the focal and the Dice losses in the total."""
    reconstruction_weight: float = 0.0
    """rho: of the reconstruction in the total; the released code has 0 for VisA and 1 for MVTec AD."""
    ests: Ests = "own"
    """ESTS: what is added to the state vectors: the prototypes of their own state, as in the paper; of the other one,
    as in the released code; or nothing."""
    icts: Icts = "prior"
    """ICTS: what is added to the category vectors: samples of the prior, the same for every picture, as in the released
    code; of the picture's posterior, as in the paper, which takes the encoder that a file lacks; or nothing."""
    saga: bool = True
    """Without it, a patch has its bare probability and the image that of its spatial token."""

    def __post_init__(self) -> None:
        counts = {"pool": (1, 99), "category_rows": (0, 64), "heads": (1, 1024)}
        for name, (low, high) in counts.items():
            if type(value := getattr(self, name)) is not int or not low <= value <= high:
                raise OptionError(f"CoPS: {name} must be a whole number from {low} to {high}, not {value!r}")
        if self.pool % 2 == 0:
            raise OptionError(f"CoPS: pool must be odd, not {self.pool}")
        for name in ("alpha", "beta"):
            if not isinstance(value := getattr(self, name), int | float) or not 0 <= value <= 1:
                raise OptionError(f"CoPS: {name} must be from 0 to 1, not {value!r}")
        if not isinstance(self.sentence, str) or not 0 < len(self.sentence) <= 200:
            raise OptionError("CoPS: the sentence behind the vectors must have 1 to 200 characters")
        for name, known in (("ests", get_args(Ests)), ("icts", get_args(Icts))):
            if getattr(self, name) not in known:
                raise OptionError(f"CoPS: {name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")


class CrossAttention(nn.Module):
    """Multi-head attention from some tokens to others, with the parameters of torch's. In plain steps: on a GPU the
    gradient of a fused kernel may differ from run to run."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """x (B, n, D) and keys (B, N, D), which are the values too -> (B, n, D)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        projected = map(F.linear, (x, keys, keys), weights, biases)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.out_proj((attention @ v).transpose(1, 2).flatten(2))


class PrototypeExtractor(nn.Module):
    """ESTS: queries look at the patches of a picture, through one block of cross-attention and a small MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attn = CrossAttention(dim, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        """queries (n, D) and patches (B, N, D) -> (B, n, D); no query sees the others."""
        x, keys = queries.expand(len(patches), -1, -1), self.ln_1(patches)
        x = x + self.attn(self.ln_1(x), keys)
        hidden = self.fc1(self.ln_2(x))
        return x + self.fc2(hidden * (1.702 * hidden).sigmoid())


class Encoder(nn.Module):
    """ICTS: a global token (B, D) -> mean and log variance, each (B, D), of the posterior of its latent vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc, self.mean, self.log_var = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, token: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.fc(token))
        return self.mean(hidden), self.log_var(hidden)


class Decoder(nn.Module):
    """ICTS: a latent vector (..., D) -> what is added to the category vectors (..., D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, latent: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(latent)))


class Cops(PromptMethod):
    """The vectors of the prompts and the modules that fit them to a picture, in one of two forms:

    - in training, with `encoder`, `decoder` and R samples of the prior, `noise` (R, D);
    - of a file, with what these decode to in their place, `categories` (R, D). A score then needs no random numbers: it
      is the same in every order and in every batch.

    `normal` and `abnormal` (rows, D) are the prompts: context, then M state, then category vectors; `queries_normal`
    and `queries_abnormal` (M, D) ask for the prototypes. `text_tokens` (blocks, m, D) take the first m positions before
    each of these text blocks, from the second one on. All float32.
    """

    NAME: ClassVar[str] = "cops"
    RECIPE: ClassVar[Recipe] = Recipe(epochs=10, seed=0, shuffle=True)
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "pool": Option(int, "patches a side that are averaged; default: 5, of few patches 3", 1),
        "alpha": Option(float, f"share of the distance to normal prototypes; default: {CopsOptions.alpha}", 0, 1),
        "beta": Option(float, f"share of the global token in the image score; default: {CopsOptions.beta}", 0, 1),
        "reconstruction_weight": Option(float, "rho; default: 0, as published for VisA; for MVTec AD 1", 0),
    }
    PER_IMAGE: ClassVar[bool] = True
    temperature: float
    encoder: Encoder | None
    decoder: Decoder | None
    noise: Tensor
    categories: Tensor

    def __init__(
        self,
        options: CopsOptions,
        *,
        dim: int,
        rows: int,
        states: int,
        text_tokens: tuple[int, int],
        samples: int,
        trained: bool,
        temperature: float,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Shapes alone, on the meta device: `start` and `from_tensors` put the numbers there. Raises ValueError."""
        super().__init__()
        self.options, self.temperature, self.metadata = options, temperature, dict(metadata or {})
        self.image_score = {"spatial": options.beta, "local": 1 - options.beta} if options.saga else {"spatial": 1.0}
        if not (0 < states <= rows - options.category_rows and text_tokens[1] <= rows <= 64):
            raise ValueError(f"CoPS: {rows} vectors (at most 64) cannot hold {states} states and the other parts")
        if not 0 < samples <= 256:
            raise ValueError(f"CoPS: there must be 1 to 256 samples of category vectors, not {samples}")
        if dim % options.heads:
            raise ValueError(f"CoPS: the width {dim} is no multiple of the extractor's {options.heads} heads")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"CoPS: the temperature must be positive, not {temperature}")
        with torch.device("meta"):
            self.normal, self.abnormal = (nn.Parameter(torch.empty(rows, dim)) for _ in range(2))
            self.queries_normal, self.queries_abnormal = (nn.Parameter(torch.empty(states, dim)) for _ in range(2))
            self.text_tokens = nn.Parameter(torch.empty(*text_tokens, dim))
            self.extractor = PrototypeExtractor(dim, options.heads)
            self.encoder = None if trained else Encoder(dim)
            self.decoder = None if trained else Decoder(dim)
            self.register_buffer("noise", None if trained else torch.empty(samples, dim))
            self.register_buffer("categories", torch.empty(samples, dim) if trained else None)
        self.requires_grad_(False)

    @classmethod
    def start(
        cls,
        config: TipsConfig,
        *,
        temperature: float,
        seed: int = 0,
        context: int = 6,
        states: int = 6,
        text_tokens: int = 4,
        samples: int = 10,
        metadata: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Self:
        """Small random numbers for M = `states` and R = `samples`. Up to 8 text blocks after the first are given text
        tokens. The other options are those of `CopsOptions`; of a grid of few patches only 3 a side are averaged."""
        dim, blocks = config.text.dim, min(8, config.text.depth - 1)
        pool = 5 if config.vision.grid > 16 else 3
        heads = next(heads for heads in range(max(dim // 64, 1), 0, -1) if dim % heads == 0)  # of a width near 64
        chosen = CopsOptions(**{"heads": heads, "pool": pool, **options})
        method = cls(
            chosen,
            dim=dim,
            rows=context + states + chosen.category_rows,
            states=states,
            text_tokens=(blocks if text_tokens else 0, text_tokens),
            samples=samples,
            trained=False,
            temperature=temperature,
            metadata=metadata,
        ).to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in method.state_dict().items():
            if name == "extractor.attn.in_proj_weight":
                nn.init.xavier_uniform_(tensor, generator=generator)
            elif name.endswith("bias"):
                tensor.zero_()
            elif ".ln_" in name:
                tensor.fill_(1)
            else:
                tensor.normal_(0, 1 if name == "noise" else 0.02, generator=generator)
        return method

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, Any],
        temperature: float | None,
        metadata: Mapping[str, str],
    ) -> Self:
        """The form that the tensors, by name, are of. They are copied."""
        drawn = "categories" if "categories" in tensors else "noise"
        if unknown := settings.keys() - {field.name for field in fields(CopsOptions)}:
            raise ValueError(f"CoPS has no setting {min(unknown)!r}")
        options = CopsOptions(**settings)
        for name, axes in (("normal", 2), ("queries_normal", 2), ("text_tokens", 3), (drawn, 2)):
            if name not in tensors or tensors[name].ndim != axes:
                raise ValueError(f"CoPS: the tensor {name!r} is missing or has not {axes} axes")
        method = cls(
            options,
            dim=tensors["normal"].shape[1],
            rows=len(tensors["normal"]),
            states=len(tensors["queries_normal"]),
            text_tokens=(tensors["text_tokens"].shape[0], tensors["text_tokens"].shape[1]),
            samples=len(tensors[drawn]),
            trained=drawn == "categories",
            temperature=float("nan") if temperature is None else temperature,
            metadata=metadata,
        )
        expected = {(name, tensor.shape) for name, tensor in method.state_dict().items()}
        if wrong := sorted({name for name, _ in expected ^ {(name, t.shape) for name, t in tensors.items()}}):
            raise ValueError(f"CoPS: the tensor {wrong[0]!r} is missing, is too much or has another shape")
        method.load_state_dict({name: t.detach().float().clone() for name, t in tensors.items()}, assign=True)
        return method.requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """The form of a file: of the autoencoder only the decoded samples of the prior."""
        kept = {n: t for n, t in self.state_dict().items() if n.split(".")[0] not in ("encoder", "decoder", "noise")}
        if self.decoder is not None:
            with torch.no_grad():
                kept["categories"] = self.decoder(self.noise)
        return kept

    def settings(self) -> dict[str, Any]:
        return asdict(self.options)

    def prototypes(self, encode: TextEncoder) -> None:
        """None: every picture has its own."""

    def condition(self, tokens: ImageTokens, encode: TextEncoder, prototypes: Tensor | None = None) -> Conditioned:
        """The averaged patches, the prototypes (B, 2, D) of each picture, and SAGA's weight."""
        patches = self.neighbourhood(tokens.patches)
        states = self.synthesize_states(patches)
        found = self.picture_prototypes(encode, states, self.sample_categories(tokens.spatial.float()))
        saga = alignment_weight(distances(patches, states), self.options.alpha) if self.options.saga else None
        return Conditioned(tokens._replace(patches=patches), found, saga)

    def neighbourhood(self, patches: Tensor) -> Tensor:
        """Patches (B, h, w, D) averaged over their neighbours, float32; beyond the border there are zeros."""
        side = self.options.pool
        averaged = F.avg_pool2d(patches.float().permute(0, 3, 1, 2), side, stride=1, padding=side // 2)
        return averaged.permute(0, 2, 3, 1)

    def synthesize_states(self, patches: Tensor) -> Tensor:
        """ESTS: averaged patches (B, h, w, D) -> M prototypes of the normal and of the abnormal state (B, 2, M, D)."""
        queries = torch.cat([self.queries_normal, self.queries_abnormal])
        return self.extractor(queries, patches.flatten(1, 2)).unflatten(1, (2, -1))

    def sample_categories(self, spatial: Tensor) -> Tensor:
        """ICTS: R vectors (1, R, D) for the category, or (B, R, D) if they are of the pictures' posteriors."""
        if self.options.icts == "off":
            return spatial.new_zeros(1, 1, spatial.shape[-1])
        if self.options.icts == "posterior":
            return self.autoencode(spatial, self.noise)[0]
        return (self.categories if self.decoder is None else self.decoder(self.noise))[None]

    def autoencode(self, spatial: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decoded samples (B, R, D) of the posterior of spatial tokens (B, D), its mean and its log variance (B, D).
        noise (R, D) or (B, R, D): standard normal numbers."""
        if self.encoder is None or self.decoder is None:
            raise ValueError("CoPS: a file has no autoencoder: training begins anew, and only the prior can be sampled")
        mean, log_var = self.encoder(spatial)
        return self.decoder(mean[:, None] + (log_var / 2).exp()[:, None] * noise), mean, log_var

    def sentence_embeddings(self, encode: TextEncoder, states: Tensor, categories: Tensor) -> Tensor:
        """(B, 2, R, D) unit embeddings of the prompts with these states (B, 2, M, D) and categories (1 or B, R, D)."""
        if self.options.ests != "own":
            states = states.flip(1) if self.options.ests == "exchanged" else torch.zeros_like(states)
        batch, samples, count = len(states), categories.shape[1], (states.shape[2], self.options.category_rows)
        learned = torch.stack([self.normal, self.abnormal])[:, None]  # (2, 1, rows, D)
        context, state, category = learned.split([learned.shape[2] - sum(count), *count], dim=2)
        parts = (context[None], state + states[:, :, None], category + categories[:, None, :, None])
        prompts = torch.cat([part.expand(batch, 2, samples, -1, -1) for part in parts], dim=3).flatten(0, 2)
        layers = LayerTokens(self.text_tokens, overwrite=True)
        return encode([self.options.sentence] * len(prompts), prompts, layers).unflatten(0, (batch, 2, samples))

    def picture_prototypes(self, encode: TextEncoder, states: Tensor, categories: Tensor) -> Tensor:
        """(B, 2, D) unit vectors, normal then abnormal: the mean of the embeddings over the samples."""
        return F.normalize(self.sentence_embeddings(encode, states, categories).mean(2), dim=-1)

    def losses(
        self,
        batch: TrainingBatch,
        encode: TextEncoder,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The released code's terms. noise (B, D) takes the place of what the generator would draw."""
        patches, spatial = self.neighbourhood(batch.tokens.patches), batch.tokens.spatial.float()
        size = (batch.masks.shape[1], batch.masks.shape[2])
        states = self.synthesize_states(patches)
        if self.options.icts == "off":
            zero = spatial.new_zeros(())
            categories, kl, reconstruction = self.sample_categories(spatial), zero, zero
        else:
            noise = torch.randn(spatial.shape, generator=generator) if noise is None else noise
            categories, mean, log_var = self.autoencode(spatial, noise.to(spatial)[:, None])
            kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(-1).mean()
            # Of each picture its own sample; the released code compares every sample with every picture.
            reconstruction = ((spatial - categories[:, 0]) ** 2).mean()
        # Detached: the extractor learns from gather and scatter alone.
        prototypes = self.picture_prototypes(encode, states.detach(), categories)
        maps = upsample(probabilities(patches, prototypes, self.temperature), size)
        defective = F.max_pool2d(batch.masks, (size[0] // patches.shape[1], size[1] // patches.shape[2]))
        from_normal, from_abnormal = distances(patches, states).unbind(1)
        image = image_loss(spatial, prototypes, self.temperature, batch.labels)
        local = local_loss(maps, batch.masks)
        gather, scatter = mean_where(from_normal, 1 - defective), mean_where(from_abnormal, defective)
        total = image + self.options.local_weight * sum(local.values()) + gather + scatter
        total = total + kl + self.options.reconstruction_weight * reconstruction
        autoencoder = {"kl": kl, "reconstruction": reconstruction}
        return {"total": total, "image": image, **local, "gather": gather, "scatter": scatter, **autoencoder}


def distances(patches: Tensor, states: Tensor) -> Tensor:
    """(B, 2, h, w): 1 - cosine of patches (B, h, w, D) and the nearest of the prototypes (B, 2, M, D) of a state."""
    cosines = F.normalize(patches, dim=-1).flatten(1, 2) @ F.normalize(states, dim=-1).flatten(1, 2).mT
    return 1 - cosines.unflatten(2, states.shape[1:3]).amax(-1).mT.unflatten(2, patches.shape[1:3])


def alignment_weight(distances: Tensor, alpha: float) -> Tensor:
    """SAGA: distances (B, 2, h, w) to both states -> weights (B, h, w) in [0, 1], large where a patch is far from
    normal and near to abnormal. Each picture has its own scale; if all of its patches are alike, it is 1 - alpha."""
    low, high = distances.amin((2, 3), keepdim=True), distances.amax((2, 3), keepdim=True)
    from_normal, from_abnormal = ((distances - low) / (high - low + 1e-8)).unbind(1)
    return alpha * from_normal + (1 - alpha) * (1 - from_abnormal)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values where the mask, of their shape, is 1, or 0 where there are none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
