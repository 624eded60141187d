"""Pocket SD3: what is frozen, because every later figure depends on it.

Classes, backgrounds, caption words, resolution, latent geometry, shift and the split of the art. Changing a line here
makes the bundled weights, and every figure measured with them, stale.
"""

from dataclasses import dataclass

RESOLUTION = 128  # pixels, square
LATENT_CHANNELS = 16
DOWNSCALE = 8  # the autoencoder's f8: a latent is [16, 16, 16]
TEXT_ROWS = 24  # rows of the text stream: <start>, up to 22 words, <end>; padded with <end>
SHIFT = 3.0  # of the flow-matching schedule, SD3's
GUIDANCE = 4.0  # the default CFG scale
STEPS = 28  # the scheduler's

CLASSES = (
    "dog", "cat", "rabbit", "bear", "pig", "horse", "elephant", "penguin",
    "owl", "duck", "fish", "turtle", "frog", "butterfly", "octopus", "crab",
    "mushroom", "tree", "cactus", "flower", "apple", "strawberry", "cake", "car",
    "bus", "airplane", "rocket", "boat", "house", "umbrella", "backpack", "robot",
)  # fmt: skip

#: name -> the words that place an object on it
BACKGROUNDS = {
    "beach": "on the beach",
    "snow": "in the snow",
    "meadow": "in the meadow",
    "forest": "in the forest",
    "desert": "in the desert",
    "sea": "under the sea",
    "city": "in the city",
    "night": "at night",
    "space": "in space",
    "room": "in a room",
    "mountains": "in the mountains",
    "road": "on the road",
}

#: word -> side of the object's square in pixels, [low, high]; no word means medium
SIZES = {"small": (34, 44), "": (54, 66), "big": (80, 96)}

#: words -> centre of the object along x as a share of the width, [low, high]
PLACES = {"on the left": (0.20, 0.30), "in the middle": (0.45, 0.55), "on the right": (0.70, 0.80)}

#: art styles that the base knows; concepts of kind "style" use others
STYLES = ("pixel", "sketch", "sepia", "neon")

#: words of the grammar that stand in none of the lists above; every other word is <unk>
WORDS = ("a", "an", "and", "style")


@dataclass(frozen=True)
class Drawings:
    """Which drawings a split may use: vendors and, by class, names of drawings."""

    vendors: tuple[str, ...]
    names: dict[str, tuple[str, ...]]


_TYPICAL = {
    "dog": ("dog", "dog-face", "dogside"), "cat": ("cat", "cat-face", "catside"), "rabbit": ("rabbit", "rabbit-face"),
    "bear": ("bear", "bear-face"), "pig": ("pig", "pig-face", "pigside"), "horse": ("horse", "horse-face", "horseface"),
    "elephant": ("elephant",), "penguin": ("penguin", "penguin-1"), "owl": ("owl",), "duck": ("duck",),
    "fish": ("fish", "tropical-fish", "tropicalfish"), "turtle": ("turtle",), "frog": ("frog", "frog-face"),
    "butterfly": ("butterfly",), "octopus": ("octopus",), "crab": ("crab",), "mushroom": ("mushroom",),
    "tree": ("deciduous-tree", "evergreen-tree", "deciduoustree"), "cactus": ("cactus", "cactus-1"),
    "flower": ("tulip", "sunflower", "hibiscus"), "apple": ("red-apple", "green-apple", "redapple", "greenapple"),
    "strawberry": ("strawberry", "strawberry-1"), "cake": ("birthday-cake", "shortcake", "birthdaycake"),
    "car": ("automobile", "sport-utility-vehicle", "oncoming-automobile"), "bus": ("bus", "oncoming-bus", "oncomingbus"),
    "airplane": ("airplane", "small-airplane"), "rocket": ("rocket",), "boat": ("sailboat",),
    "house": ("house", "housebuilding"), "umbrella": ("umbrella", "umbrella-with-rain-drops"),
    "backpack": ("backpack", "school-backpack"), "robot": ("robot", "robot-face", "robot-face-1"),
}  # fmt: skip

