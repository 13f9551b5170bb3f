"""Volumes as three slices through the strongest relevance, all slices of a page, NIfTI files; videos as frames."""

import base64
import json
import re
from io import BytesIO

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import whence
from whence import errors
from whence.plotting.volumes import montage, slice_images, strongest_place


def test_the_strongest_place_is_that_of_the_largest_magnitude_around_it():
    heat = torch.zeros(6, 7, 8)
    heat[3:6, 2:5, 4:7], heat[0, 0, 0] = -1.0, 9.0  # the noise of one voxel counts less
    assert strongest_place(heat) == (4, 3, 5)
    region = torch.zeros(6, 7, 8, dtype=torch.bool)
    region[0, :2] = True
    assert strongest_place(heat, region)[:1] == (0,)


def test_a_volume_is_drawn_by_default(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 8 * 10, 2)).eval()
    e = whence.explain(net, torch.rand(2, 1, 6, 8, 10), 1)
    figure = e.figure()
    depth, height, width = strongest_place(e.relevance[0].sum(0))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:3] == [
        f"depth {depth} of 0 to 5  (height ↓, width →)",
        f"height {height} of 0 to 7  (depth ↓, width →)",
        f"width {width} of 0 to 9  (depth ↓, height →)",
    ]
    drawn = [axis.images[0].get_array().shape for axis in figure.axes[:3]]
    assert drawn == [(8, 10), (6, 10), (6, 8)]
    assert e.save(tmp_path / "e.html").stat().st_size > 5000


def test_all_slices_of_a_page(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 8 * 10, 2)).eval()
    e = whence.explain(net, torch.rand(2, 1, 6, 8, 10), 1)
    page = e.save(tmp_path / "e.html").read_text()
    data = json.loads(re.search(r'id="volumes">(.*?)</script>', page, re.DOTALL)[1])
    assert [volume["depths"] for volume in data] == [list(range(6))] * 2
    assert [volume["start"] for volume in data] == [strongest_place(r.sum(0))[0] for r in e.relevance]
    assert [[len(images) for images in volume["images"]] for volume in data] == [[6, 6]] * 2  # in two palettes
    picture = Image.open(BytesIO(base64.b64decode(data[0]["images"][0][2])))
    factor = picture.height // 8
    assert picture.size == (22 * factor, 8 * factor)  # the slice and its overlay, with a gap
    assert "All slices: output 1" in page


def test_a_long_volume_has_some_slices():
    x, relevance = torch.rand(1, 200, 4, 4), torch.randn(1, 200, 4, 4)
    assert list(slice_images(x, relevance)) == list(range(0, 200, 4))


def test_a_montage_has_each_slice_in_its_place():
    x = torch.rand(2, 5, 3, 4)
    found = montage(x)
    assert found.shape == (2, 6, 12)
    for k in range(5):
        row, column = divmod(k, 3)
        torch.testing.assert_close(found[:, 3 * row : 3 * row + 3, 4 * column : 4 * column + 4], x[:, k])
    assert not found[:, 3:, 8:].any()


@pytest.mark.parametrize("time_first", [False, True])
def test_a_video_is_drawn_as_frames_with_a_curve(time_first):
    x = torch.rand(2, 12, 3, 8, 10) if time_first else torch.rand(2, 3, 12, 8, 10)
    e = whence.explain(lambda x: (x * torch.linspace(0, 1, x.numel() // len(x)).view(x.shape[1:])).flatten(1).sum(1), x)
    figure = e.figure()
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    relevance = e.relevance[0] if time_first else e.relevance[0].transpose(0, 1)
    strongest = int(relevance.sum(1).abs().flatten(1).sum(1).argmax())
    assert f"frame {strongest}" in titles
    assert titles[0] == "frame 0"
    curve = next(axis for axis in figure.axes if axis.get_xlabel() == "frame")
    torch.testing.assert_close(torch.tensor([bar.get_height() for bar in curve.patches]).float(), relevance.sum((1, 2, 3)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_files(suffix, tmp_path):
    x = torch.rand(2, 2, 4, 5, 6)
    e = whence.explain(lambda x: (x**2).flatten(1).sum(1), x)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    scan = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), affine), scan)
    for like, expected in ((None, np.eye(4)), (scan, affine), (str(scan), affine), (nibabel.load(scan), affine)):
        written = nibabel.load(e.save_nifti(tmp_path / f"relevance{suffix}", like, sample=1))
        torch.testing.assert_close(torch.from_numpy(written.get_fdata()).float(), e.relevance[1].sum(0))
        assert (written.affine == expected).all()
    assert {file.name for file in tmp_path.iterdir()} == {"scan.nii.gz", f"relevance{suffix}"}
    with pytest.raises(errors.WhenceError, match=r"the suffix must be .nii or .nii.gz"):
        e.save_nifti(tmp_path / "relevance.png")
    with pytest.raises(errors.WhenceError, match="cannot be read as an image"):
        e.save_nifti(tmp_path / "r.nii", like=tmp_path / "none.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4), np.float32), affine), scan)
    with pytest.raises(errors.InputError, match=r"shape \(4, 5, 6\), the image \(6, 5, 4\)"):
        e.save_nifti(tmp_path / "r.nii", like=scan)
    with pytest.raises(errors.InputError, match="expected the relevance of one volume"):
        whence.explain(lambda x: x.flatten(1).sum(1), torch.rand(1, 3, 4, 4)).save_nifti(tmp_path / "r.nii")


def test_a_region_is_outlined_and_cut():
    torch.manual_seed(0)
    net = nn.Conv3d(1, 2, 1).eval()
    e = whence.explain(net, torch.rand(1, 1, 6, 8, 10), whence.Region(1, box=(6, 4, 2, 9, 7, 5)))
    axes = e.figure().axes
    depth, height, width = (int(re.search(r"(\d+) of", axis.get_title())[1]) for axis in axes[:3])
    assert 2 <= depth < 5
    assert 4 <= height < 7
    assert 6 <= width < 9
    assert [len(axis.collections) for axis in axes[:6]] == [2] * 6  # the outline, in two colours
    assert list(axes[0].get_xticks()) == [width]
    assert list(axes[0].get_yticks()) == [height]


def test_modalities_with_names_are_a_volume():
    x = torch.rand(1, 3, 4, 8, 8)
    e = whence.explain(lambda x: x.flatten(1).sum(1), x, feature_names=["T1", "T2", "FLAIR"])
    assert e.figure().axes[0].get_title().startswith("depth")
    assert whence.explain(lambda x: x.flatten(1).sum(1), x).figure().axes[0].get_title() == "frame 0"


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 2, 2), (1, 1, 1)])
def test_thin_volumes_are_drawn(shape, tmp_path):
    e = whence.explain(lambda x: x.flatten(1).sum(1), torch.rand(1, 2, *shape))
    assert e.save(tmp_path / "e.png").is_file()
    assert e.save(tmp_path / "e.html").is_file()
