"""Memories against plain oracles; normal pictures that are really left out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta

from tipsomaly import ModelError
from tipsomaly.detection.combination import Scale, Scales, combine, squash
from tipsomaly.detection.drift import Drift
from tipsomaly.detection.leave_one_out import ALONE, LEAST, Normal, fit, turn
from tipsomaly.detection.memory import Neighbours, Subspace, coreset, nearest, unit_tokens
from tipsomaly.detection.mutual import mutual_distances
from tipsomaly.detection.references import ReferenceOptions


@pytest.fixture
def numbers():
    return torch.Generator().manual_seed(0)


def units(numbers, *shape):
    return F.normalize(torch.randn(*shape, generator=numbers), dim=-1)


def normal(numbers, tokens, **changes):
    """A picture with these tokens (h, w, D), of which the prompts say something at random."""
    values = {"images": torch.rand(2, generator=numbers), "patches": [torch.rand(*tokens.shape[:2], generator=numbers)]}
    return Normal(**{"tokens": [tokens], **values, **changes})


def pile(numbers, count, shape=(6, 5, 8), noise=0.2):
    """Pictures of one product: the same tokens, a little different each time."""
    product = torch.randn(*shape, generator=numbers)
    moved = (product + noise * torch.randn(*shape, generator=numbers) for _ in range(count))
    return [normal(numbers, F.normalize(tokens, dim=-1)) for tokens in moved]


def squashed(deviations, farthest):
    """Logistic up to one half, from there on a logarithm that is 1 at `farthest`."""
    above = 0.5 + 0.5 * np.log(deviations / 6 + np.sqrt((deviations / 6) ** 2 + 1)) / math.asinh(farthest / 6)
    return np.where(deviations > 0, np.minimum(above, 1), 1 / (1 + np.exp(-deviations / 3)))


def test_the_nearest_is_that_of_a_plain_search(numbers, monkeypatch):
    tokens, memory = units(numbers, 3, 4, 5, 16), units(numbers, 77, 16)
    plain = [
        min(1 - sum(a * b for a, b in zip(t, m, strict=True)) for m in memory.tolist())
        for t in tokens.view(-1, 16).tolist()
    ]
    np.testing.assert_allclose(nearest(tokens, memory).flatten(), plain, atol=1e-6)
    monkeypatch.setattr("tipsomaly.detection.memory.BLOCK", 100)
    np.testing.assert_allclose(Neighbours.fit(memory).distances(tokens).flatten(), plain, atol=1e-6)
    assert nearest(memory, memory).max() < 1e-6  # what is remembered has distance 0


def test_tokens_of_several_blocks_have_the_mean_of_their_cosines(numbers):
    first, second = (torch.randn(2, 9, dim, generator=numbers) for dim in (4, 6))
    joined = unit_tokens([first, second])
    cosines = [F.cosine_similarity(layer[0], layer[1], dim=-1) for layer in (first, second)]
    torch.testing.assert_close((joined[0] * joined[1]).sum(-1), (cosines[0] + cosines[1]) / 2)


def test_the_subspace_leaves_what_a_principal_component_analysis_leaves(numbers):
    tokens = F.normalize(torch.randn(300, 10, generator=numbers) * torch.logspace(0, -3, 10), dim=-1)
    memory = Subspace.fit(tokens)
    centred = (tokens - tokens.mean(0)).numpy()
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    share = np.cumsum(values**2) / (values**2).sum()
    count = np.searchsorted(share, 0.95) + 1
    assert len(memory.basis) == count < 10
    others = units(numbers, 4, 5, 10)
    residual = (others - tokens.mean(0)).numpy() @ (np.eye(10) - directions[:count].T @ directions[:count])
    np.testing.assert_allclose(memory.distances(others), (residual**2).sum(-1), atol=1e-5)
    same = Subspace.fit(tokens[:1].expand(5, -1))
    assert same.basis.shape == (0, 10)
    assert same.distances(tokens[0]) < 1e-12


@pytest.mark.parametrize("block", [3, 64, 1024])
def test_the_coreset_is_the_greedy_one(numbers, block):
    tokens = units(numbers, 200, 6)
    chosen, similar = [0], tokens @ tokens[0]
    while len(chosen) < 60:
        chosen.append(int(similar.argmin()))
        similar = torch.maximum(similar, tokens @ tokens[chosen[-1]])
    assert coreset(tokens, 60, block).tolist() == chosen
    assert coreset(tokens, 1000, block).tolist() == list(range(200))
    twice = tokens[:50].repeat(2, 1)  # no token is chosen twice, and none before its equal's like are there
    assert len(set(coreset(twice, 70, block).tolist())) == 70
    assert {i % 50 for i in coreset(twice, 50, block).tolist()} == set(range(50))


def test_turns_are_the_eight_of_a_square():
    pixels = torch.arange(6).view(2, 3)
    shapes = {tuple(turn(pixels, k).flatten().tolist()) + turn(pixels, k).shape for k in range(8)}
    assert len(shapes) == 8
    assert turn(pixels, 0) is pixels or torch.equal(turn(pixels, 0), pixels)


@pytest.mark.parametrize("kind", ["neighbours", "subspace"])
def test_every_picture_is_really_left_out(numbers, kind):
    pictures = pile(numbers, 4)
    found = fit(pictures, ReferenceOptions(kind=kind))
    make = {"neighbours": Neighbours, "subspace": Subspace}[kind]
    without = []
    for i, picture in enumerate(pictures):
        memory = make.fit(torch.cat([p.tokens[0].flatten(0, 1) for j, p in enumerate(pictures) if j != i]))
        without.append(memory.distances(picture.tokens[0]))
    distances = torch.stack(without)
    assert found.scales.memory.mean == pytest.approx(float(distances.mean()), rel=1e-5)
    assert found.scales.memory.deviation == pytest.approx(float(distances.std(unbiased=False)), rel=1e-4)
    # The scores too: of scales without the picture, whose largest value is the score of the memory alone.
    scores = []
    for i in range(4):
        rest = torch.cat([distances[:i], distances[i + 1 :]])
        scale = Scale(float(rest.mean()), float(rest.std(unbiased=False)))
        peak = float(scale(rest.flatten(1).amax(1).mean()))  # of the others, which has a score of one half
        scores.append(squashed(float(scale(distances[i].max())) - peak, float(scale(torch.tensor(1.0))) - peak))
    np.testing.assert_allclose(found.scores["memory"], sorted(scores), rtol=1e-4)
    plain = sorted(float(p.images[1] + p.patches[0].max()) for p in pictures)
    np.testing.assert_allclose(found.scores["prompts"], plain, rtol=1e-6)


def test_of_a_single_picture_its_quarters_are_left_out(numbers):
    tokens = units(numbers, 5, 4, 8)
    [picture] = [normal(numbers, tokens)]
    found = fit([picture])
    expected = torch.empty(5, 4)
    for rows in (slice(0, 3), slice(3, 5)):
        for columns in (slice(0, 2), slice(2, 4)):
            outside = torch.ones(5, 4, dtype=torch.bool)
            outside[rows, columns] = False
            expected[rows, columns] = nearest(tokens[rows, columns], tokens[outside])
    assert found.scales.memory.mean == pytest.approx(float(expected.mean()), rel=1e-5)
    assert (found.pictures, found.likeness, found.weight, found.use) == (1, None, ALONE, "both")
    assert found.memory.distances(tokens).max() < 1e-6
    # Its turned copies are left out with the quarter that they show.
    again = fit([picture._replace(turned=[(k, turn(tokens.movedim(2, 0), k).movedim(0, 2)) for k in range(1, 8)])])
    assert again.scales.memory.mean == pytest.approx(found.scales.memory.mean, rel=1e-5)
    assert len(again.memory.tokens) == 8 * len(found.memory.tokens)


def test_pictures_that_are_alike_have_a_heavy_memory_and_unlike_ones_none(numbers):
    alike, unlike = (
        fit(pile(numbers, 5, noise=0.05)),
        fit([normal(numbers, units(numbers, 6, 5, 64)) for _ in range(5)]),
    )
    assert alike.likeness < 0.5 and alike.weight == 2 and alike.use == "both"
    assert fit(pile(numbers, 2, noise=0.05)).weight == 0.5  # of two pictures the prompts weigh more, however alike
    assert unlike.likeness > 0.8 and unlike.weight < alike.weight
    far = replace(unlike, likeness=3.1, weight=LEAST)
    assert far.use == "prompts" and "unlike" in far.reason
    assert far.using("memory").use == "memory"
    assert replace(far, scores={use: s[:2] for use, s in far.scores.items()}).use == "both"  # of two nobody can say


def test_the_peak_of_both_is_the_mean_of_the_normal_pictures_largest_sums(numbers):
    pictures = pile(numbers, 4)
    found = fit(pictures)
    flat = [picture.tokens[0].flatten(0, 1) for picture in pictures]
    rest = [torch.cat([other for other in flat if other is not own]) for own in flat]
    distances = np.array([nearest(own, others).numpy() for own, others in zip(flat, rest, strict=True)])
    p = np.array([picture.patches[0].flatten().numpy() for picture in pictures])
    logits, weight = np.log(p / (1 - p)), found.weight
    sums = [(values - values.mean()) / values.std() for values in (logits, distances)]
    largest = ((sums[0] + weight * sums[1]) / math.hypot(1, weight)).max(axis=1)
    assert found.scales.peaks == pytest.approx((sums[1].max(axis=1).mean(), largest.mean()), rel=1e-3)
    tokens = torch.stack([picture.images for picture in pictures]).logit().mean(0)
    assert found.scales.tokens == pytest.approx(tokens.tolist(), rel=1e-4)


def test_both_share_one_scale(numbers):
    scales = Scales((-1, -2), Scale(-3, 0.5), Scale(0.1, 0.02), (5.0, 4.0))
    images = torch.tensor([[0.3, 0.6]])
    patches, distances = torch.rand(1, 3, 4, generator=numbers), torch.rand(1, 3, 4, generator=numbers) * 0.3
    both = combine(images, patches, distances, scales, 1.5, "both")
    p, d = patches.numpy(), distances.numpy()
    sums = ((np.log(p / (1 - p)) + 3) / 0.5 + 1.5 * (d - 0.1) / 0.02) / math.hypot(1, 1.5)
    far = ((math.log(0.95 / 0.05) + 3) / 0.5 + 1.5 * (1 - 0.1) / 0.02) / math.hypot(1, 1.5) - 4
    np.testing.assert_allclose(both.patches, squashed(sums - 4, far), rtol=1e-4, atol=1e-7)
    odds = [0.3 / 0.7 * math.e, 0.6 / 0.4 * math.e**2]  # a logit of -1 and of -2 is normal
    np.testing.assert_allclose(both.images[0], [o / (1 + o) for o in odds], rtol=1e-5)
    alone = combine(images, patches, distances, scales, 1.5, "memory")
    assert not alone.images.any()
    np.testing.assert_allclose(alone.patches, squashed((d - 0.1) / 0.02 - 5, 0.9 / 0.02 - 5), rtol=1e-4, atol=1e-7)
    as_it_was = combine(images, patches, distances, scales, 1.5, "prompts")
    assert as_it_was.images is images and as_it_was.patches is patches


def test_what_is_far_above_normal_stays_in_order(numbers):
    """Of pictures that are all but the same, where a deviation is the floor and a defect a hundred of them."""
    values = squash(torch.tensor([-20.0, -1.0, 0.0, 1.0, 40.0, 60.0, 61.0, 150.0]), torch.tensor(150.0))
    assert (values.diff() > 1e-3).all() and values[2] == 0.5 and values[-1] == 1 and values[0] > 0
    assert squash(torch.tensor(9.0), torch.tensor(-1.0)) == 1  # nothing can be far where normal ones are so far apart


def test_what_is_far_from_the_memory_is_found_by_both(numbers):
    pictures = pile(numbers, 6, noise=0.1)
    found = fit(pictures)
    picture = pictures[0].tokens[0].clone()
    picture[2, 3] = units(numbers, 8)
    evidence = combine(
        torch.full((1, 2), 0.1),
        torch.full((1, 6, 5), 0.1),
        found.memory.distances(picture)[None],
        found.scales,
        found.weight,
        "both",
    )
    assert evidence.patches.flatten().argmax() == 2 * 5 + 3
    assert evidence.patches[0, 2, 3] > 0.5 > evidence.patches[0].flatten().kthvalue(29).values


def test_more_tokens_than_the_limit_are_a_coreset(numbers):
    pictures = pile(numbers, 7)
    found = fit(pictures, ReferenceOptions(limit=40))
    everything = torch.cat([p.tokens[0].flatten(0, 1) for p in pictures])
    first = coreset(everything[:180], 80)  # no more than four times as many are ever held
    held = torch.cat([everything[:180][first], everything[180:]])
    torch.testing.assert_close(found.memory.tokens, held[coreset(held, 40)])
    assert found.nbytes == 40 * 8 * 4
    assert ReferenceOptions().of_tower(24).layers == (-9, -1)
    assert ReferenceOptions().of_tower(6).layers == (-3, -1) and ReferenceOptions().of_tower(3).layers == (-1,)
    assert ReferenceOptions(layers=(2,)).of_tower(24).layers == (2,)


def test_verdicts_promise_what_so_few_pictures_can(numbers):
    found = fit(pile(numbers, 9), ReferenceOptions(target_fpr=0.25))
    scores = found.scores["both"].double().numpy()
    assert (scores >= found.image_threshold).sum() == 2
    assert (scores >= np.nextafter(found.image_threshold, 0)).sum() == 3
    expected, low, high = found.false_alarms
    assert expected == pytest.approx(3 / 10)
    assert (low, high) == pytest.approx(beta.ppf((0.025, 0.975), 3, 7))
    assert found.p_value(scores[-1] + 1) == pytest.approx(1 / 10)
    assert found.p_value(scores[4]) == pytest.approx(6 / 10)
    assert found.p_value(0) == 1
    other = replace(found, options=replace(found.options, rule="percentile", factor=1.5))
    assert other.image_threshold == pytest.approx(1.5 * np.quantile(scores, 0.95))
    assert other.pixel_threshold == pytest.approx(1.5 * found.pixels["both"][1])


def test_false_alarms_stay_within_the_interval_that_is_promised():
    """Of normal pictures never seen before, for draws of references: the interval holds their share in most draws."""
    kept = []
    for seed in range(6):
        numbers = torch.Generator().manual_seed(seed)
        pictures = pile(numbers, 8 + 40, shape=(4, 4, 12))
        found = fit(pictures[:8], ReferenceOptions(target_fpr=0.2))
        alarms = 0
        for picture in pictures[8:]:
            distances = found.memory.distances(picture.tokens[0])[None]
            evidence = combine(
                picture.images[None], picture.patches[0][None], distances, found.scales, found.weight, "both"
            )
            alarms += float(evidence.images[0, 1] + evidence.patches.max()) >= found.image_threshold
        _, low, high = found.false_alarms
        kept.append(low - 0.05 <= alarms / 40 <= high + 0.05)  # 40 pictures tell the share to about that
    assert sum(kept) >= 5


def test_pictures_of_other_sizes_and_the_same_again(numbers):
    pictures = [normal(numbers, units(numbers, *shape, 8)) for shape in ((3, 4), (5, 2), (1, 1), (4, 4))]
    one, other = fit(pictures), fit(pictures)
    assert one.digest() == other.digest() != one.using("memory").digest()
    twice = fit([pictures[0], pictures[0]])  # nothing differs: a deviation has a floor
    assert math.isfinite(twice.scales.memory.deviation) and twice.scales.memory.deviation > 0
    with pytest.raises(ModelError, match="at least one"):
        fit([])


def test_tiles_make_the_score_and_the_whole_the_global_part(numbers):
    views = [units(numbers, 3, 3, 8) for _ in range(3)]
    patches = [torch.full((3, 3), value) for value in (0.9, 0.2, 0.4)]
    pictures = [Normal(views, torch.tensor([0.1, 0.3]), patches)] * 3
    np.testing.assert_allclose(fit(pictures).scores["prompts"], 0.7, rtol=1e-6)
    np.testing.assert_allclose(fit(pictures, top=0.75).scores["prompts"], 0.3 + (9 * 0.4 + 4 * 0.2) / 13, rtol=1e-6)


def test_pictures_score_each_other(numbers):
    pictures = [units(numbers, 3, 4, 8) for _ in range(5)]
    pile = [picture.flatten(0, 1) for picture in pictures]
    for i, picture in enumerate(pictures):
        found = mutual_distances(picture, pile, share=0.5)
        expected = np.empty((3, 4))
        for y in range(3):
            for x in range(4):
                to_each = sorted(
                    min(1 - float(pictures[i][y, x] @ other) for other in picture.view(-1, 8))
                    for j, picture in enumerate(pictures)
                    if j != i
                )
                expected[y, x] = np.mean(to_each[:2])
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ModelError, match="at least two"):
        mutual_distances(pictures[0], pile[:1])


def test_a_stream_that_leaves_the_range_of_the_normal_pictures_is_noticed(numbers):
    found = fit(pile(numbers, 16))
    scores = found.scores[found.use].double()

    def note(values):
        drift = Drift(found)
        for value in values:
            drift.add(float(value))
        return drift.note()

    again = scores[torch.randint(16, (50,), generator=numbers)]
    assert note(again) is None
    assert note(torch.cat([again[:28], again[:22] + 1])) is None  # not quite half of them are defective
    assert "only 0 of the last 50" in note(again + 1)
    assert "score lower than every normal one" in note(again - 1)
    assert note(again[:19] + 1) is None  # too few to tell
