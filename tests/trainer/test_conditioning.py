import pytest
import torch

from trainer.models.base import Conditioning


def test_rows_are_taken_repeated_and_joined() -> None:
    rows = Conditioning({"embeds": torch.randn(3, 2, 4), "pooled": torch.randn(3, 5)})
    twice = rows.index_select([2, 2])
    assert torch.equal(twice["pooled"][0], rows["pooled"][2])
    joined = Conditioning.cat([rows, twice])
    assert len(joined) == 5
    assert torch.equal(joined["embeds"][4], rows["embeds"][2])
    assert len(rows.index_select([0]).expand(6)) == 6
    with pytest.raises(ValueError, match="expand"):
        rows.expand(2)
    with pytest.raises(ValueError, match="as many rows"):
        Conditioning({"embeds": torch.zeros(3, 2), "pooled": torch.zeros(2, 2)})


def test_only_real_numbers_are_cast() -> None:
    rows = Conditioning({"embeds": torch.randn(1, 2, 4), "mask": torch.ones(1, 2).bool()})
    cast = rows.to(dtype=torch.float64)
    assert cast["embeds"].dtype == torch.float64
    assert cast["mask"].dtype == torch.bool


def test_sequences_with_a_mask_are_padded_to_the_longest() -> None:
    def row(length: int) -> Conditioning:
        return Conditioning(
            {
                "embeds": torch.randn(1, length, 3),
                "pooled": torch.randn(1, 4),
                "mask": torch.ones(1, length, dtype=torch.bool),
            }
        )

    short, long = row(2), row(5)
    both = Conditioning.cat([short, long])
    assert both["embeds"].shape == (2, 5, 3)
    assert both["mask"].tolist() == [[True, True, False, False, False], [True] * 5]
    assert torch.equal(both["embeds"][0, :2], short["embeds"][0])
    assert not both["embeds"][0, 2:].any()
    assert both["pooled"].shape == (2, 4)
    with pytest.raises(ValueError, match="longer"):
        long.pad(2)
    without = Conditioning({"embeds": torch.randn(1, 2, 3)})
    with pytest.raises(RuntimeError):
        Conditioning.cat([without, Conditioning({"embeds": torch.randn(1, 5, 3)})])
