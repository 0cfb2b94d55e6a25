"""What each scheme hides and leaves out of attention, on trials of four bins."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from neds_hf.models import NEDSConfig
from neds_hf.models.configuration_neds import SCHEMES
from neds_hf.models.masking_neds import count_targets, num_uniform, sample_masks

MODALITIES = [
    {"name": "spikes", "kind": "spikes"},
    {"name": "choice", "kind": "categorical", "classes": ["right", "left"]},
    {"name": "wheel", "kind": "continuous"},
]
# Four tokens of spikes, one of choice, four of wheel; half of the tokens are hidden at random.
CONFIG = NEDSConfig(modalities=MODALITIES, num_bins=4, categorical_tokens="trial", mask_ratio=0.5)
PAIRS = NEDSConfig(modalities=MODALITIES, num_bins=4, bins_per_token=2, mask_ratio=0.5)
THREE = NEDSConfig(
    modalities=[*MODALITIES, {"name": "whisker", "kind": "continuous"}],
    num_bins=4,
    scheme_weights={"encoding": 1.0, "decoding": 2.0, "cross_modal": 1.0},
    mask_ratio=0.2,
)

BOTH = {"choice": torch.tensor([True]), "wheel": torch.tensor([True])}
NO_WHEEL = {"choice": torch.tensor([True]), "wheel": torch.tensor([False])}
NEITHER = {"choice": torch.tensor([False]), "wheel": torch.tensor([False])}


def row(scheme=0.0, part=0.0, which=0.0, spikes="....", choice=".", wheel="...."):
    """Random numbers of one trial; `x` is a token whose number is below the mask ratio."""
    tokens = [0.1 if token == "x" else 0.9 for token in spikes + choice + wheel]
    return torch.tensor([[scheme, part, which, *tokens]])


def drawn(masks):
    """Masks of a batch of one as strings, `x` where True."""
    hidden, attended = masks
    return (
        {name: "".join("x" if bin_ else "." for bin_ in mask[0]) for name, mask in hidden.items()},
        {name: bool(mask[0]) for name, mask in attended.items()},
    )


SOME = row(spikes="x..x", choice="x", wheel=".x..")


@pytest.mark.parametrize(
    "available, scheme, uniform, hidden, attended",
    [
        (BOTH, "encoding", None, ("xxxx", "....", "...."), (True, True, True)),
        (NO_WHEEL, "encoding", None, ("xxxx", "....", "...."), (True, True, False)),
        (NEITHER, "encoding", None, ("xxxx", "....", "...."), (True, False, False)),
        (BOTH, "decoding", None, ("....", "xxxx", "xxxx"), (True, True, True)),
        (NO_WHEEL, "decoding", None, ("....", "xxxx", "xxxx"), (True, True, False)),
        (NEITHER, "decoding", None, ("....", "xxxx", "xxxx"), (True, False, False)),
        (BOTH, "cross_modal", SOME, ("x..x", "xxxx", ".x.."), (True, True, True)),
        (NO_WHEEL, "cross_modal", SOME, ("x..x", "xxxx", "...."), (True, True, False)),
        # within one: random numbers below 0.5 in the second place take the spikes
        (BOTH, "within_modality", SOME, ("x..x", "....", "...."), (True, False, False)),
        (
            BOTH,
            "within_modality",
            row(part=0.5, spikes="xxxx", choice=".", wheel="..xx"),
            ("....", "....", "..xx"),
            (False, True, True),
        ),
        (
            NO_WHEEL,
            "within_modality",
            row(part=0.9, spikes="xxxx", choice="x", wheel="..xx"),
            ("....", "xxxx", "...."),
            (False, True, False),
        ),
        # a trial without behaviours can only be looked at within its spikes
        (
            NEITHER,
            "within_modality",
            row(part=0.9, spikes="xx..", choice="x", wheel="xxxx"),
            ("xx..", "....", "...."),
            (True, False, False),
        ),
    ],
)
def test_what_a_scheme_hides_and_what_it_leaves_out(available, scheme, uniform, hidden, attended):
    names = ("spikes", "choice", "wheel")
    found = drawn(sample_masks(CONFIG, available, uniform, scheme))
    assert found == (dict(zip(names, hidden)), dict(zip(names, attended)))


@pytest.mark.parametrize(
    "scheme, part, expected",
    [
        (0.0, 0.7, "encoding"),
        (0.24, 0.7, "encoding"),
        (0.25, 0.7, "decoding"),
        (0.49, 0.7, "decoding"),
        (0.5, 0.7, "within_modality"),
        (0.75, 0.7, "cross_modal"),
        (0.999, 0.7, "cross_modal"),
        # where encoding would show one behaviour alone
        (0.25, 0.2, "decoding"),
        (0.5, 0.2, "within_modality"),
        (0.75, 0.2, "cross_modal"),
    ],
)
def test_the_first_random_number_draws_the_scheme(scheme, part, expected):
    uniform = row(scheme, part, spikes="x...", choice="x", wheel="...x")
    assert drawn(sample_masks(CONFIG, BOTH, uniform)) == drawn(sample_masks(CONFIG, BOTH, uniform, expected))


@pytest.mark.parametrize("which, shown", [(0.0, "choice"), (0.49, "choice"), (0.5, "wheel"), (0.99, "wheel")])
def test_encoding_in_training_shows_one_behaviour_alone(which, shown):
    hidden, attended = drawn(sample_masks(CONFIG, BOTH, row(part=0.4, which=which)))
    assert hidden == {"spikes": "xxxx", "choice": "....", "wheel": "...."}
    assert attended == {"spikes": True, "choice": shown == "choice", "wheel": shown == "wheel"}


@pytest.mark.parametrize("which", [0.0, 0.5, 0.99])
def test_the_behaviour_shown_alone_is_one_that_the_trial_has(which):
    _, attended = drawn(sample_masks(CONFIG, NO_WHEEL, row(part=0.4, which=which)))
    assert attended == {"spikes": True, "choice": True, "wheel": False}


def test_what_has_probability_zero_is_never_drawn():
    weights = {"encoding": 0.1, "decoding": 0.5, "within_modality": 0.1}
    zero = NEDSConfig(modalities=MODALITIES, num_bins=4, mask_ratio=0.0, single_behavior_probability=0.0)
    some = NEDSConfig(modalities=MODALITIES, num_bins=4, scheme_weights=weights)
    uniform = torch.zeros(1, num_uniform(zero))
    assert drawn(sample_masks(zero, BOTH, uniform)) == drawn(sample_masks(zero, BOTH, scheme="encoding"))
    assert not any(mask.any() for mask in sample_masks(zero, BOTH, uniform, "cross_modal")[0].values())
    uniform[:, 0] = 1 - 2**-24  # the largest below one
    expected = sample_masks(some, BOTH, uniform, "within_modality")
    assert drawn(sample_masks(some, BOTH, uniform)) == drawn(expected)


def test_tokens_of_several_bins_are_hidden_as_a_whole():
    uniform = torch.tensor([[0, 0, 0, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1]])  # two tokens of each modality
    hidden, _ = drawn(sample_masks(PAIRS, BOTH, uniform, "cross_modal"))
    assert hidden == {"spikes": "xx..", "choice": "..xx", "wheel": "xxxx"}


def test_masks_of_a_trial_depend_on_its_own_random_numbers_only():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(50, num_uniform(THREE), generator=generator)
    available = {name: torch.rand(50, generator=generator) < 0.7 for name in THREE.behaviors}
    hidden, attended = sample_masks(THREE, available, uniform)
    order = torch.randperm(50, generator=generator)[:20]
    some_hidden, some_attended = sample_masks(
        THREE, {name: has[order] for name, has in available.items()}, uniform[order]
    )
    for name in hidden:
        assert torch.equal(some_hidden[name], hidden[name][order])
        assert torch.equal(some_attended[name], attended[name][order])


@pytest.mark.parametrize("part, hidden", [(0.1, ("x..x", ".", "....")), (0.9, ("....", "x", ".x.."))])
def test_within_modality_can_show_the_other_modality(part, hidden):
    """As the published code does: the same is hidden, nothing is left out of attention."""
    config = NEDSConfig(
        modalities=MODALITIES,
        num_bins=4,
        categorical_tokens="trial",
        mask_ratio=0.5,
        within_modality_context=True,
    )
    uniform = row(part=part, spikes="x..x", choice="x", wheel=".x..")
    names = ("spikes", "choice", "wheel")
    expected = {name: tokens * (4 // len(tokens)) for name, tokens in zip(names, hidden)}
    for available in (BOTH, NO_WHEEL):
        found, attended = drawn(sample_masks(config, available, uniform, "within_modality"))
        if available is NO_WHEEL:
            expected["wheel"] = "...."
        assert found == expected
        assert attended == {"spikes": True, "choice": True, "wheel": bool(available["wheel"])}


def test_masks_of_the_first_trial_for_the_whole_batch():
    config = NEDSConfig(modalities=MODALITIES, num_bins=4, mask_ratio=0.5, masks_per="batch")
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(8, num_uniform(config), generator=generator)
    available = {name: torch.ones(8, dtype=torch.bool) for name in ("choice", "wheel")}
    hidden, attended = sample_masks(config, available, uniform)
    for mask in (*hidden.values(), *attended.values()):
        assert torch.equal(mask, mask[:1].expand_as(mask))
    first = {name: there[:1] for name, there in available.items()}
    alone = sample_masks(config, first, uniform[:1])
    assert drawn((hidden, attended)) == drawn(alone)
    config.masks_per = "trial"
    hidden, _ = sample_masks(config, available, uniform)
    assert not all(torch.equal(mask, mask[:1].expand_as(mask)) for mask in hidden.values())


def test_targets_are_units_times_bins_and_bins_of_what_is_there():
    hidden = {
        "spikes": torch.tensor([[True, True, False], [True, False, False]]),
        "choice": torch.tensor([[True, True, True], [True, True, True]]),
        "wheel": torch.tensor([[True, False, False], [False, False, False]]),
    }
    available = {"choice": torch.tensor([True, False]), "wheel": torch.tensor([True, True])}
    unit_mask = torch.tensor([[True, True, True], [True, True, False]])
    counts = count_targets(hidden, available, unit_mask)
    assert {name: int(count) for name, count in counts.items()} == {
        "spikes": 2 * 3 + 2,
        "choice": 3,
        "wheel": 1,
    }


@pytest.fixture(scope="module")
def many():
    """Masks of 4,000 trials, each behaviour missing in 30 % of them."""
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(4000, num_uniform(THREE), generator=generator)
    available = {name: torch.rand(4000, generator=generator) < 0.7 for name in THREE.behaviors}
    hidden, attended = sample_masks(THREE, available, uniform)
    return uniform, available, hidden, attended


def agrees(count, total, share):
    return binomtest(int(count), int(total), share).pvalue > 1e-4


def test_what_is_missing_is_not_shown_and_hidden_in_decoding_only(many):
    _, available, hidden, attended = many
    decoding = torch.stack([hidden[name].all(1) for name in available]).all(0) & ~hidden["spikes"].any(1)
    for name, has in available.items():
        assert not attended[name][~has].any()
        assert not hidden[name][~has & ~decoding].any()
        assert not (hidden[name].any(1) & ~attended[name] & ~decoding).any()


def test_schemes_are_drawn_by_their_weights(many):
    _, available, hidden, _ = many
    everything = torch.stack(list(available.values())).any(0)
    encoding = hidden["spikes"].all(1)
    decoding = ~hidden["spikes"].any(1) & torch.stack([hidden[name].all(1) for name in available]).all(0)
    assert agrees(encoding.sum(), len(encoding), 1 / 4)
    assert agrees((encoding & everything).sum(), everything.sum(), 1 / 4)
    assert agrees(decoding[everything].sum(), everything.sum(), 2 / 4)


def test_random_schemes_hide_the_mask_ratio_of_the_tokens(many):
    uniform, available, *_ = many
    hidden, _ = sample_masks(THREE, available, uniform, "cross_modal")
    assert agrees(hidden["spikes"].sum(), hidden["spikes"].numel(), 0.2)
    for name, has in available.items():
        assert agrees(hidden[name][has].sum(), hidden[name][has].numel(), 0.2)


def test_the_behaviour_shown_alone_is_any_of_the_trials_own_equally_often(many):
    uniform, available, *_ = many
    config = NEDSConfig(
        modalities=THREE.modalities,
        num_bins=4,
        scheme_weights={"encoding": 1.0},
        single_behavior_probability=1,
    )
    has = torch.stack(list(available.values()), 1)
    _, attended = sample_masks(config, available, uniform)
    shown = torch.stack([attended[name] for name in available], 1)
    assert torch.equal(shown.sum(1), has.any(1).long())
    for pattern in ([True, True, True], [True, False, True], [False, True, True]):
        trials = (has == torch.tensor(pattern)).all(1)
        for place in np.flatnonzero(pattern):
            assert agrees(shown[trials, place].sum(), trials.sum(), 1 / sum(pattern))


def test_random_numbers_are_asked_for_where_they_are_needed():
    for scheme in (None, "within_modality", "cross_modal"):
        with pytest.raises(ValueError, match="needs random numbers"):
            sample_masks(CONFIG, BOTH, scheme=scheme)
    with pytest.raises(ValueError, match=f"no masking scheme 'all'; there are: {', '.join(SCHEMES)}"):
        sample_masks(CONFIG, BOTH, scheme="all")
