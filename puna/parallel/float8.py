"""Training with FP8 matrix products: torchao's, tensorwise scales, in place of the layers' linear modules."""

from torch import nn

from puna.errors import PunaError


def apply_float8(model: nn.Module) -> None:
    """Let the layers' matrices, in place, be multiplied in FP8; parameters keep their names and their precision.

    To be called before the model is cut. Embedding and output stay as they are. PunaError without torchao.
    """
    try:
        from torchao.float8 import convert_to_float8_training  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise PunaError('float8 needs torchao: pip install "puna[float8]"') from None

    for layer in model.get_submodule("layers").children():
        convert_to_float8_training(layer)
