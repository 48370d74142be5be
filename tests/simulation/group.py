"""The consumer group: members, generations, shards handed over one revocation at a time."""

from __future__ import annotations

SESSION_TIMEOUT_MS = 6_000


class Group:
    """Cooperative: a shard goes to another living member only after its owner has let go of it."""

    def __init__(self, shards: int) -> None:
        self.generation = 0
        self.members: dict[str, int] = {}  # when the group heard of each last, ms
        self._owner: dict[int, str | None] = dict.fromkeys(range(shards))
        self._wanted: dict[int, str] = {}

    def join(self, member: str, now_ms: int) -> None:
        self.members[member] = now_ms
        self._rebalance()

    def leave(self, member: str) -> None:
        if self.members.pop(member, None) is not None:
            self._rebalance()

    def known(self, metadata: tuple[str, int]) -> bool:
        """Whether (member, generation) is what a commit must bring."""
        return metadata[0] in self.members and metadata[1] == self.generation

    def assigned(self, member: str) -> set[int] | None:
        """Shards that the member may have now, or None when the group has put it out."""
        if member not in self.members:
            return None
        return {s for s, owner in self._owner.items() if owner == member and s not in self._wanted}

    def revoked(self, member: str) -> list[int]:
        """Shards that the member has to let go of."""
        return [s for s in self._wanted if self._owner[s] == member]

    def released(self, member: str, shard: int) -> None:
        """The member has let go of a shard that it was told to give up."""
        if self._owner[shard] == member and shard in self._wanted:
            self._owner[shard] = None
            self._rebalance()

    def expire(self, now_ms: int) -> None:
        """Put out members that were silent for too long."""
        for member in [m for m, heard_ms in self.members.items() if heard_ms + SESSION_TIMEOUT_MS < now_ms]:
            self.leave(member)

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

    def _least_loaded(self) -> str | None:
        owners = list(self._owner.values())
        return min(self.members, key=owners.count, default=None)
