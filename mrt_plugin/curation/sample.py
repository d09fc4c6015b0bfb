"""`sample`: a given number of groups, each repeated at most so many times."""

from typing import ClassVar

from datasets import Dataset
from pydantic import Field

from mrt_plugin.curation.rule import PoolRule, PoolVerdict, Tools
from mrt_plugin.groups.keys import digest


class Sample(PoolRule):
    """Takes `groups` groups at random, or repeats them where there are fewer. No default: it is how datasets are mixed
    in a recipe, with a count for each. A copy has an id of its own, so that a random selector keeps other responses of
    the same prompt in it. `max_repeats` is 4 because repeating data up to four times costs little against new data
    (Muennighoff et al., arXiv 2305.16264, section 6), and more costs more and more.
    """

    name: ClassVar[str] = "sample"

    groups: int = Field(ge=1, description="Groups to have afterwards.")
    max_repeats: int = Field(4, ge=1, description="How often a group may occur.")

    def judge_pool(self, groups: Dataset, tools: Tools) -> PoolVerdict:
        """Whole rounds of all groups, then the first of a shuffled order."""
        if self.groups > len(groups) * self.max_repeats:
            raise ValueError(
                f"curation rule `sample` is to give {self.groups:,} groups of {len(groups):,}, each at most "
                f"{self.max_repeats} times: that is at most {len(groups) * self.max_repeats:,}. Lower groups, raise "
                "max_repeats, or add data."
            )
        rounds, rest = divmod(self.groups, len(groups))
        order = shuffled(groups["id"], tools.seed)
        more = set(order[:rest])
        if rounds == 0:
            return PoolVerdict(dropped=dict.fromkeys(order[rest:], "not drawn"))
        copies = {position: rounds - 1 + (position in more) for position in order}
        return PoolVerdict(repeated={position: count for position, count in copies.items() if count})


def shuffled(ids: list[str], seed: int) -> list[int]:
    """Positions in an order that depends on the ids and the seed, and not on the order given."""
    return sorted(range(len(ids)), key=lambda place: digest(b"sample", str(seed).encode(), ids[place].encode()))
