"""Pictures as rows of patches, and back."""

from ...types import Array


def patches(images: Array, size: int) -> Array:
    """Cut pictures into squares of size × size pixels, row by row; the pixels of a patch in the same order.

    images  (N, H, W, C)
    result  (N, H/size · W/size, size·size·C)

    Each number keeps its value and gets a new place, so `unpatch` is the inverse and also the gradient.
    Raises ValueError unless size divides H and W. Source: Dosovitskiy et al. 2021 (ViT), §3.1.
    """
    n, height, width, channels = images.shape
    _check_patch(size, height, width)
    squares = images.reshape(n, height // size, size, width // size, size, channels).swapaxes(2, 3)
    return squares.reshape(n, (height // size) * (width // size), size * size * channels)


def unpatch(rows: Array, size: int, height: int, width: int) -> Array:
    """Put patches together again: the inverse of `patches`.

    rows    (N, H/size · W/size, size·size·C)
    result  (N, H, W, C)

    Raises ValueError unless size divides H and W, and the rows are as many as that makes.
    """
    n, count, numbers = rows.shape
    _check_patch(size, height, width)
    if count != (height // size) * (width // size) or numbers % (size * size):
        raise ValueError(
            f"{count} patches of {numbers} numbers don't make pictures of {height}×{width}, patch size {size}"
        )
    squares = rows.reshape(n, height // size, width // size, size, size, numbers // (size * size))
    return squares.swapaxes(2, 3).reshape(n, height, width, numbers // (size * size))


def _check_patch(size: int, height: int, width: int) -> None:
    if size < 1 or height % size or width % size:
        raise ValueError(f"the patch size is {size}; it must divide both sides of the picture, {height} and {width}")
