"""Pictures: what is drawn, not how pretty it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_heads.plots import class_colours, modal_class, top_activating

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def greys() -> Tensor:
    """Ten images of 8 x 8, image i of grey i / 10."""
    return (torch.arange(10.0) / 10)[:, None, None, None].expand(10, 1, 8, 8)


def drawn(ax: plt.Axes) -> np.ndarray:
    (image,) = ax.images
    return np.asarray(image.get_array())


def centres(ax: plt.Axes, rows: int, columns: int) -> np.ndarray:
    """The grey in the middle of every thumbnail."""
    picture = drawn(ax)
    h, w = picture.shape[0] // rows, picture.shape[1] // columns
    return picture[h // 2 :: h, w // 2 :: w, 0]


def test_rows_are_dimensions_and_the_strongest_image_is_first(greys: Tensor):
    z = torch.stack([torch.arange(1.0, 11), torch.arange(10.0, 0, -1), torch.full((10,), 3.0)], dim=1)
    _, ax = top_activating(greys, z, dims=[1, 0], num_images=3)
    np.testing.assert_allclose(centres(ax, 2, 3), [[0.0, 0.1, 0.2], [0.9, 0.8, 0.7]], atol=1e-6)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dim 1", "dim 0"]


def test_rows_are_normalised_first(greys: Tensor):
    z = torch.ones(10, 2)
    z[4] = torch.tensor([0.1, 0.0])  # small, but all in dimension 0
    _, ax = top_activating(greys, z, dims=[0], num_images=1)
    np.testing.assert_allclose(centres(ax, 1, 1), [[0.4]], atol=1e-6)


def test_only_positive_activations_are_drawn(greys: Tensor):
    z = torch.full((10, 2), -1.0)
    z[6, 0] = 1.0
    labels = torch.zeros(10, dtype=torch.long)
    _, ax = top_activating(greys, z, labels, dims=[0, 1], num_images=2)
    np.testing.assert_allclose(centres(ax, 2, 2), [[0.6, 1.0], [1.0, 1.0]], atol=1e-6)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dim 0\n0: 100% of 1", "dim 1\nonly negative"]


def test_the_frame_is_the_class_and_the_row_names_the_modal_one(greys: Tensor):
    z = torch.stack([torch.arange(10.0, 0, -1), torch.ones(10)], dim=1)
    labels = torch.tensor([1, 0, 1, 1, 1, 1, 1, 1, 0, 0])
    _, ax = top_activating(greys, z, labels, dims=[0], num_images=3, class_names=["cat", "dog"], title="animals")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dim 0\ndog: 70% of 10"]
    assert ax.get_title() == "animals"
    picture = drawn(ax)
    side = picture.shape[1] // 3
    cat, dog = class_colours(2).tolist()
    np.testing.assert_allclose(picture[1, 1::side], [dog, cat, dog], atol=1e-6)
    np.testing.assert_allclose(picture[0, ::side], np.ones((3, 3)))


@pytest.mark.parametrize("num_classes", [2, 10, 11, 100])
def test_every_class_has_a_colour_of_its_own(num_classes: int):
    colours = class_colours(num_classes)
    assert colours.shape == (num_classes, 3)
    assert ((colours >= 0) & (colours <= 1)).all()
    assert len(colours.unique(dim=0)) == num_classes


def test_spread_goes_from_strong_to_weak_through_the_other_active_images(greys: Tensor):
    z = torch.tensor([9.0, 8, 7, 6, 5, 4, 3, 2, -1, -2])[:, None].repeat(1, 2)
    z[:, 1] = (1 - torch.nn.functional.normalize(z[:, :1], dim=0)[:, 0] ** 2).sqrt() * 20  # order survives normalising
    _, ax = top_activating(greys, z, dims=[0], num_images=2, num_spread=3)
    picture = drawn(ax)
    assert picture.shape == (8, 2 * 8 + 4 + 3 * 8, 3)
    np.testing.assert_allclose(picture[4, [4, 12, 24, 32, 40], 0], [0.0, 0.1, 0.2, 0.4, 0.7], atol=0.11)
    assert picture[4, 40, 0] == pytest.approx(0.7)  # the weakest active one, not a negative one
    np.testing.assert_allclose(picture[:, 16:20], 1.0)
    few = drawn(top_activating(greys, z, dims=[0], num_images=6, num_spread=4)[1])
    np.testing.assert_allclose(few[4, 52 + 4 :: 8, 0], [0.6, 0.7, 1.0, 1.0], atol=1e-6)


def test_the_most_used_dimensions_are_the_default(greys: Tensor):
    use = torch.arange(1.0, 13)
    _, ax = top_activating(greys, use.expand(10, 12))
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"dim {j}" for j in range(11, 3, -1)]


def test_bytes_and_floats_in_colour_look_the_same():
    torch.manual_seed(0)
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    z = torch.rand(6, 4)
    pictures = [drawn(top_activating(x, z, num_images=6)[1]) for x in (images, images.float() / 255)]
    assert pictures[0].shape == (4 * 8, 6 * 8, 3)
    np.testing.assert_allclose(*pictures, atol=1e-6)


def test_given_axes_are_drawn_on(greys: Tensor):
    figure, axes = plt.subplots(1, 2)
    returned_figure, returned_ax = top_activating(greys, torch.rand(10, 4), ax=axes[1])
    assert returned_figure is figure
    assert returned_ax is axes[1]
    assert not axes[0].images


def test_modal_class_counts_positive_activations():
    assert modal_class(torch.tensor([1.0, 1.0, 0.0, -1.0, 1.0]), torch.tensor([2, 2, 0, 0, 1])) == (2, 2 / 3, 3)
    label, share, support = modal_class(torch.zeros(3), torch.zeros(3, dtype=torch.long))
    assert (label, support) == (-1, 0)
    assert share != share


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(10, 64)}, r"images \(n, 1 or 3, h, w\).*\(10, 64\)"),
        ({"images": torch.rand(10, 2, 8, 8)}, r"\(10, 2, 8, 8\)"),
        ({"images": torch.rand(10, 8, 8, 4)}, r"\(10, 8, 8, 4\)"),
        (
            {"images": torch.linspace(-2.1, 2.6, 640).view(10, 8, 8)},
            r"float32 from -2\.1 to 2\.6.*images \* std \+ mean",
        ),
        ({"images": torch.rand(10, 8, 8) * 2 - 1}, r"\[0, 1\] or \[0, 255\], got torch\.float32 from -"),
        ({"images": torch.rand(10, 8, 8) * 2.6}, r"float32 from .* to 2\.\d"),
        ({"images": torch.randint(17, (10, 8, 8)).double()}, r"float64 from 0 to 16"),
        ({"images": torch.rand(10, 8, 8) * 65535}, r"e\+04"),
        ({"images": torch.full((10, 8, 8), torch.nan)}, r"from nan to nan"),
        ({"images": ["a.png"] * 10}, r"images must be .* got list"),
        (
            {"embeddings": torch.rand(10, 4).masked_fill(torch.arange(10)[:, None] > 6, torch.nan)},
            "3 of 10 rows.*row 7",
        ),
        ({"embeddings": torch.rand(10)}, r"embeddings .* \(10,\)"),
        ({"embeddings": torch.rand(9, 4)}, r"\(9, 4\) and images \(10, 1, 8, 8\)"),
        ({"labels": torch.zeros(9)}, r"labels \(10,\).*\(9,\)"),
        ({"dims": [0, 4]}, r"0\.\.3.*\[0, 4\]"),
        ({"dims": []}, r"at least one"),
        ({"dims": 4}, r"0\.\.3.*\[4\]"),
        ({"dims": [0.5]}, r"dims must hold integers, got 0\.5"),
        ({"labels": ["cat"] * 10}, r"labels .*'cat'; number the names"),
        (
            {"labels": range(10), "class_names": ["cat", "dog"]},
            r"no name for class 2: it names 2, got \['cat', 'dog'\]",
        ),
        ({"labels": [3] * 10, "class_names": {0: "cat"}}, r"no name for class 3.*\{0: 'cat'\}"),
        ({"labels": range(10), "class_names": {"cat", "dog"}}, r"class_names must be a list or a dict.* got set"),
        ({"class_names": ["cat"]}, r"no labels, got \['cat'\]"),
        ({"num_images": 2.5}, r"num_images.*2\.5"),
        ({"eps": 0.0}, r"eps.*0"),
        ({"num_images": 0}, r"num_images.*0"),
        ({"num_spread": -1}, r"num_spread.*-1"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str):
    arguments = {"images": torch.rand(10, 1, 8, 8), "embeddings": torch.rand(10, 4), **change}
    with pytest.raises(ValueError, match=message):
        top_activating(**arguments)


BYTES = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LAST = BYTES.movedim(1, -1)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (BYTES.numpy(), BYTES),
        (LAST, BYTES),
        (LAST.numpy(), BYTES),
        (list(LAST.numpy()), BYTES),
        (BYTES.float(), BYTES),
        (BYTES.int(), BYTES),
        (BYTES.int() // 16, BYTES // 16),
        (BYTES / 255 * 1.1 - 0.05, (BYTES / 255 * 1.1 - 0.05).clamp(0, 1)),  # interpolation overshoots
        ((BYTES / 255).double().numpy(), BYTES),
        ((BYTES / 255).requires_grad_(), BYTES),
        (BYTES[:, 0], BYTES[:, :1]),
        (BYTES[:, 0].numpy(), BYTES[:, :1]),
        (LAST[..., :1], BYTES[:, :1]),
        (BYTES[:, 0] > 128, (BYTES[:, :1] > 128).float()),
    ],
)
def test_images_as_people_have_them(images: object, expected: Tensor):
    z = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(
        drawn(top_activating(images, z, num_images=6)[1]),
        drawn(top_activating(expected, z, num_images=6)[1]),
        atol=1e-6,
    )


def test_pillow_s_images_are_images():
    image = pytest.importorskip("PIL.Image")
    z = torch.rand(6, 4)
    colour = [image.fromarray(x) for x in LAST.numpy()]
    expected = drawn(top_activating(BYTES, z)[1])
    np.testing.assert_allclose(drawn(top_activating(colour, z)[1]), expected)
    np.testing.assert_allclose(drawn(top_activating([x.convert("RGBA") for x in colour], z)[1]), expected)
    with pytest.raises(ValueError, match=r"one size, got \[\(4, 4\), \(8, 8\)\]: resize"):
        top_activating([*colour[:5], colour[5].resize((4, 4))], z)


def names(ax: plt.Axes) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def test_arrays_and_lists_are_drawn_as_tensors(greys: Tensor):
    z, labels = torch.rand(10, 4), torch.arange(10) % 3
    _, expected = top_activating(greys, z, labels, dims=[2, 0])
    for given in (
        {"embeddings": z.numpy(), "labels": labels.numpy(), "dims": np.array([2, 0])},
        {"embeddings": z.tolist(), "labels": labels.tolist(), "dims": (2, 0)},
        {"embeddings": z.double().requires_grad_(), "labels": labels.double()[:, None], "dims": torch.tensor([2, 0])},
    ):
        _, ax = top_activating(greys.numpy(), **given)
        assert names(ax) == names(expected)
        np.testing.assert_allclose(drawn(ax), drawn(expected))
    with torch.device("meta"):
        _, ax = top_activating(greys, z, labels.tolist(), dims=[2, 0])
    assert names(ax) == names(expected)
    assert names(top_activating(greys, z, dims=3)[1]) == ["dim 3"]


def test_the_scale_of_the_embeddings_changes_nothing(greys: Tensor):
    z, labels = torch.rand(10, 4), torch.arange(10) % 3
    expected = names(top_activating(greys, z, labels)[1])
    for scale in (1e-8, 1e-30, 1e30):
        assert names(top_activating(greys, z * scale, labels)[1]) == expected


def test_a_row_without_images_says_why(greys: Tensor):
    z = torch.ones(10, 4)
    z[:, 1], z[:, 2], z[:, 3] = -1, 0, 1e-7
    for labels in (None, torch.zeros(10, dtype=torch.long)):
        _, ax = top_activating(greys, z, labels, dims=[1, 2, 3], num_spread=2)
        assert names(ax) == ["dim 1\nonly negative", "dim 2\nnever active", "dim 3\nnever active"]
    assert names(top_activating(greys, z, dims=[3], eps=1e-9)[1]) == ["dim 3"]


def test_images_without_a_class_have_no_frame_and_no_vote(greys: Tensor):
    z = torch.stack([torch.arange(10.0, 0, -1), torch.ones(10)], dim=1)
    labels = torch.tensor([-1, 0, -1, 1, 1, -1, -1, -1, -1, -1])
    _, ax = top_activating(greys, z, labels, dims=[0], num_images=3, class_names={0: "cat", 1: "dog"})
    assert names(ax) == ["dim 0\ndog: 67% of 3"]
    picture = drawn(ax)
    white, (cat, _) = np.ones(3), class_colours(2).tolist()
    np.testing.assert_allclose(picture[1, 1 :: picture.shape[1] // 3], [white, cat, white], atol=1e-6)
    z[labels >= 0, 0] = 0
    assert names(top_activating(greys, z, labels, dims=[0])[1]) == ["dim 0\nno label on 7"]


def test_fewer_images_than_places_leave_places_empty():
    _, ax = top_activating(torch.zeros(2, 1, 4, 4), torch.rand(2, 3), num_images=4, num_spread=3)
    assert drawn(ax).shape == (3 * 4, 4 * 4 + 2 + 3 * 4, 3)
    np.testing.assert_allclose(drawn(ax)[2, 2:16:4, 0], [0, 0, 1, 1])


def test_the_package_has_its_plots():
    import ssl_heads

    assert ssl_heads.plots.top_activating is top_activating


def test_modal_class_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        modal_class(torch.zeros(3), torch.zeros(4, dtype=torch.long))


def test_matplotlib_is_imported_on_use_and_its_absence_names_the_extra():
    code = """
import sys, torch
from ssl_heads.plots import top_activating
assert not any(name.split(".")[0] == "matplotlib" for name in sys.modules)
sys.modules["matplotlib"] = None
try:
    top_activating(torch.rand(4, 1, 8, 8), torch.rand(4, 2))
except ImportError as error:
    assert "ssl-heads[plots]" in str(error), error
else:
    raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
