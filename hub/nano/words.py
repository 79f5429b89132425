"""The words that nano knows: its tokenizer's corpus, and the sentences that it is trained on."""

import io
import random
from collections.abc import Mapping
from itertools import product

import sentencepiece

from tipsomaly.prompts.sentences import ENSEMBLES, PromptEnsemble

from .defects import DEFECTS
from .surfaces import SURFACES, Surface

# Class names of the paper's 14 datasets, as the prompts say them.
CLASS_NAMES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal nut", "pill", "screw", "tile"),
    *("toothbrush", "transistor", "wood", "zipper"),  # MVTec AD
    *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3", "pcb4"),
    "pipe fryum",  # VisA
    *("bracket black", "bracket brown", "bracket white", "connector", "metal plate", "tubes"),  # MPDD
    *("01", "02", "03", "electrical commutators", "industrial texture"),  # BTAD, SDD
    *(f"class{i}" for i in range(1, 11)),  # DAGM
    *("blotchy", "fibrous", "marbled", "matted", "mesh", "perforated", "stratified", "woven"),  # DTD-Synthetic
    *("skin", "colon", "thyroid", "brain", "head", "tissue", "organ"),  # ISIC, Colon/ClinicDB, TN3K, HeadCT, MRI, Br35H
)
# What people photograph beyond those, and colours.
COMMON_NOUNS = """
    object, product, part, surface, material, texture, component, item, thing, sample, solar cell, solar panel,
    magnetic tile, road, asphalt, concrete, wall, pavement, steel, metal, steel strip, rail, casting, weld, bearing,
    gear, pipe, fabric, textile, paper, glass, plastic, rubber, ceramic, paint, wafer, chip, circuit board, label,
    can, box, bag, board, battery, lens, coin, key, plate, ring, washer, nut, bolt, fruit, bread, leaf, tooth, shirt,
    t shirt, dress, trousers, jacket, shoe, hat, glove, sock, belt, cloth, cotton, wool, denim, silk, rope, yarn,
    thread, towel, curtain, sofa, cushion, chair, table, door, window, cardboard, carton, envelope, book, card,
    playing card, newspaper, packaging, package, wrapper, foil, film, sticker, barcode, basket, bucket, cup, mug,
    bowl, jar, lid, cap, cork, apple, banana, orange, lemon, pear, peach, potato, tomato, onion, carrot, pepper,
    cucumber, egg, cheese, meat, fish, rice, bean, seed, grain, cake, cookie, chocolate, candy, milk carton, juice
    carton, flower, plant, tree, bark, grass, soil, sand, gravel, rock, stone, marble, granite, slate, brick, roof
    tile, floor, ceiling, plaster, cement, bridge, iron, aluminium, aluminum, copper, brass, gold, silver, titanium,
    sheet metal, wire, chain, spring, hinge, hook, nail, rivet, clip, clamp, bracket, flange, valve, pump, piston,
    shaft, rod, tube, hose, seal, gasket, o ring, blade, knife, saw, drill, hammer, wrench, tool, engine, turbine,
    turbine blade, motor, fan, wheel, tire, tyre, brake, brake disc, car, car body, truck, train, ship, aircraft,
    wing, hull, tank, container, barrel, pallet, sensor, led, display, screen, keyboard, button, switch, plug, socket,
    resistor, capacitor, diode, coil, relay, inductor, cell, electrode, insulator, ball screw, lead screw, ball
    bearing, phone, smartphone, laptop, camera, lamp, light bulb, bulb, toy, ball, pen, pencil, brush, syringe, vial,
    ampoule, tablet, mask, bandage, implant, bone, knee, chest, lung, liver, kidney, breast, retina, eye, heart, hand,
    blood, cell smear, x ray, mri scan, ct scan, wallpaper, panel, plywood, parquet, laminate, veneer, furniture,
    enamel, glaze, coating, foam, sponge, leather seat, vinyl, nylon, polymer, composite, carbon fiber, fiberglass,
    resin, wax, airplane, apartment house, armchair, asparagus, aubergine, avocado, beam, beef tomato, red beet, bell
    pepper, bird, stone block, boulder, bunker door, butterfly, cabbage, cantaloupe, playing cards, carrots, cat,
    cave, cherry leaves, hands, clouds, coast, coins, conference, corn, room corner, cupboard doors, deer, dog, drum
    kit, dry grass, espresso cup, euro coin, rock face, factory, forest, fork, forks, frog, garlic, ginger,
    grapefruit, grapes, stained tissue, hemlock twig, hills, melon, horse, house, insect, kiwi, knives, lane, lawn,
    leaves, leek, lime, limestone, lizard, mango, mountains, mud, mulch, mushroom, nectarine, nuts, pants, papaya,
    passion fruit, pineapple, pipes, planks, plum, pomegranate, portrait, metal profile, rabbit, terracotta relief,
    rocket, rocks, room, rosewood, sandstone, satsumas, scissors, screws, sea, shore, shoes, shorts, shutter, skirt,
    top, snow, sports bag, stairs, statue, storm, sweet potato, tape, terrain, trail, turtle, vine tomato, violet,
    watermelon, zucchini, red, green, blue, yellow, pink, brown, grey, gray, black, white, golden, dark, bright, long,
    large, small, natural, painted, stained, woven, brushed, polished, rusty, mossy, rocky, wooden, anti slip
"""
PHOTO_TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
    "a picture of a {}.",
    "an image of the {}.",
    "a photo of the {} for visual inspection.",
)


