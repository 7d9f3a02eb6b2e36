//! Where the next task comes from: one consumer per kind, device class and priority.
//!
//! A worker does one task at a time and takes high priority first. It looks through its consumers in order
//! without waiting; when all are empty it waits at all of them at once and takes what comes first. A pull
//! request that is still open when another one won cannot be taken back without risking the message that it
//! may bring, so its message is given back at once, and its consumer is asked again after the task.

use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{join_all, select_all};
use likeness_contract::jobs::{DeviceClass, Priority, TaskKind};
use likeness_link::error::chain;
use likeness_link::{Bus, Delivery, Error, Pull};

/// Pause after a consumer could not be asked: the broker may be restarting.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Names one consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Queue {
    pub kind: TaskKind,
    pub device: DeviceClass,
    pub priority: Priority,
}

/// The queues of a worker, first asked first: high priority before low, then by kind, own device class before
/// any.
pub(crate) fn queues(kinds: &[TaskKind], own: DeviceClass) -> Vec<Queue> {
    let mut queues = Vec::new();
    for priority in Priority::ALL {
        for kind in kinds {
            for device in [own, DeviceClass::Any] {
                queues.push(Queue { kind: *kind, device, priority });
            }
        }
    }
    queues
}

/// In which order lanes are asked. The one that was served goes behind the others of its priority, so that a
/// full queue of one kind does not starve another kind.
#[derive(Debug)]
struct Turns(Vec<usize>);

impl Turns {
    fn served(&mut self, lane: usize, queues: &[Queue]) {
        self.0.retain(|other| *other != lane);
        let behind = self.0.iter().rposition(|other| queues[*other].priority <= queues[lane].priority);
        self.0.insert(behind.map_or(0, |position| position + 1), lane);
    }
}

/// One consumer.
#[derive(Debug)]
struct Lane {
    pull: Pull,
    /// Whether a request stands at the broker.
    open: bool,
}

/// All consumers of a worker.
#[derive(Debug)]
pub(crate) struct Pulls {
    queues: Vec<Queue>,
    turns: Turns,
    lanes: Vec<Lane>,
}

impl Pulls {
    /// Binds to the consumers of `kinds`, for the worker's own device class and for any.
    pub async fn bind(bus: &Bus, kinds: &[TaskKind], own: DeviceClass) -> Result<Self, Error> {
        let queues = queues(kinds, own);
        let mut lanes = Vec::with_capacity(queues.len());
        for Queue { kind, device, priority } in &queues {
            lanes.push(Lane { pull: bus.task_messages(*kind, *device, *priority).await?, open: false });
        }
        let turns = Turns((0..queues.len()).collect());
        Ok(Self { queues, turns, lanes })
    }

    /// Waits for the next message; with it the time at which it was received. Lasts through any outage; may be
    /// dropped at any moment.
    pub async fn next(&mut self) -> (Delivery, Instant) {
        loop {
            match self.try_next().await {
                Ok(Some(delivery)) => return (delivery, Instant::now()),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "cannot pull; trying again");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<Delivery>, Error> {
        if let Some(delivery) = self.look_through().await? {
            return Ok(Some(delivery));
        }
        self.lanes.iter_mut().for_each(|lane| lane.open = true);
        let (lane, result) = self.first_answer().await;
        Ok(result?.inspect(|_| self.turns.served(lane, &self.queues)))
    }

    /// Asks every lane without a standing request, in turn, without waiting.
    async fn look_through(&mut self) -> Result<Option<Delivery>, Error> {
        for number in self.turns.0.clone() {
            let lane = &mut self.lanes[number];
            if lane.open {
                continue;
            }
            if let Some(delivery) = lane.pull.try_next().await? {
                self.turns.served(number, &self.queues);
                return Ok(Some(delivery));
            }
        }
        Ok(None)
    }

    /// Waits for the first answer to a standing request; for ever when there is none. The others stand on.
    async fn first_answer(&mut self) -> (usize, Result<Option<Delivery>, Error>) {
        let open = self.lanes.iter_mut().enumerate().filter(|(_, lane)| lane.open);
        let waits: Vec<_> = open.map(|(number, lane)| lane.pull.next().map(move |r| (number, r)).boxed()).collect();
        if waits.is_empty() {
            return std::future::pending().await;
        }
        let (answer, _, others) = select_all(waits).await;
        drop(others);
        self.lanes[answer.0].open = false;
        answer
    }

    /// Gives back what standing requests bring while a task is at hand; never ends.
    pub async fn give_back<T>(&mut self) -> T {
        loop {
            if let (_, Ok(Some(delivery))) = self.first_answer().await {
                tracing::debug!(subject = %delivery.subject, "given back: a task is at hand");
                // On a task of its own: this future may be dropped at any moment.
                tokio::spawn(async move { delivery.nak(None).await });
            }
        }
    }

    /// Takes all standing requests back; a message that has arrived for one goes back to its queue.
    pub async fn close(&mut self) {
        let open = self.lanes.iter_mut().filter(|lane| lane.open);
        let parks = open.map(|lane| {
            lane.open = false;
            lane.pull.park()
        });
        join_all(parks).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [TaskKind; 2] = [TaskKind::Train, TaskKind::Embed];

    fn names(queues: &[Queue]) -> Vec<String> {
        let name = |q: &Queue| format!("{}-{}-{}", q.kind.name(), q.device.name(), q.priority.name());
        queues.iter().map(name).collect()
    }

    #[test]
    fn every_high_priority_queue_comes_before_every_low_one() {
        let expected = [
            "train-cuda-hi",
            "train-any-hi",
            "embed-cuda-hi",
            "embed-any-hi",
            "train-cuda-lo",
            "train-any-lo",
            "embed-cuda-lo",
            "embed-any-lo",
        ];
        assert_eq!(names(&queues(&KINDS, DeviceClass::Cuda)), expected);
    }

    #[test]
    fn the_queue_that_was_served_goes_behind_the_others_of_its_priority() {
        let queues = queues(&KINDS, DeviceClass::Cpu);
        let mut turns = Turns((0..8).collect());
        turns.served(0, &queues);
        assert_eq!(turns.0, [1, 2, 3, 0, 4, 5, 6, 7]);
        turns.served(5, &queues);
        assert_eq!(turns.0, [1, 2, 3, 0, 4, 6, 7, 5]);
        turns.served(3, &queues);
        assert_eq!(turns.0, [1, 2, 0, 3, 4, 6, 7, 5]);
    }
}
