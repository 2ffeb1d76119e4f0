"""Files of a trunk's weights."""

from collections.abc import Sequence
from pathlib import Path

from timm.models import load_state_dict
from torch import nn

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def load_weights(trunk: nn.Module, path: str, name: str, classifier: Sequence[str]) -> None:
    """Load a file of trunk weights, plain or under "state_dict", with or without the prefix "module.".

    The classifier is left out: the trunk has none. All else must match.

    Args:
        trunk: takes them; on the meta device it only compares.
        path: of the file.
        name: of the trunk, for messages.
        classifier: how the keys begin that the file may have and the trunk does not.

    Raises:
        ValueError: another kind of file, or keys or shapes that are not the trunk's.
        FileNotFoundError: no such file.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"weights is {path!r}; allowed: null, 'hub', or a file ending in {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {path!r}; give an existing file, 'hub' to download, or null for none")
    state = load_state_dict(path, use_ema=False, device="cpu", weights_only=True)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(classifier))}
    try:
        missing, unexpected = trunk.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes differ; PyTorch lists all of them
        first = " ".join(str(error).split("\n")[:3])
        raise ValueError(f"{path} holds another model's weights: {first}; name the backbone they are of") from error
    if missing or unexpected:
        raise ValueError(
            f"{path} holds another model's weights: {len(missing)} keys missing, such as {missing[:3]}, "
            f"{len(unexpected)} unexpected, such as {unexpected[:3]}; give the file of {name}, "
            "or name the backbone that these are of"
        )
