"""The consumer group: members, generations, shards handed over one revocation at a time."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka import KafkaError

SESSION_TIMEOUT_S = 6.0
Metadata = tuple[str, int]  # member, generation


class Group:
    """Cooperative: a shard goes to another living member only after its owner has given it up."""

    def __init__(self, shards: int, changed: Callable[[], None]) -> None:
        """`changed`: called after each rebalance."""
        self.generation = 0
        self.members: list[str] = []
        self._owner: dict[int, str | None] = dict.fromkeys(range(shards))
        self._wanted: dict[int, str] = {}
        self._changed = changed

    def join(self, member: str) -> None:
        self.members.append(member)
        self._rebalance()

    def leave(self, member: str) -> None:
        """By itself, or put out because it was silent for too long."""
        if member in self.members:
            self.members.remove(member)
            self._rebalance()

    def refusal(self, metadata: Metadata) -> int | None:
        """What a commit with this metadata is refused with; None when it is taken."""
        member, generation = metadata
        if member not in self.members:
            return KafkaError.UNKNOWN_MEMBER_ID
        return None if generation == self.generation else KafkaError.ILLEGAL_GENERATION

    def owner(self, shard: int) -> str | None:
        return self._owner[shard]

    def assigned(self, member: str) -> set[int]:
        """Shards that the member may have now."""
        return {s for s, owner in self._owner.items() if owner == member and s not in self._wanted}

    def revoked(self, member: str) -> list[int]:
        """Shards that the member has to give up."""
        return [s for s in self._wanted if self._owner[s] == member]

    def released(self, member: str, shard: int) -> None:
        """The member has given up a shard that was revoked."""
        if self._owner[shard] == member and shard in self._wanted:
            self._owner[shard] = None
            self._rebalance()

    def move(self, shard: int, choice: float) -> None:
        """Somebody joined elsewhere: another member shall have the shard."""
        others = [m for m in self.members if m != self._owner[shard]]
        if others:
            self._wanted[shard] = others[int(choice * len(others))]
            self._rebalance()

    def _rebalance(self) -> None:
        self.generation += 1
        for shard, owner in self._owner.items():
            wanted = self._wanted.get(shard)
            if wanted is not None and wanted not in self.members:
                del self._wanted[shard]
            if owner in self.members:
                continue
            self._owner[shard] = self._wanted.pop(shard, None) or self._least_loaded()
        self._changed()

    def _least_loaded(self) -> str | None:
        owners = list(self._owner.values())
        return min(self.members, key=owners.count, default=None)