def nouns() -> list[str]:
    common = (" ".join(noun.split()) for noun in COMMON_NOUNS.split(","))
    return sorted({*CLASS_NAMES, *common, *(noun for s in SURFACES.values() for noun in s.nouns)})


def words() -> set[str]:
    """Every word that nano is trained on, as class names are split: at blanks and hyphens."""
    said = [*nouns(), *(text for e in ENSEMBLES.values() for text in (*e.normal, *e.abnormal))]
    said += [text for defect in DEFECTS.values() for text in (*defect.adjectives, *defect.phrases)]
    return {word for text in said for word in text.lower().replace("-", " ").replace("{}", " ").split()}


def defect_phrases(name: str, noun: str) -> list[str]:
    """A defect in words: "scratched metal plate", "metal plate with a scratch"."""
    defect = DEFECTS[name]
    return [*(f"{word} {noun}" for word in defect.adjectives), *(f"{noun} {phrase}" for phrase in defect.phrases)]


def train_tokenizer(vocab_size: int = 2048) -> bytes:
    """A SentencePiece model over every word above. Deterministic."""
    sentences = []
    for noun in nouns():
        sentences += [template.replace("{}", noun) for template in PHOTO_TEMPLATES]
        for ensemble in ENSEMBLES.values():
            sentences += [text for state in ensemble.sentences(noun) for text in state]
    for name, noun in product(DEFECTS, ("object", "surface", "metal plate")):
        sentences += defect_phrases(name, noun) * 8
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sorted(s.lower() for s in sentences)),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


class Sentences:
    """Draws the prompts of a training step about `surfaces` from a seeded `random.Random`."""

    def __init__(self, rng: random.Random, surfaces: Mapping[str, Surface] = SURFACES) -> None:
        self.rng, self.surfaces = rng, surfaces
        self.all_nouns = nouns()

    def noun(self, family: str) -> str:
        """What a caption calls a picture of `family`: its own name mostly, sometimes "object", sometimes a wrong word,
        since users name things that nano has never seen."""
        roll = self.rng.random()
        if roll < 0.45:
            return self.rng.choice(self.surfaces[family].nouns)
        return "object" if roll < 0.7 else self.rng.choice(self.all_nouns)

    def pair(self, family: str) -> tuple[list[str], list[str]]:
        """Matching (normal, abnormal) sentences: **the same noun and templates on both sides**, a random part of the
        ensemble of the family's domain."""
        medical = self.surfaces[family].domain == "medical"
        domain = self.rng.choices(list(ENSEMBLES), (2, 6, 2) if medical else (7, 1, 2))[0]
        chosen = ENSEMBLES[domain]
        part = PromptEnsemble(
            normal=tuple(self.rng.sample(chosen.normal, min(len(chosen.normal), 3))),
            abnormal=tuple(self.rng.sample(chosen.abnormal, min(len(chosen.abnormal), 3))),
            templates=tuple(self.rng.sample(chosen.templates, 1)),
        )
        return part.sentences(self.noun(family))

    def caption(self, noun: str) -> str:
        return self.rng.choice(PHOTO_TEMPLATES).replace("{}", noun)

    def kinds(self) -> list[str]:
        """One sentence for each kind of defect, in the order of DEFECTS, all with the same noun and template."""
        noun = self.rng.choice(("object", "surface", "part", self.rng.choice(self.all_nouns)))
        template = self.rng.choice(PHOTO_TEMPLATES)
        return [template.replace("{}", self.rng.choice(defect_phrases(name, noun))) for name in DEFECTS]

    def families(self, names: list[str]) -> list[str]:
        """One caption for each surface, under its most specific noun or another of its own."""
        return [self.caption(self.rng.choice(self.surfaces[name].nouns[:2])) for name in names]
