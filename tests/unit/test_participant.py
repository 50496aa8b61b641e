"""One partition of several: what it votes, who waits, what all decide alike, and how it goes on from a checkpoint."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.nothing import NOTHING
from versolog.schemas import codec, limits
from versolog.schemas.outcome import Outcome
from versolog.schemas.topics import partition_of
from versolog.streams.chain import intent_hash
from versolog.streams.decide import OUTCOME, Asked, Decision, asked_by_share, fold
from versolog.streams.overlay import Overlay
from versolog.streams.participant import Ballot, Participant
from versolog.streams.shares import COMMIT, REFUSE, REPEAT, Allotment, Vote
from versolog.streams.transaction import Transaction

PARTITIONS = 3
CHECKPOINT = codec.schema("Checkpoint")


def groups(partition: int, count: int = 3) -> list[str]:
    names = (f"g{number}" for number in range(999))
    return [name for name in names if partition_of(name, PARTITIONS) == partition][:count]


A, A2, A3 = groups(0)
B, B2, B3 = groups(1)


def put(*named: str, id: str, n: int = 0) -> Transaction:
    tx = Transaction(None, id=id)
    for group in named:
        tx.group(group).put("t", "k", {"n": n})
    return tx


@dataclass
class Side:
    """A participant, the log it reads and what came of it."""

    partition: int
    log: list[tuple[int, Any]] = field(default_factory=list)
    votes: list[Vote] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    ballots: list[Ballot] = field(default_factory=list)
    stored: int = 0

    def __post_init__(self) -> None:
        self.begin(None)

    def begin(self, checkpoint: dict[str, Any] | None) -> None:
        """From a checkpoint, with all decisions so far in the store."""
        store = Overlay(NOTHING)
        for decision in self.decisions:
            fold(store, decision)
        self.overlay = Overlay(store)
        self.participant = Participant(self.overlay, self.partition, PARTITIONS, checkpoint)

    def restart(self, checkpoint: dict[str, Any], stored: int) -> None:
        """As after a crash: `checkpoint` and the first `stored` decisions are durable; what follows is read again."""
        del self.decisions[stored:]
        self.ballots.clear()
        self.begin(codec.decode(CHECKPOINT, codec.encode(CHECKPOINT, checkpoint)))
        for offset in range(self.participant.first_offset, len(self.log)):
            self.read(offset)
        for offset in range(self.participant.votes_offset, len(self.votes)):
            self.participant.hear(self.votes[offset], offset)
        self.turn()

    def take(self, asked: Any, timestamp: int = 10) -> None:
        """Append a transaction, a share or (None) a tick, and take it in."""
        self.log.append((timestamp, asked))
        self.read(len(self.log) - 1)
        self.turn()

    def read(self, offset: int) -> None:
        timestamp, asked = self.log[offset]
        clock = self.participant.place(offset, timestamp)
        if clock is None or asked is None:
            return
        if isinstance(asked, Transaction):
            self.participant.take(Asked(offset, clock, intent_hash(asked.intent()), asked.record(), size=100))
            return
        self.participant.take(asked_by_share(offset, clock, asked, 100))

    def hear(self, vote: Vote) -> None:
        self.votes.append(vote)
        self.participant.hear(vote, len(self.votes) - 1)
        self.turn()

    def cast(self, number: int = 0) -> None:
        self.participant.cast(number)
        self.turn()

    def turn(self) -> None:
        turn = self.participant.turn()
        self.decisions += turn.decisions
        self.ballots += turn.ballots

    @property
    def outcomes(self) -> list[Outcome]:
        return [Outcome.from_avro(codec.decode(OUTCOME, decision.outcome)) for decision in self.decisions]

    @property
    def ends(self) -> list[tuple[str, str]]:
        return [(outcome.transaction_id, outcome.code or "committed") for outcome in self.outcomes]

    @property
    def waiting(self) -> list[int]:
        return [undecided.asked.offset for undecided in self.participant.waiting]


class Sides:
    """Partition 0 and 1, and the sequence above them."""

    def __init__(self) -> None:
        self.a, self.b = Side(0), Side(1)
        self.allotment = Allotment(PARTITIONS)
        self.next = 0

    def share(self, tx: Transaction) -> dict[int, Any]:
        """The shares of the next transaction in sequence."""
        shares = self.allotment.shares(self.next, intent_hash(tx.intent()), tx.record())
        self.next += 1
        return shares

    def take(self, tx: Transaction, at: tuple[int, int] = (10, 10)) -> None:
        shares = self.share(tx)
        self.a.take(shares[0], at[0])
        self.b.take(shares[1], at[1])

    def exchange(self) -> None:
        """Deliver all votes."""
        for one, other in ((self.a, self.b), (self.b, self.a)):
            for ballot in one.ballots:
                other.hear(Vote.of(ballot.vote.partition, ballot.vote.record()))
                one.cast(ballot.vote.sequence_offset)
            one.ballots.clear()


@pytest.fixture
def sides() -> Sides:
    return Sides()


# Deciding alike


def test_all_commit_at_the_greatest_clock_with_all_versions(sides: Sides) -> None:
    sides.take(put(A, B, id="x"), at=(10, 30))
    assert sides.a.decisions == sides.b.decisions == []
    sides.exchange()
    for side in (sides.a, sides.b):
        (outcome,) = side.outcomes
        assert (outcome.committed, outcome.committed_at) == (True, 30)
        assert {part.group: part.version for part in outcome.parts} == {A: 1, B: 1}
        (sealed,) = side.decisions[0].commits
        assert sealed.whole["sequence_offset"] == 0
        assert [other["version"] for other in sealed.whole["others"]] == [1]
    assert sides.a.outcomes[0].token == sides.b.outcomes[0].token


def test_one_that_refuses_refuses_for_all(sides: Sides) -> None:
    tx = put(A, B, id="x")
    tx.group(B).expect_head(4)
    sides.take(tx, at=(10, 20))
    assert [ballot.vote.verdict for side in (sides.a, sides.b) for ballot in side.ballots] == [COMMIT, REFUSE]
    sides.exchange()
    assert sides.a.ends == sides.b.ends == [("x", "head-mismatch")]
    assert sides.a.outcomes[0].facts == sides.b.outcomes[0].facts
    assert [side.outcomes[0].committed_at for side in (sides.a, sides.b)] == [20, 20]
    assert sides.a.overlay.head(A) is None


def test_the_first_of_several_refusals_is_everyones(sides: Sides) -> None:
    tx = put(A, B, id="x")
    tx.group(A).expect("t", "k", 4)
    tx.group(B).expect_head(4)
    sides.take(tx)
    sides.exchange()
    assert sides.a.ends == sides.b.ends == [("x", "version-mismatch")]


def test_the_order_of_votes_does_not_matter(sides: Sides) -> None:
    c, _, _ = groups(2)
    shares = sides.share(put(A, B, c, id="x"))
    third = Side(2)
    for side in (sides.a, sides.b, third):
        side.take(shares[side.partition], 10 + side.partition)
    ballots = {side.partition: side.ballots[0].vote for side in (sides.a, sides.b, third)}
    assert sides.a.ballots[0].to == (1, 2)
    for side, order in ((sides.a, (2, 0, 1)), (sides.b, (1, 0, 2)), (third, (0, 1, 2))):
        for partition in order:
            if partition == side.partition:
                side.cast()
            else:
                side.hear(ballots[partition])
                side.hear(ballots[partition])
    assert [side.outcomes[0].committed_at for side in (sides.a, sides.b, third)] == [12, 12, 12]
    assert sides.a.outcomes[0].token == third.outcomes[0].token


def test_nothing_comes_of_a_vote_that_is_not_in_the_log(sides: Sides) -> None:
    sides.take(put(A, B, id="x"))
    sides.a.hear(sides.b.ballots[0].vote)
    (undecided,) = sides.a.participant.waiting
    assert sides.a.participant.missing(undecided) == [0]
    assert sides.a.decisions == []
    sides.a.cast()
    assert sides.a.ends == [("x", "committed")]


def test_a_share_of_one_partition_needs_no_votes(sides: Sides) -> None:
    (share,) = sides.share(put(A, A2, id="x")).values()
    sides.a.take(share)
    assert sides.a.ballots == []
    assert sides.a.ends == [("x", "committed")]


# What somebody else than a builder wrote


def crafted(id: str, named: list[str], branch: str = "main") -> dict[str, Any]:
    """As `put`, and whatever the names are."""
    whole = put("g", id="x").record()
    return {**whole, "id": id, "parts": [{**whole["parts"][0], "group": group, "branch": branch} for group in named]}


def take_crafted(sides: Sides, record: dict[str, Any]) -> tuple[Outcome, Outcome]:
    shares = sides.allotment.shares(sides.next, bytes(32), record)
    sides.next += 1
    for side in (sides.a, sides.b):
        side.take(shares[side.partition])
    sides.exchange()
    return sides.a.outcomes[-1], sides.b.outcomes[-1]


def many(partition: int, count: int) -> list[str]:
    names = (f"many-{number}" for number in itertools.count())
    return list(itertools.islice((name for name in names if partition_of(name, PARTITIONS) == partition), count))


@pytest.mark.parametrize("each", [limits.GROUPS_MAX // 2 + 1, 2_000], ids=["as a whole", "in each"])
def test_too_many_groups_are_refused_by_all_without_naming_them(sides: Sides, each: int) -> None:
    """Naming them all, the outcome might not fit a record, and the partition would try to write it for ever."""
    for outcome in take_crafted(sides, crafted("x", [*many(0, each), *many(1, each)])):
        assert (outcome.transaction_id, outcome.code, outcome.parts) == ("x", "too-large", ())
    sides.take(put(A, B, id="y"))
    sides.exchange()
    assert sides.a.ends[1:] == sides.b.ends[1:] == [("y", "committed")]


def test_too_many_groups_of_one_partition_are_refused_without_naming_them(sides: Sides) -> None:
    record = crafted("x", many(0, limits.GROUPS_MAX + 1))
    sides.a.log.append((10, record))
    sides.a.participant.take(Asked(0, 10, bytes(32), record, size=100))
    sides.a.turn()
    assert [(outcome.code, outcome.parts) for outcome in sides.a.outcomes] == [("too-large", ())]


@pytest.mark.parametrize("id", ["", "x" * (limits.ID_BYTES_MAX + 1)], ids=["none", "too long"])
def test_what_can_not_be_an_id_is_not_remembered_by_anyone(sides: Sides, id: str) -> None:
    outcomes = take_crafted(sides, crafted(id, [A, B]))
    assert [(outcome.transaction_id, outcome.parts) for outcome in outcomes] == [("", ())] * 2
    assert sides.a.overlay.outcome(id) is None


def test_what_can_not_be_a_name_is_not_named_in_the_outcome(sides: Sides) -> None:
    for outcome in take_crafted(sides, crafted("x", [A, B], branch="b" * 1_000)):
        assert (outcome.code, outcome.parts) == ("too-large", ())


# Who waits


def test_only_what_touches_a_held_group_or_id_waits(sides: Sides) -> None:
    sides.take(put(A, B, id="x"))
    sides.a.take(put(A2, id="free"))
    sides.a.take(put(A, id="group"))
    sides.a.take(put(A3, id="x"))
    assert sides.a.ends == [("free", "committed")]
    assert sides.a.waiting == [0, 2, 3]
    sides.exchange()
    assert sides.a.ends[1:] == [("x", "committed"), ("group", "committed"), ("x", "id-reused")]
    assert sides.a.participant.undecided_count == sides.a.participant.undecided_bytes == 0


def test_what_waits_holds_its_groups_in_turn(sides: Sides) -> None:
    sides.take(put(A, B, id="x"))
    sides.a.take(put(A, A2, id="second"))
    sides.a.take(put(A2, id="third"))
    assert sides.a.waiting == [0, 1, 2]
    sides.exchange()
    assert [name for name, _ in sides.a.ends] == ["x", "second", "third"]
    assert [outcome.version for outcome in sides.a.outcomes] == [1, 2, 2]


def test_shares_on_one_group_are_voted_on_one_after_the_other(sides: Sides) -> None:
    sides.take(put(A, B, id="x"))
    sides.take(put(A, B2, id="y"))
    assert [ballot.vote.sequence_offset for ballot in sides.a.ballots] == [0]
    assert [ballot.vote.sequence_offset for ballot in sides.b.ballots] == [0, 1]
    sides.exchange()
    sides.exchange()
    assert sides.a.ends == [("x", "committed"), ("y", "committed")]
    assert sorted(sides.b.ends) == [("x", "committed"), ("y", "committed")]


def test_a_vote_can_come_before_the_share(sides: Sides) -> None:
    shares = sides.share(put(A, B, id="x"))
    sides.b.take(shares[1])
    sides.a.hear(sides.b.ballots[0].vote)
    sides.a.take(shares[0])
    sides.a.cast()
    assert sides.a.ends == [("x", "committed")]


# Shares


def test_a_share_that_was_seen_is_ignored(sides: Sides) -> None:
    shares = sides.share(put(A, B, id="x"))
    sides.a.take(shares[0])
    sides.a.take(shares[0])
    assert sides.a.waiting == [0]
    assert len(sides.a.ballots) == 1
    assert sides.a.participant.next_offset == 2


def test_a_share_out_of_order_is_ignored_until_it_follows(sides: Sides) -> None:
    first, second = sides.share(put(A, B, id="x")), sides.share(put(A2, B2, id="y"))
    sides.a.take(second[0])
    assert sides.a.waiting == []
    sides.a.take(first[0])
    sides.a.take(second[0])
    assert sides.a.waiting == [1, 2]


# Ids


def test_a_retry_gets_the_first_outcome_from_every_participant(sides: Sides) -> None:
    tx = put(A, B, id="x")
    sides.take(tx)
    sides.take(tx)
    sides.exchange()
    sides.exchange()
    for side in (sides.a, sides.b):
        first, again = side.decisions
        assert (first.outcome, again.repeated, list(again.commits)) == (again.outcome, True, [])


def test_another_content_under_the_id_is_refused_by_all_and_leaves_the_id_free_elsewhere(sides: Sides) -> None:
    sides.a.take(put(A, id="x"))
    sides.take(put(A, B, id="x", n=1))
    sides.exchange()
    assert sides.a.ends == [("x", "committed"), ("x", "id-reused")]
    assert sides.b.ends == [("x", "id-reused")]
    sides.b.take(put(B, id="x"))
    assert sides.b.ends[1:] == [("x", "committed")]


def test_an_id_keeps_its_first_outcome_whatever_else_another_content_is_refused_for(sides: Sides) -> None:
    sides.b.take(put(B, id="x"))
    tx = put(A, B, id="x", n=1)
    tx.group(A).expect_head(4)
    sides.take(tx)
    sides.exchange()
    assert sides.a.ends == [("x", "id-reused")]
    assert sides.b.ends == [("x", "committed"), ("x", "id-reused")]
    sides.b.take(put(B, id="x"))
    assert sides.b.ends[2:] == [("x", "committed")]
    assert sides.b.decisions[2].outcome == sides.b.decisions[0].outcome


def test_what_one_partition_has_refused_before_is_refused_by_all_for_the_same_reason(sides: Sides) -> None:
    """A client sends the whole to one partition, is told that it belongs into sequence, and sends it there."""
    tx = put(A, B, id="x")
    sides.a.take(tx)
    assert sides.a.ends == [("x", "wrong-partition")]
    sides.take(tx)
    assert sides.a.ballots[0].vote.verdict == REPEAT
    sides.exchange()
    assert sides.a.ends == [("x", "wrong-partition")] * 2
    assert sides.a.decisions[1].repeated
    assert sides.b.ends == [("x", "wrong-partition")]
    assert sides.b.outcomes[0].facts == sides.a.outcomes[0].facts
    sides.take(tx)
    sides.exchange()
    assert sides.b.decisions[1].outcome == sides.b.decisions[0].outcome


def test_what_was_refused_here_and_is_an_id_used_elsewhere_stays_refused(sides: Sides) -> None:
    tx = put(A, B, id="x")
    sides.b.take(tx)
    sides.a.take(put(A, id="x"))
    sides.take(tx)
    sides.exchange()
    assert sides.a.ends[-1] == ("x", "id-reused")
    assert sides.b.decisions[1].outcome == sides.b.decisions[0].outcome


# Times


def test_the_clock_of_a_record_is_the_greatest_so_far(sides: Sides) -> None:
    participant = sides.a.participant
    assert [participant.place(offset, time) for offset, time in enumerate((5, 3, 9))] == [5, 5, 9]
    assert participant.place(1, 3) is None


def test_what_follows_on_a_later_time_is_not_before_it(sides: Sides) -> None:
    sides.take(put(A, B, id="x"), at=(10, 30))
    sides.exchange()
    sides.a.take(put(A, id="y"), 11)
    sides.a.take(put(A2, id="z"), 12)
    assert [outcome.committed_at for outcome in sides.a.outcomes] == [30, 30, 12]


def test_what_was_read_at_a_later_time_is_not_changed_before_it(sides: Sides) -> None:
    """Or else a cut between the two would show the change, and not what was committed because it had not come yet."""
    tx = put(B, id="x")
    tx.group(A).expect_head(0)
    sides.take(tx, at=(10, 30))
    sides.exchange()
    sides.a.take(put(A2, id="other"), 11)
    sides.a.take(put(A, id="y"), 12)
    assert [outcome.committed_at for outcome in sides.a.outcomes] == [30, 11, 30]


def test_a_later_read_of_several_groups_holds_back_the_changes_of_each(sides: Sides) -> None:
    sides.take(put(A, B, id="x"), at=(10, 30))
    sides.exchange()
    reads = Transaction(None, id="r")
    reads.group(A).expect_head(1)
    reads.group(A2).expect_head(0)
    sides.a.take(reads, 11)
    sides.a.take(put(A2, id="y"), 12)
    assert [outcome.committed_at for outcome in sides.a.outcomes] == [30, 30, 30]


def test_reads_are_remembered_until_their_time_is_closed(sides: Sides) -> None:
    tx = put(B, id="x")
    tx.group(A).expect_head(0)
    sides.take(tx, at=(10, 30))
    sides.exchange()
    checkpoint = sides.a.participant.checkpoint()
    assert checkpoint["reads"] == [{"group": A, "committed_at": 30}]
    sides.a.restart(checkpoint, stored=1)
    sides.take(put(A2, B2, id="w"), at=(20, 20))
    sides.a.take(put(A, id="y"), 21)
    assert sides.a.outcomes[-1].committed_at == 30
    sides.a.take(None, 31)
    assert sides.a.participant.checkpoint()["reads"] != [], "what waits at 20 can still be decided before 30"
    sides.exchange()
    assert sides.a.participant.checkpoint()["reads"] == []


# Going on from a checkpoint


def test_nothing_undecided_is_forgotten_and_nothing_is_decided_twice(sides: Sides) -> None:
    sides.a.take(put(A2, id="before"))
    sides.take(put(A, B, id="x"))
    sides.a.take(put(A, id="behind"))
    sides.a.take(put(A2, id="beside"))
    checkpoint = sides.a.participant.checkpoint()
    assert [(one["offset"], one["sequence_offset"], one["verdict"]) for one in checkpoint["undecided"]] == [
        (1, 0, COMMIT),
        (2, None, ""),
    ]
    sides.a.restart(checkpoint, stored=2)
    assert sides.a.waiting == [1, 2]
    assert [ballot.vote.sequence_offset for ballot in sides.a.ballots] == [0]
    sides.exchange()
    assert [name for name, _ in sides.a.ends] == ["before", "beside", "x", "behind"]


def test_the_second_owner_votes_the_same(sides: Sides) -> None:
    sides.a.take(put(A, id="before"), 40)
    checkpoint = sides.a.participant.checkpoint()
    sides.take(put(A, B, id="x"), at=(12, 10))
    (first,) = sides.a.ballots
    sides.a.restart(checkpoint, stored=1)
    (second,) = sides.a.ballots
    assert first.vote.record() == second.vote.record()
    assert second.vote.clock == 40


def test_a_checkpoint_made_on_the_way_still_has_what_was_not_read_again(sides: Sides) -> None:
    sides.take(put(A, B, id="x"), at=(10, 10))
    sides.take(put(A2, B2, id="y"), at=(20, 10))
    checkpoint = sides.a.participant.checkpoint()
    sides.a.begin(checkpoint)
    assert sides.a.participant.checkpoint() == checkpoint
    sides.a.ballots.clear()
    assert sides.a.participant.first_offset == 0
    sides.a.read(0)
    sides.a.turn()
    assert sides.a.participant.first_offset == 1
    assert sides.a.participant.checkpoint() == checkpoint


def test_what_is_closed_is_not_held_back_by_what_waits_in_other_groups(sides: Sides) -> None:
    sides.take(put(A, B, id="x"), at=(10, 10))
    sides.a.take(put(A2, id="beside"), 20)
    participant, checkpoint = sides.a.participant, sides.a.participant.checkpoint()
    for asked in (None, checkpoint):
        assert [participant.settled(groups, asked) for groups in (None, [A], [A2])] == [(0, 10), (0, 10), (2, 20)]
    sides.a.begin(checkpoint)
    assert sides.a.participant.settled([A2]) == (0, 10), "whose groups these are is not known before it was read again"
    sides.a.read(0)
    assert [sides.a.participant.settled(groups) for groups in (None, [A], [A2])] == [(0, 10), (0, 10), (2, 20)]


def test_votes_that_came_early_are_heard_again(sides: Sides) -> None:
    shares = sides.share(put(A, B, id="x"))
    sides.b.take(shares[1])
    sides.a.hear(sides.b.ballots[0].vote)
    checkpoint = sides.a.participant.checkpoint()
    assert checkpoint["votes_offset"] == 0
    sides.a.take(shares[0])
    sides.a.restart(checkpoint, stored=0)
    sides.a.cast()
    assert sides.a.ends == [("x", "committed")]
    assert sides.a.participant.votes_offset == 1


def test_votes_on_what_is_decided_are_of_no_use(sides: Sides) -> None:
    sides.take(put(A, B, id="x"))
    vote = sides.b.ballots[0].vote
    sides.exchange()
    sides.a.hear(vote)
    assert sides.a.participant.votes_offset == 2
    assert sides.a.participant.checkpoint()["votes_offset"] == 2


def test_another_vote_than_the_one_in_the_checkpoint_is_a_broken_invariant(sides: Sides) -> None:
    sides.take(put(A, B, id="x"))
    checkpoint = sides.a.participant.checkpoint()
    checkpoint["undecided"][0]["verdict"] = "head-mismatch"
    with pytest.raises(AssertionError, match="voted"):
        sides.a.restart(checkpoint, stored=0)
