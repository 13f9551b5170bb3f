"""Relevance of volumes as NIfTI files, for viewers of medical images."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from whence.core.files import atomic_write
from whence.errors import InputError, MissingPackageError, WhenceError, first_line


def write_nifti(path: str | Path, volume: Tensor, like: Any = None) -> Path:
    """Write a volume `[D, H, W]` as a NIfTI file, with the orientation and voxel size of another; return the path.

    Raises:
        MissingPackageError: nibabel is not installed.
        InputError: The volume has another shape than the image `like`.
        WhenceError: The suffix is not .nii or .nii.gz, or a file cannot be read or written.
    """
    try:
        import nibabel
    except ImportError as error:
        raise MissingPackageError("nibabel is not installed; pip install 'whence[nifti]'") from error
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise WhenceError(f"cannot save as {path.name!r}: the suffix must be .nii or .nii.gz")
    if not path.parent.is_dir():
        raise WhenceError(f"no folder {path.parent}; create it before saving {path.name}")
    affine = np.eye(4)
    if like is not None:
        try:
            image: Any = nibabel.load(like) if isinstance(like, str | Path) else like  # type: ignore[attr-defined]
            shape, affine = tuple(image.shape), image.affine
        except Exception as error:  # readers raise errors of many kinds
            raise WhenceError(f"like={like} cannot be read as an image: {first_line(error)}") from error
        if shape[:3] != tuple(volume.shape):
            raise InputError(
                f"the relevance has shape {tuple(volume.shape)}, the image {shape}; expected the volume as the file has it: "
                "transpose and resample relevance as the input was, in reverse, or omit like="
            )
    with atomic_write(path) as temporary:
        found = nibabel.Nifti1Image(volume.detach().float().cpu().numpy(), affine)  # type: ignore[attr-defined]
        whole = temporary.with_name(f"{temporary.name.removesuffix(path.suffix)}{''.join(path.suffixes[-2:])}")
        nibabel.save(found, whole)  # type: ignore[attr-defined]
        whole.replace(temporary)
    return path
