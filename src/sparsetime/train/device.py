"""The device that training and evaluation run on."""

import torch


def pick_device(name: str) -> torch.device:
    """The device by its name, ``cpu``, ``cuda`` or ``mps``; ``auto`` takes a CUDA GPU where there is one, else the CPU.

    MPS has to be asked for: nothing here has been measured on it.
    """
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
