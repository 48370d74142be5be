"""The worker: membership in the group decides which shards it owns; each owned shard runs on a thread of its own.

Being assigned journal partition k is owning shard k. The member never reads the journal through the group: assignment
alone counts, and fencing of the shard's producer protects against a member that does not know yet that it has lost it.
"""

from __future__ import annotations

import gc

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from features.feature_set import FeatureSetError
from scorer import kafka
from scorer.bundle import Bundle
from scorer.errors import FraudScorerError, UsageError
from scorer.journal.activated_bundles import Bundles
from scorer.runtime import fault_points
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event
from scorer.worker import worker_metrics
from scorer.worker.compilation import Compilation
from scorer.worker.group_admission import Admission
from scorer.worker.group_membership import Membership
from scorer.worker.missing_rights import DENIED_RETRY_S
from scorer.worker.ports import Ports
from scorer.worker.shard import Shard
from scorer.worker.shard_thread import ShardThread
from scorer.worker.standby import Standby
from scorer.worker.topic_watch import SILENT_S, TopicWatch

log = structlog.get_logger()

# How soon a changed generation is known to commits, and a stop is noticed.
POLL_S = 0.05
# How often it is logged that the group has not let this worker in.
WAITING_LOGGED_S = 15.0
# Two intervals of heartbeats (see scorer.kafka.clients): so much less than the session may be enough to lose a shard.
HEARTBEATS_MS = 1000
# Deciding may end in the middle of a commit, which takes at most its timeout.
HAND_OVER_S = 35.0


