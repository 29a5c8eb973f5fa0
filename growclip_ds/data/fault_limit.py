"""The limit on broken samples in a phase; all ranks stop at the same iteration, for the same reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from growclip_ds.data.faults import Cause, in_words
from growclip_ds.errors import InputError

FEWEST_SAMPLES = 10_000  # samples: the share of fewer, such as of the first batch, says little


class FaultLimit:
    """Checks the broken samples of all ranks: each iteration the ranks add up their `counts`, and `check` the sums.

    Args:
        samples: N, samples of one epoch.
        share: of the samples that may be broken, 0 to 1; checked over what was read, but over 10,000 samples, or an
            epoch if that is shorter, at least.
        read: samples that the phase has read before, by all ranks.

    Attributes:
        read: samples read so far, the broken ones among them.
        broken: those, by cause.
    """

    def __init__(self, samples: int, share: float, read: int = 0) -> None:
        self.share = share
        self.read = read
        self.broken: Counter[Cause] = Counter()
        self._fewest = min(samples, FEWEST_SAMPLES)

    def counts(self, faults: Mapping[Cause, int], usable: int) -> list[int]:
        """What this rank has to tell the others, once an iteration, before it is trained on.

        Args:
            faults: broken samples met so far by this rank.
            usable: samples of the iteration that this rank has.
        """
        return [*(faults.get(cause, 0) for cause in Cause), usable]

    def check(self, totals: Sequence[int], samples: int) -> None:
        """Takes note of the sums of all ranks' counts.

        Args:
            totals: the sums.
            samples: places of the iteration over all ranks.

        Raises:
            InputError: too many samples are broken, or all of the iteration.
        """
        *counts, left = totals
        self.broken = Counter({cause: count for cause, count in zip(Cause, counts, strict=True) if count})
        self.read += samples
        if samples and not left:
            raise InputError(
                f"no sample of a batch of {samples:,} can be used; so far {in_words(self.broken)}; "
                "see that the shards can be read (`growclip data check`), then start the run again"
            )
        total, out_of = sum(counts), max(self.read, self._fewest)
        if total > self.share * out_of:
            raise InputError(
                f"{total:,} broken samples among {out_of:,}, more than the {self.share:.2%} of data.max_broken_share: "
                f"{in_words(self.broken)}; the run folder's faults/ lists them: repair the shards, or raise the share"
            )
