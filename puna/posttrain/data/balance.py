"""Balance: no source and no topic has more than its share (section 4.2.3)."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from puna.errors import PunaError
from puna.posttrain.data.sample import Dropped, Sample


def cap(sizes: Sequence[int], share: float) -> int:
    """The most that groups may hold so that none has more than `share` of what is left; 0 where that cannot be."""
    low, high = 0, max(sizes, default=0)
    while low < high:  # the largest share grows with the limit
        middle = (low + high + 1) // 2
        if middle <= share * sum(min(size, middle) for size in sizes):
            low = middle
        else:
            high = middle - 1
    return low


def drop_excess(
    samples: Sequence[Sample], group: Callable[[Sample], str], share: float, reason: str
) -> tuple[list[Sample], list[Dropped]]:
    """The best of each group, so many that none has more than `share`. PunaError where there are too few groups."""
    sizes = Counter(group(sample) for sample in samples)
    limit = cap(list(sizes.values()), share)
    if samples and not limit:
        raise PunaError(
            f"chats.max_{reason}_share = {share}: there is no balance of {len(sizes)} groups that keeps it; raise it"
        )
    members: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: -sample.rank):
        members[group(sample)].append(sample)
    gone = {id(sample) for each in members.values() for sample in each[limit:]}
    dropped = [
        Dropped.of(sample, reason, f"{group(sample)} has {sizes[group(sample)]}, {limit} stay")
        for sample in samples
        if id(sample) in gone
    ]
    return [sample for sample in samples if id(sample) not in gone], dropped
