"""The worker: membership in the group decides which shards it owns; each owned shard runs on a thread of its own.

Being assigned journal partition k is owning shard k. The member never reads the journal through the group: assignment
alone counts, and fencing of the shard's producer protects against a member that does not know yet that it has lost it.
"""

from __future__ import annotations

import gc
from dataclasses import replace

import structlog
from confluent_kafka import KafkaError, TopicPartition

from features.feature_set import FeatureSetError
from scorer import kafka
from scorer.bundle import Bundle
from scorer.errors import UsageError
from scorer.journal.activated_bundles import Bundles
from scorer.runtime import fault_points, span_export
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event, Thread
from scorer.worker import worker_metrics
from scorer.worker.compilation import Compilation
from scorer.worker.group_admission import Admission
from scorer.worker.group_membership import Membership
from scorer.worker.missing_rights import DENIED_RETRY_S
from scorer.worker.ports import Ports
from scorer.worker.shard import Shard
from scorer.worker.shard_thread import ShardThread
from scorer.worker.standby import Standby
from scorer.worker.standby_warmth import StandbyWarmth
from scorer.worker.topic_watch import SILENT_S, TopicWatch

log = structlog.get_logger()

# How soon a changed generation is known to commits, and a stop is noticed.
POLL_S = 0.05
# How often it is logged that the group has not let this worker in.
WAITING_LOGGED_S = 15.0
# So much less than the session may be enough to lose a shard: an interval of heartbeats (scorer.kafka.clients), and the
# time that a request takes on a busy machine.
HEARTBEATS_MS = 1000
# A shard that is given up has the order of a batch, a transaction and the one that waits behind it to bring to an end,
# and no more: what takes longer than its time-out the broker has aborted by then. README (SIGTERM) has the sum.
HAND_OVER_TRANSACTIONS = 3
HAND_OVER_MORE_S = 5.0
# A shard that restores its state is asked to end as well, and its time has nothing to do with transactions.
HAND_OVER_S_MIN = 35.0
# A standby has nothing to commit, and its threads end with the process.
STANDBYS_END_S = 2.0


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
        self._ports = ports or replace(Ports.real(settings), spans=span_export.of(settings, part="worker"))
        self._threads = self._ports.threads
        self._compilation = Compilation(bundle, self._threads)
        self._bundles = Bundles(bundle, settings.bundle, self._threads)
        self._owned: dict[int, ShardThread] = {}
        self._left: dict[int, Thread] = {}  # by shard, a snapshot's copy or write that did not end with its shard
        self._standbys: dict[int, Standby] = {}
        self._warmth = StandbyWarmth(settings, self._threads, self._standbys)
        self._was_ready = self._left_running = False
        self._stands_by = False  # whether what others own is followed, since the group was joined
        self._joined = False
        self._warm = False
        self._callbacks = kafka.KeptCallbacks()
        self._failures: list[BaseException] = []  # of shards that were given up
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
        """Warm, in the group, every owned shard deciding, and every shard that it follows caught up with."""
        if not self._warm:
            return False, self._compilation.state
        if self._denied_at is not None:
            return False, "refused by Kafka's authoriser"
        if self._admission.waits_for:  # a standby of those workers
            return True, self._admission.waits_for
        if not (self._joined and self._stands_by):
            return False, "joining the group"
        owned = list(self._owned.values())
        obstacles = [reason for o in owned for reason in (o.waits_for, o.shard.waits_for) if reason]
        if obstacles or self._watch.obstacle:
            return False, next(iter(obstacles), self._watch.obstacle)
        if self._watch.silent_s > SILENT_S:
            return False, f"Kafka has not answered for {self._watch.silent_s:.0f} s"
        waiting = [o.number for o in list(self._owned.values()) if not o.shard.recovered.is_set()]
        if waiting:
            return False, f"recovering shards {waiting}"
        # Once only: that paces a rolling update. An owner that begins to follow another shard later still decides its
        # own, and a budget for disruptions does not protect what is not ready.
        cold = "" if self._was_ready else self._warmth.waits_for()
        self._was_ready = self._was_ready or not cold
        return not cold, cold or f"deciding shards {sorted(self._owned)}"

    def run(self, stop: Event) -> None:
        """Compile, then take part until `stop` is set. Raises what ended a shard:
        the process must exit non-zero then."""
        if self._compilation.run(stop):
            _calm_collector()
            self.take_part(stop)

    @property
    def left_running(self) -> bool:
        """Whether a compiler, a shard or a standby runs on a thread, which only the end of the process ends."""
        left = any(thread.is_alive() for thread in list(self._left.values()))
        return self._compilation.running or self._left_running or left

    def take_part(self, stop: Event) -> None:
        """Take part in the group until `stop` is set, then drain and leave. Raises what ended a shard, or makes its
        decisions wrong: not that Kafka failed while shards were drained, for what is not committed is the next
        owner's."""
        fault_points.point("after_warm_up")
        self._warm = True
        if self._settings.bundle.unsigned_activations and not self._settings.bundle.trusted_keys:
            log.warning(
                "activation.unsigned_allowed",
                reason="FRAUD_SCORER_BUNDLE__UNSIGNED_ACTIVATIONS is set and no keys are trusted: whoever may write to "
                "the control topic chooses the model",
            )
        topic = kafka.Topics.of(self._settings.kafka).journal
        member, kept = self._membership.consumer, self._callbacks.kept
        try:
            self._watch.start(stop)
            self._admission.wait(stop)
            if not stop.is_set():
                member.subscribe(
                    [topic], on_assign=kept(self._assigned), on_revoke=kept(self._revoked), on_lost=kept(self._lost)
                )
            # From here on the group expects to hear of this member. That compiling may have taken minutes is no freeze.
            self._polled_at = self._waiting_logged_at = self._began_at = self._threads.monotonic()
            while not stop.is_set():
                fault_points.point("main_loop")
                self._poll(member)
                self._raise_failures()
                if self._joined:
                    self._admission.check_once()
                    self._keep_standbys()
                    self._stands_by = True
                self._warmth.look()
        finally:
            # Committing needs the membership, so shards end before the member leaves.
            self._drain(list(self._owned))
            member.close()
            self._end_standbys()
            self._watch.close()
            if self._ports.spans is not None:
                self._ports.spans.close()
            # Also where another failure is on its way out already.
            for failure in self._found():
                log.warning("worker.left_uncommitted", kind=type(failure).__name__, reason=str(failure))
            log.info("worker.left")
        for failure in self._found():
            if not isinstance(failure, kafka.KafkaFailure):
                raise failure

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
        self._note_freeze()
        self._polled_at = self._threads.monotonic()
        message = member.poll(POLL_S)
        self._note_freeze()
        self._membership.refresh()
        # A commit in there waits as long as a session for a coordinator that is away: that is no freeze.
        self._polled_at = self._threads.monotonic()
        error = None if message is None else message.error()
        if error is not None:
            self._on_error(error)
        if not self._joined:
            if self._membership.idle():
                log.info("worker.idle", group=self._membership.group)
                self._denied_at, self._joined = None, True
            self._polled_at = self._threads.monotonic()  # that the broker answers late is no freeze

    def _raise_failures(self) -> None:
        """End the process with what ended one of its parts."""
        self._limit_denial()
        for failure in self._found():
            raise failure

    def _found(self) -> list[BaseException]:
        """What has ended parts of this process."""
        parts: list[ShardThread | Standby] = [*self._owned.values(), *self._standbys.values()]
        found = (self._watch.failure, *self._failures, self._callbacks.error, *(part.failure for part in parts))
        return [failure for failure in found if failure is not None]

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
        consumer.incremental_assign(partitions)
        if partitions:
            consumer.pause(partitions)
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
                left=self._left.pop(number, None),
            )
            standby = self._standbys.get(number)
            self._owned[number] = ShardThread(self._settings, shard, number, self._membership, standby, self._ports)
            self._standbys.pop(number, None)
        self._polled_at = self._threads.monotonic()
        self._denied_at = None
        self._joined = True  # last: until then no probe shall take this member for one that owns nothing
        worker_metrics.OWNED.set(len(self._owned))

    def _revoked(self, consumer: kafka.Member, partitions: list[TopicPartition]) -> None:
        # Still a member of the old generation here, so the batch in flight can be committed; that generation is asked
        # for anew, because the thread that does so after each poll is the one that waits in here.
        self._note_freeze()
        self._membership.refresh()
        self._drain([p.partition for p in partitions])
        consumer.incremental_unassign(partitions)
        self._polled_at = self._threads.monotonic()

    def _note_freeze(self) -> None:
        """Remember that nothing was polled for longer than the session: this process was stopped, or starved.

        To be called before anything that waits: a shard that takes its time to end is no freeze, for the client's own
        thread sends heartbeats meanwhile.
        """
        worker = self._settings.worker
        still_s = self._threads.monotonic() - self._polled_at
        # The group counts from the last heartbeat, which was sent before the process stood still. Beyond
        # max.poll.interval the client itself leaves the group, and joins again.
        if worker.session_timeout_ms - HEARTBEATS_MS <= still_s * 1000.0 < worker.max_poll_interval_ms:
            self._frozen_until = self._threads.monotonic()

    def _lost(self, consumer: kafka.Member, partitions: list[TopicPartition]) -> None:
        # Another member owns them already; the batch in flight will be fenced. State is dropped with the shard.
        log.warning("shard.lost", shards=[p.partition for p in partitions])
        # The group, or the broker, does not know this member now: not ready until it does again.
        self._joined = self._stands_by = False
        self._note_freeze()
        since_s = self._threads.monotonic() - self._frozen_until
        self._drain([p.partition for p in partitions])
        if partitions and since_s < 2 * self._settings.worker.session_timeout_ms / 1000.0:
            self._failures.append(
                kafka.Fenced(
                    "this process stood still for longer than the session timeout, and others own its shards now; "
                    "restart it, and look for what stops it"
                )
            )
        consumer.incremental_unassign(partitions)
        self._polled_at = self._threads.monotonic()

    def _keep_standbys(self) -> None:
        """Follow shards that others own, as many as the settings allow: the next ones after its own, so that of as many
        workers as shards each follows another one."""
        wanted, shards = self._settings.worker.standby_shards_max - len(self._standbys), self._settings.worker.shards
        if wanted <= 0:
            return
        first = max(self._owned, default=-1) + 1
        for number in (n % shards for n in range(first, first + shards)):
            if wanted > 0 and number not in self._owned and number not in self._standbys:
                self._standbys[number] = Standby(self._settings, self._bundles, number, self._ports)
                wanted -= 1

    def _end_standbys(self) -> None:
        """One that restores a large state, or waits for an answer, is left to the end of the process."""
        for standby in self._standbys.values():  # all are asked before the first is waited for
            standby.end()
        until = self._threads.monotonic() + STANDBYS_END_S
        for standby in self._standbys.values():
            self._left_running |= not standby.close(max(0.0, until - self._threads.monotonic()))

    def _drain(self, numbers: list[int]) -> None:
        """Have these shards end, and keep what ended them. One that does not end in time keeps this process from going
        on, but not from ending: nothing that it does later is committed."""
        transactions_s = HAND_OVER_TRANSACTIONS * self._settings.worker.transaction_timeout_ms / 1000.0
        bound_s = max(HAND_OVER_S_MIN, transactions_s + HAND_OVER_MORE_S)
        for number in numbers:  # all are asked before the first is waited for
            if number in self._owned:
                self._owned[number].stop.set()
        for number in numbers:
            owned = self._owned.pop(number, None)
            if owned is None:
                continue
            if not owned.drain(bound_s):
                log.error("shard.not_ended", shard=number, waited_s=bound_s)
                self._left_running = True
                self._failures.append(kafka.KafkaFailure(f"shard {number} did not end within {bound_s:g} s"))
            elif owned.failure is not None:
                self._failures.append(owned.failure)
            if owned.shard.left is not None:
                self._left[number] = owned.shard.left
            worker_metrics.forget(number)
            log.info("shard.released", shard=number)
        worker_metrics.OWNED.set(len(self._owned))