def _calm_collector() -> None:
    """Modules and kernels live for ever, and a batch allocates 10,000 tuples without a cycle:
    scanning them costs a tenth of the CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


class Worker:
    """One process of the decision path."""

    def __init__(self, settings: Settings, bundle: Bundle, ports: Ports | None = None) -> None:
        """`ports`: the real ones without. Raises UsageError when the shards would split an entity of the bundle's
        feature set."""
        try:
            bundle.feature_set.check_sharding(settings.worker.shard_key, settings.worker.shards)
        except FeatureSetError as exc:
            raise UsageError(f"FRAUD_SCORER_WORKER__SHARDS={settings.worker.shards}: {exc}") from exc
        self._settings = settings
        self._ports = ports or Ports.real(settings)
        self._threads = self._ports.threads
        self._compilation = Compilation(bundle, self._threads)
        self._bundles = Bundles(bundle, settings.bundle, self._threads)
        self._owned: dict[int, ShardThread] = {}
        self._standbys: dict[int, Standby] = {}
        self._joined = False
        self._warm = False
        self._failure: BaseException | None = None
        self._polled_at = float("inf")  # not polling yet
        self._waiting_logged_at = self._began_at = float("-inf")
        self._denied_at: float | None = None
        self._denied_logged_at = self._denied_until = float("-inf")
        self._frozen_until = float("-inf")
        self._membership = Membership(settings, self._ports)
        self._admission = Admission(settings, self._ports, self._membership.group)
        self._watch = TopicWatch(settings, self._ports)

    def live(self) -> tuple[bool, str]:
        """The process works as long as no shard has failed."""
        broken = [o.number for o in list(self._owned.values()) if o.failure is not None]
        return not broken, f"shards failed: {broken}" if broken else "alive"

    def ready(self) -> tuple[bool, str]:
        """Warm, in the group, and every owned shard deciding (a standby owns none and is ready)."""
        if not self._warm:
            return False, self._compilation.state
        if self._denied_at is not None:
            return False, "refused by Kafka's authoriser"
        if self._admission.waits_for:  # a standby of those workers
            return True, self._admission.waits_for
        if not self._joined:
            return False, "joining the group"
        owned = list(self._owned.values())
        obstacles = [reason for o in owned for reason in (o.waits_for, o.shard.waits_for) if reason]
        if obstacles or self._watch.obstacle:
            return False, next(iter(obstacles), self._watch.obstacle)
        if self._watch.silent_s > SILENT_S:
            return False, f"Kafka has not answered for {self._watch.silent_s:.0f} s"
        waiting = [o.number for o in list(self._owned.values()) if not o.shard.recovered.is_set()]
        return not waiting, f"recovering shards {waiting}" if waiting else f"deciding shards {sorted(self._owned)}"

    def run(self, stop: Event) -> None:
        """Compile, then take part until `stop` is set. Raises what ended a shard:
        the process must exit non-zero then."""
        if self._compilation.run(stop):
            _calm_collector()
            self.take_part(stop)

    @property
    def compiling(self) -> bool:
        """Whether a compiler runs on a thread, which only the end of the process ends."""
        return self._compilation.running

    def take_part(self, stop: Event) -> None:
        """Take part in the group until `stop` is set, then drain and leave. Raises what ended a shard."""
        fault_points.point("after_warm_up")
        self._warm = True
        if self._settings.bundle.unsigned_activations and not self._settings.bundle.trusted_keys:
            log.warning(
                "activation.unsigned_allowed",
                reason="FRAUD_SCORER_BUNDLE__UNSIGNED_ACTIVATIONS is set and no keys are trusted: whoever may write to "
                "the control topic chooses the model",
            )
        topic = kafka.Topics.of(self._settings.kafka).journal
        self._watch.start()
        self._admission.wait(stop)
        member = self._membership.consumer
        member.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        # From here on the group expects to hear of this member. That compiling may have taken minutes is no freeze.
        self._polled_at = self._waiting_logged_at = self._began_at = self._threads.monotonic()
        try:
            while not stop.is_set():
                fault_points.point("main_loop")
                self._poll(member)
                self._raise_failures()
                if self._joined:
                    self._admission.check_once()
                    self._keep_standbys()
        finally:
            # Committing needs the membership, so shards end before the member leaves.
            self._drain(list(self._owned))
            member.close()
            for standby in self._standbys.values():
                standby.close()
            self._watch.close()
            log.info("worker.left")

    def _poll(self, member: kafka.Member) -> None:
        """Hear of the group once: callbacks run in here, and the present generation is noted for commits."""
        if not self._joined and self._threads.monotonic() - self._waiting_logged_at > WAITING_LOGGED_S:
            self._waiting_logged_at = self._threads.monotonic()
            log.warning(
                "worker.not_in_group",
                group=self._membership.group,
                up_s=round(self._waiting_logged_at - self._began_at),
                reason="a rebalance that does not end, or a coordinator that does not answer",
            )
        self._note_freeze(self._threads.monotonic() - self._polled_at)
        self._polled_at = self._threads.monotonic()
        message = member.poll(POLL_S)
        self._membership.refresh()
        error = None if message is None else message.error()
        if error is not None:
            self._on_error(error)

    def _raise_failures(self) -> None:
        """End the process with what ended one of its parts."""
        self._limit_denial()
        parts: list[ShardThread | Standby] = [*self._owned.values(), *self._standbys.values()]
        for failure in (self._watch.failure, self._failure, *(part.failure for part in parts)):
            if failure is not None:
                raise failure

    def _on_error(self, error: KafkaError) -> None:
        # Fencing of a static member comes as _FATAL while fatal() is False (confluent-kafka-python#869).
        if error.code() in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID) or error.fatal():
            instance = self._settings.worker.instance_id
            raise kafka.Fenced(
                f"the group has put this member out ({error.str()})"
                + (f"; another worker uses the instance id {instance!r}" if instance else "")
            )
        if error.code() == KafkaError.INCONSISTENT_GROUP_PROTOCOL:
            raise kafka.KafkaFailure(
                f"the group {self._membership.group} has members with another assignor or protocol: workers of one "
                "application agree in FRAUD_SCORER_WORKER__GROUP_PROTOCOL, and nothing else uses their group"
            )
        if error.code() in kafka.DENIED:
            self._denied_at = self._denied_at or self._threads.monotonic()
            self._denied_until = self._threads.monotonic() + self._settings.worker.session_timeout_ms / 1000.0
            if self._threads.monotonic() - self._denied_logged_at < DENIED_RETRY_S:
                return
            self._denied_logged_at = self._threads.monotonic()
            reason = self._ports.clients.lacking_rights() or f"Kafka's authoriser refused ({error.name()})"
            log.error("worker.denied", reason=reason)
            return
        log.warning("worker.group_error", code=error.name())

    def _limit_denial(self) -> None:
        """End when the group has not let this member in again for too long. Still a member, and not refused for the
        length of a session: then the right came back before it was missed.
        """
        denied_s = self._settings.worker.denied_s
        if self._joined and self._threads.monotonic() > self._denied_until:
            self._denied_at = None
        if self._denied_at is not None and self._threads.monotonic() - self._denied_at > denied_s:
            raise kafka.Denied(
                f"{self._ports.clients.lacking_rights() or 'the group refuses this member'}. "
                f"Waited {denied_s:g} s for it"
            )

    def _assigned(self, consumer: kafka.Member, partitions: list[TopicPartition]) -> None:
        # Cooperative protocol: what is given here comes on top of what is owned.
        try:
            consumer.incremental_assign(partitions)
            if partitions:
                consumer.pause(partitions)
        except KafkaException as exc:
            self._failure = kafka.KafkaFailure(f"assignment failed: {kafka.describe(exc)}")
            return
        for partition in partitions:
            number = partition.partition
            log.info("shard.assigned", shard=number)
            shard = Shard(
                self._settings,
                self._bundles,
                number,
                self._ports,
                group_metadata=lambda: self._membership.metadata,
                watch=self._watch,
            )
            self._owned[number] = ShardThread(
                self._settings, shard, number, self._membership, self._standbys.pop(number, None), self._ports
            )
        self._denied_at = None
        self._joined = True  # last: until then no probe shall take this member for one that owns nothing
        worker_metrics.OWNED.set(len(self._owned))

    def _revoked(self, consumer: kafka.Member, partitions: list[TopicPartition]) -> None:
        # Still a member of the old generation here, so the batch in flight can be committed; that generation is asked
        # for anew, because the thread that does so after each poll is the one that waits in here.
        self._membership.refresh()
        self._drain([p.partition for p in partitions])
        consumer.incremental_unassign(partitions)

    def _note_freeze(self, still_s: float) -> None:
        """Remember that nothing was polled for longer than the session: this process was stopped, or starved."""
        worker = self._settings.worker
        # The group counts from the last heartbeat, which was sent up to 0.5 s before the process stood still; 1 s with
        # the time that a request takes. Beyond max.poll.interval the client itself leaves the group, and joins again.
        if worker.session_timeout_ms - HEARTBEATS_MS <= still_s * 1000.0 < worker.max_poll_interval_ms:
            self._frozen_until = self._threads.monotonic()

    def _lost(self, consumer: kafka.Member, partitions: list[TopicPartition]) -> None:
        # Another member owns them already; the batch in flight will be fenced. State is dropped with the shard.
        log.warning("shard.lost", shards=[p.partition for p in partitions])
        self._joined = False  # the group, or the broker, does not know this member now: not ready until it does again
        self._drain([p.partition for p in partitions])
        consumer.incremental_unassign(partitions)
        self._note_freeze(self._threads.monotonic() - self._polled_at)
        since_s = self._threads.monotonic() - self._frozen_until
        if partitions and since_s < 2 * self._settings.worker.session_timeout_ms / 1000.0:
            self._failure = self._failure or kafka.Fenced(
                "this process stood still for longer than the session timeout, and others own its shards now; "
                "restart it, and look for what stops it"
            )

    def _keep_standbys(self) -> None:
        """Follow shards that others own, as many as the settings allow."""
        wanted = self._settings.worker.standby_shards_max - len(self._standbys)
        if wanted <= 0:
            return
        for number in range(self._settings.worker.shards):
            if wanted > 0 and number not in self._owned and number not in self._standbys:
                self._standbys[number] = Standby(self._settings, self._bundles, number, self._ports)
                wanted -= 1
        worker_metrics.STANDBYS.set(len(self._standbys))

    def _drain(self, numbers: list[int]) -> None:
        for number in numbers:  # all are asked before the first is waited for
            if number in self._owned:
                self._owned[number].stop.set()
        for number in numbers:
            owned = self._owned.pop(number, None)
            if owned is None:
                continue
            if not owned.drain(HAND_OVER_S):
                self._failure = FraudScorerError(f"shard {number} did not end within {HAND_OVER_S:.0f} s")
            elif owned.failure is not None:
                self._failure = self._failure or owned.failure
            log.info("shard.released", shard=number)
        worker_metrics.OWNED.set(len(self._owned))
