//! The broker as JetStream behaves: a work queue with one message a subject, a stream of events, a lease.
//!
//! What makes it treacherous is modelled as it is. An answer names a message by its number in the stream and acts on
//! whatever delivery is under way, also another worker's; after a wipe the numbers begin again, so that a late answer may hit another
//! task's message. A message that nobody answered for `ack_wait` is delivered again. The lease's entry dies of its age.

use std::collections::{BTreeMap, HashMap};

use likeness_contract::ids::JobId;
use likeness_contract::jobs::TaskMessage;
use likeness_contract::messages::TaskEvent;

/// `ack_wait`, milliseconds.
pub(super) const ACK_WAIT_MS: u64 = 30_000;
/// How long a lease lives that nobody renews, milliseconds.
pub(super) const LEASE_MS: u64 = 15_000;

/// A message of the work queue.
struct Queued {
    subject: String,
    message: TaskMessage,
    deliveries: u64,
    /// Not delivered before.
    not_before_ms: u64,
}

/// A message that a worker was given.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    /// Its number in the stream.
    pub sequence: u64,
    /// The task.
    pub message: TaskMessage,
    /// How often it was delivered, this time included.
    pub deliveries: u64,
}

/// What is said of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done with, or never to be tried again.
    Remove,
    /// To be delivered again after so many milliseconds.
    Again(u64),
    /// Still being worked on.
    Progress,
}

#[derive(Default)]
pub(super) struct Broker {
    queue: BTreeMap<u64, Queued>,
    subjects: HashMap<String, u64>,
    last_sequence: u64,
    /// Everything that was told, as far as it was not lost on the way.
    pub events: Vec<TaskEvent>,
    lease: Option<(u64, u64)>,
    last_revision: u64,
    /// How often everything was lost.
    pub wipes: u64,
}

impl Broker {
    /// Whether it is new: one message a subject.
    pub(super) fn publish(&mut self, subject: String, message: TaskMessage) -> bool {
        if self.subjects.contains_key(&subject) {
            return false;
        }
        self.last_sequence += 1;
        self.subjects.insert(subject.clone(), self.last_sequence);
        self.queue.insert(self.last_sequence, Queued { subject, message, deliveries: 0, not_before_ms: 0 });
        true
    }

    /// The oldest message of high priority that may be delivered, else the oldest of low.
    pub(super) fn deliver(&mut self, now_ms: u64) -> Option<Delivery> {
        let ready = |of: &str| {
            let wanted = |(_, queued): &(&u64, &Queued)| queued.not_before_ms <= now_ms && queued.subject.contains(of);
            self.queue.iter().find(wanted).map(|(sequence, _)| *sequence)
        };
        let sequence = ready(".hi.").or_else(|| ready(".lo."))?;
        let queued = self.queue.get_mut(&sequence)?;
        queued.deliveries += 1;
        queued.not_before_ms = now_ms + ACK_WAIT_MS;
        Some(Delivery { sequence, message: queued.message.clone(), deliveries: queued.deliveries })
    }

    /// Acts on the message of this number, whosever it is by now.
    pub(super) fn answer(&mut self, sequence: u64, answer: Answer, now_ms: u64) {
        let Some(queued) = self.queue.get_mut(&sequence) else { return };
        match answer {
            Answer::Remove => self.remove(sequence),
            Answer::Again(delay_ms) => queued.not_before_ms = now_ms + delay_ms,
            Answer::Progress => queued.not_before_ms = now_ms + ACK_WAIT_MS,
        }
    }

    fn remove(&mut self, sequence: u64) {
        if let Some(queued) = self.queue.remove(&sequence) {
            self.subjects.remove(&queued.subject);
        }
    }

    pub(super) fn purge_subject(&mut self, subject: &str) {
        if let Some(sequence) = self.subjects.get(subject) {
            self.remove(*sequence);
        }
    }

    pub(super) fn purge_job(&mut self, job: &JobId) {
        let own: Vec<u64> = self.queue.iter().filter(|(_, q)| q.message.job == *job).map(|(s, _)| *s).collect();
        own.into_iter().for_each(|sequence| self.remove(sequence));
    }

    /// Work and lease are lost, and numbers begin again. (Events stay: what a leader heard it has heard, and a new one is told by
    /// the store.)
    pub(super) fn wipe(&mut self) {
        self.queue.clear();
        self.subjects.clear();
        self.last_sequence = 0;
        self.lease = None;
        self.wipes += 1;
    }

    /// Messages that lie there, oldest first.
    pub(super) fn messages(&self) -> impl Iterator<Item = &TaskMessage> {
        self.queue.values().map(|queued| &queued.message)
    }

    /// The revision at which the lease was taken; none while another has it.
    pub(super) fn take_lease(&mut self, now_ms: u64) -> Option<u64> {
        if self.lease.is_some_and(|(_, dies_ms)| now_ms < dies_ms) {
            return None;
        }
        self.last_revision += 1;
        self.lease = Some((self.last_revision, now_ms + LEASE_MS));
        Some(self.last_revision)
    }

    /// The next revision; none when the entry is another's or gone.
    pub(super) fn renew_lease(&mut self, revision: u64, now_ms: u64) -> Option<u64> {
        let (held, dies_ms) = self.lease?;
        if held != revision || now_ms >= dies_ms {
            return None;
        }
        self.last_revision += 1;
        self.lease = Some((self.last_revision, now_ms + LEASE_MS));
        Some(self.last_revision)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::*;
    use super::*;
    use likeness_contract::ids::RunNumber;
    use likeness_contract::jobs::TaskWork;

    fn message(task: &str) -> TaskMessage {
        TaskMessage { job: job_id("j"), run: RunNumber(1), task: task_id(task), work: TaskWork::IngestScan }
    }

    #[test]
    fn a_late_answer_acts_on_whoever_has_the_message() {
        let mut broker = Broker::default();
        assert!(broker.publish("x.lo.a".into(), message("a")));
        assert!(!broker.publish("x.lo.a".into(), message("a")), "one message a subject");
        let first = broker.deliver(0).unwrap();
        assert!(broker.deliver(ACK_WAIT_MS - 1).is_none());
        let second = broker.deliver(ACK_WAIT_MS).unwrap();
        assert_eq!((first.sequence, second.deliveries), (second.sequence, 2));
        // The first worker's answer takes the message from under the second one.
        broker.answer(first.sequence, Answer::Remove, ACK_WAIT_MS + 1);
        assert_eq!(broker.messages().count(), 0);
    }

    #[test]
    fn after_a_wipe_a_late_answer_hits_another_task() {
        let mut broker = Broker::default();
        broker.publish("x.lo.a".into(), message("a"));
        let before = broker.deliver(0).unwrap();
        broker.wipe();
        broker.publish("x.lo.b".into(), message("b"));
        broker.answer(before.sequence, Answer::Remove, 1);
        assert_eq!(broker.messages().count(), 0);
    }

    #[test]
    fn a_lease_is_renewed_by_its_holder_alone_and_dies_of_its_age() {
        let mut broker = Broker::default();
        let first = broker.take_lease(0).unwrap();
        assert_eq!(broker.take_lease(LEASE_MS - 1), None);
        let renewed = broker.renew_lease(first, LEASE_MS - 1).unwrap();
        assert_eq!(broker.renew_lease(first, LEASE_MS), None, "the revision is an old one");
        let second = broker.take_lease(2 * LEASE_MS).unwrap();
        assert!(second > renewed);
        assert_eq!(broker.renew_lease(renewed, 2 * LEASE_MS), None);
    }
}