#: Split by vendor *and* drawing. No vendor is in two splits, the test and its two confirmations aside; no drawing's name is in two splits of
#: concepts, but for the third confirmation's: another artist's crab is another drawing.
SPLITS = {
    "base": Drawings(("noto", "twemoji", "emojione", "emojione-v1", "fxemoji"), _TYPICAL),
    "judges": Drawings(("openmoji", "streamline-emojis"), _TYPICAL),
    "development": Drawings(
        ("noto-v1",),
        {
            "dog": ("poodle",),
            "cat": ("cat",),
            "bear": ("panda", "koala"),
            "horse": ("unicorn",),
            "fish": ("blowfish",),
            "car": ("racing-car", "taxi"),
            "house": ("house-with-garden",),
            "flower": ("blossom", "rose"),
            "tree": ("palm-tree",),
            "mushroom": ("mushroom",),
            "penguin": ("penguin",),
        },
    ),  # fmt: skip
    "test": Drawings(
        ("fluent-emoji",),
        {
            "dog": ("dog",),
            "cat": ("black-cat", "cat-face"),
            "rabbit": ("rabbit",),
            "bear": ("polar-bear",),
            "pig": ("boar",),
            "elephant": ("mammoth",),
            "owl": ("owl",),
            "duck": ("duck",),
            "turtle": ("turtle",),
            "frog": ("frog",),
            "octopus": ("squid",),
            "crab": ("lobster",),
            "flower": ("hibiscus",),
            "car": ("automobile",),
            "bus": ("trolleybus",),
            "boat": ("speedboat",),
            "backpack": ("handbag",),
            "cake": ("cupcake",),
            "rocket": ("rocket",),
        },
    ),  # fmt: skip
    # test's artist again, other things: a second set that nothing was measured on, for what the first gave reason to change
    "confirmation": Drawings(
        ("fluent-emoji",),
        {
            "dog": ("fox",),
            "cat": ("tiger-face", "lion"),
            "rabbit": ("chipmunk",),
            "bear": ("teddy-bear", "raccoon"),
            "pig": ("pig-face",),
            "horse": ("zebra",),
            "elephant": ("rhinoceros",),
            "owl": ("parrot",),
            "duck": ("swan",),
            "fish": ("tropical-fish",),
            "turtle": ("snail",),
            "frog": ("lizard",),
            "butterfly": ("butterfly",),
            "octopus": ("octopus",),
            "crab": ("scorpion",),
            "tree": ("christmas-tree",),
            "cactus": ("cactus",),
            "flower": ("sunflower",),
            "apple": ("peach",),
            "strawberry": ("strawberry",),
            "cake": ("birthday-cake",),
            "car": ("tractor",),
            "bus": ("fire-engine",),
            "airplane": ("small-airplane",),
            "boat": ("sailboat",),
            "house": ("castle",),
            "backpack": ("luggage",),
            "robot": ("robot",),
        },
    ),  # fmt: skip
    # and once more
    "second confirmation": Drawings(
        ("fluent-emoji",),
        {
            "dog": ("wolf", "service-dog"),
            "cat": ("leopard",),
            "rabbit": ("hamster", "mouse"),
            "bear": ("gorilla", "otter"),
            "pig": ("cow",),
            "horse": ("horse-face", "deer"),
            "elephant": ("hippopotamus",),
            "owl": ("eagle", "turkey"),
            "duck": ("goose", "flamingo"),
            "fish": ("shark", "whale"),
            "turtle": ("crocodile",),
            "frog": ("t-rex",),
            "butterfly": ("honeybee", "lady-beetle"),
            "octopus": ("jellyfish",),
            "crab": ("crab",),
            "mushroom": ("brown-mushroom",),
            "tree": ("deciduous-tree",),
            "cactus": ("potted-plant",),
            "flower": ("tulip", "lotus"),
            "apple": ("pear",),
            "strawberry": ("cherries",),
            "cake": ("shortcake",),
            "car": ("sport-utility-vehicle",),
            "bus": ("ambulance",),
            "airplane": ("helicopter",),
            "rocket": ("flying-saucer",),
            "boat": ("canoe",),
            "house": ("church",),
            "umbrella": ("umbrella-on-ground",),
            "backpack": ("clutch-bag",),
            "robot": ("alien-monster",),
        },
    ),  # fmt: skip
    # an artist of whom the base, the judges and all other splits have nothing
    "third confirmation": Drawings(
        ("streamline-kameleon-color",),
        {
            "horse": ("reindeer",),
            "duck": ("chicken",),
            "fish": ("predator",),
            "butterfly": ("butterfly", "ladybug"),
            "crab": ("crab",),
            "mushroom": ("nuclear-mushroom",),
            "tree": ("christmas-tree", "pine-tree"),
            "flower": ("sprout",),
            "strawberry": ("strawberry",),
            "cake": ("donut", "popcorn"),
            "car": ("taxi-2", "vespa", "motorbike", "excavator", "baby-cart"),
            "bus": ("truck", "truck-front", "cable-car"),
            "rocket": ("space-shuttle", "ufo"),
            "boat": ("yacht", "drakkar"),
            "house": ("castle", "apartment-2"),
            "umbrella": ("airdrop-box", "lamp"),
            "backpack": ("briefcase", "basket-2", "shopping-4", "aid-kit"),
            "robot": ("robot", "astronaut", "joystick"),
        },
    ),  # fmt: skip
}
