"""Settings in parts: one flat list of names for users, each of one part, and sentences that name the flag."""

import tomllib

import pytest
import tomli_w

from tinymoe.errors import UserError, options_of
from tinymoe.runs.settings import OPTIONS, PARTS, PRESETS, Settings, from_plain, resolve, to_plain


def test_every_option_belongs_to_one_part_and_says_what_it_is():
    names = [name for part in PARTS for name, _ in options_of(part)]
    assert len(names) == len(set(names)) == len(OPTIONS)
    assert all(f.metadata["help"] and f.metadata["group"] for f in OPTIONS.values())
    assert all(options.keys() <= OPTIONS.keys() for options in PRESETS.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_flat_and_toml_give_the_same_settings_back(preset):
    settings = resolve({"preset": preset})
    assert Settings.of(**settings.flat()) == settings == settings.but()
    written = tomllib.loads(tomli_w.dumps(to_plain(settings)))
    assert Settings.of(**from_plain(written, "it")) == settings
    assert list(written) == list(OPTIONS)


def test_a_changed_option_reaches_its_part_and_the_rest_stays():
    before = resolve({"task": "caption"})
    after = before.but(sparsity_every=7, encoder_layers=3, lr=0.5)
    assert after.model.vision
    assert (after.sparsity.every, after.vision.layers, after.model.vision.layers, after.training.lr) == (7, 3, 3, 0.5)
    changed = {name for name, value in after.flat().items() if value != before.flat()[name]}
    assert changed == {"sparsity_every", "encoder_layers", "lr"}


def test_pictures_shape_the_model_only_where_they_are_captioned():
    assert resolve({"encoder": "linear"}).model.vision is None
    vision = resolve({"task": "caption", "pictures": "digits", "width": 24, "heads": 2, "kv_heads": 2}).model.vision
    assert vision
    assert (vision.image, vision.width, vision.hidden, vision.patch) == ((8, 8, 1), 24, 48, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0.0}, "--lr is 0.0; it must be a finite number above 0"),
        ({"lr": float("nan")}, "--lr is nan; it must be a finite number above 0"),
        ({"sparsity_every": 0}, "--sparsity-every is 0; it must be at least 1"),
        ({"encoder_layers": -1}, "--encoder-layers is -1; it must be at least 1"),
        ({"beta1": 1.0}, "--beta1 is 1.0; it must be a finite number at least 0 and below 1"),
        ({"top_k": 9}, "--top-k is 9, but there are only 8 experts; lower top_k or add experts"),
        ({"fusion": "sum"}, "--fusion is 'sum'; choose one of prefix, additive"),
        ({"accumulate": 13}, "--accumulate is 13, more than the 12 windows of a batch"),
        ({"balance": ("load",)}, "--balance load does not go with the other settings"),
        ({"preset": "best"}, "there is no preset 'best'; choose one of default, quick, caption, digits"),
    ],
)
def test_what_makes_no_sense_is_said_of_the_flag(options, said):
    with pytest.raises(UserError) as error:
        resolve(options)
    assert str(error.value).startswith(said)
