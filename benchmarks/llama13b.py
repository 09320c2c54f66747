"""The adapted weights of Llama 1-13B, by kind: (in, out)."""

HIDDEN, INTERMEDIATE, LAYERS = 5120, 13824, 40
SHAPES = {
    "q": (HIDDEN, HIDDEN),
    "k": (HIDDEN, HIDDEN),
    "v": (HIDDEN, HIDDEN),
    "up": (HIDDEN, INTERMEDIATE),
    "down": (INTERMEDIATE, HIDDEN),
}
