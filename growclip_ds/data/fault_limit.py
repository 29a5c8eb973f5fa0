"""The limit on broken samples in a phase; all ranks stop at the same iteration with the same message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from growclip_ds.data.faults import Cause, in_words
from growclip_ds.errors import InputError

FEWEST_SAMPLES = 10_000  # minimum denominator: a share of fewer samples, such as the first batch, means little


class FaultLimit:
    """Checks the broken samples of all ranks: each iteration, the ranks sum up their `counts` and `check` the sums.

    Args:
        samples: N, samples per epoch.
        share: tolerated share of broken samples, 0 to 1, of the samples read so far, or of 10,000 (N if that is less)
            as long as fewer have been read.
        read: samples of the phase that all ranks had read before.

    Attributes:
        read: samples that all ranks have read so far, including broken ones.
        broken: number of broken samples of all ranks, by cause.
    """

    def __init__(self, samples: int, share: float, read: int = 0) -> None:
        self.share = share
        self.read = read
        self.broken: Counter[Cause] = Counter()
        self._fewest = min(samples, FEWEST_SAMPLES)

    def counts(self, faults: Mapping[Cause, int], usable: int) -> list[int]:
        """This rank's counts for the sum over ranks, once per iteration, before training on it.

        Args:
            faults: number of broken samples that this rank has met so far, by cause.
            usable: number of usable samples that this rank has in the iteration.
        """
        return [*(faults.get(cause, 0) for cause in Cause), usable]

    def check(self, totals: Sequence[int], samples: int) -> None:
        """Records the counts summed over ranks, and checks them against the limit.

        Args:
            totals: the sums of all ranks' `counts`.
            samples: size of the global batch, including broken samples.

        Raises:
            InputError: too many samples are broken, or all samples of the iteration are.
        """
        *counts, left = totals
        self.broken = Counter({cause: count for cause, count in zip(Cause, counts, strict=True) if count})
        self.read += samples
        if samples and not left:
            raise InputError(
                f"no sample of a batch of {samples:,} can be used; so far {in_words(self.broken)}; "
                "check that the shards can be read (`growclip data check`), then start the run again"
            )
        total, out_of = sum(counts), max(self.read, self._fewest)
        if total > self.share * out_of:
            raise InputError(
                f"{total:,} broken samples among {out_of:,}, more than the {self.share:.2%} of data.max_broken_share: "
                f"{in_words(self.broken)}; the run folder's faults/ lists them: repair the shards, or raise the share"
            )
