"""The shape of an image encoder."""

from dataclasses import dataclass

ENCODERS = {
    "linear": "each patch by itself, projected",
    "transformer": "patches that see each other through blocks of attention",
}
FUSIONS = {
    "prefix": "the rows of the picture stand before the text's",
    "additive": "their mean is added to every row of the text",
}


@dataclass(frozen=True)
class VisionConfig:
    """The shape of an encoder. Raises ValueError for one that can't be built."""

    image: tuple[int, int, int] = (20, 20, 3)  # H, W, C: height, width, channels
    patch: int = 5  # S
    width: int = 128  # D, of the language model
    encoder: str = "transformer"
    layers: int = 2  # transformer only, as the rest
    heads: int = 4
    hidden: int = 256  # F
    fusion: str = "prefix"  # how the rows of a picture meet those of its text

    def __post_init__(self) -> None:
        for name in ("patch", "width", "layers", "heads", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if len(self.image) != 3 or min(self.image) < 1:
            raise ValueError(
                f"image is {self.image}; it must be three numbers, each at least 1: height, width, channels"
            )
        if self.image[0] % self.patch or self.image[1] % self.patch:
            raise ValueError(
                f"patch is {self.patch}; it must divide both sides of the picture, {self.image[0]} and {self.image[1]}"
            )
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder is {self.encoder!r}; choose one of {', '.join(ENCODERS)}")
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion is {self.fusion!r}; choose one of {', '.join(FUSIONS)}")
        if self.encoder == "transformer" and self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads; change one of them")

    @property
    def rows(self) -> int:
        """R, the patches of a picture."""
        return self.image[0] // self.patch * (self.image[1] // self.patch)

    @property
    def pixels(self) -> int:
        """S·S·C, the numbers in a patch."""
        return self.patch * self.patch * self.image[2]
