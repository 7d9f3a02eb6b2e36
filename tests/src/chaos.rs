//! What goes wrong in a soak, drawn from a seed: the same seed gives the same faults at the same times.

use std::fmt;
use std::time::Duration;

/// How many processes of each kind there are.
#[derive(Debug, Clone, Copy)]
pub struct Cast {
    /// Workers.
    pub workers: usize,
    /// Coordinators.
    pub coordinators: usize,
    /// Nodes of the broker.
    pub nodes: usize,
}

/// Whom a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// A worker.
    Worker(usize),
    /// A coordinator.
    Coordinator(usize),
    /// A node of the broker.
    Node(usize),
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blow {
    /// SIGKILL, and a new process after a while.
    Killed,
    /// SIGSTOP, and SIGCONT after a while.
    Stalled,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Since the beginning.
    pub at: Duration,
    /// Whom.
    pub victim: Victim,
    /// How.
    pub blow: Blow,
    /// How long until it is mended.
    pub lasts: Duration,
}

impl Fault {
    /// `worker killed`
    pub fn kind(&self) -> String {
        let victim = match self.victim {
            Victim::Worker(_) => "worker",
            Victim::Coordinator(_) => "coordinator",
            Victim::Node(_) => "broker node",
        };
        let blow = match self.blow {
            Blow::Killed => "killed",
            Blow::Stalled => "stalled",
        };
        format!("{victim} {blow}")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Victim::Worker(number) | Victim::Coordinator(number) | Victim::Node(number)) = self.victim;
        write!(
            f,
            "{:7.1} s  {} (number {number}) for {:.1} s",
            self.at.as_secs_f64(),
            self.kind(),
            self.lasts.as_secs_f64()
        )
    }
}

/// Numbers that look random: splitmix64.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn between(&mut self, least_ms: u64, most_ms: u64) -> Duration {
        Duration::from_millis(least_ms + self.next() % (most_ms - least_ms))
    }
}

/// Faults for so long, one every three seconds and a half or so; of ten about five strike workers, two coordinators, three nodes.
pub fn schedule(seed: u64, cast: Cast, length: Duration) -> Vec<Fault> {
    let mut dice = Dice(seed);
    let mut faults = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += dice.between(1500, 5500);
        if at >= length {
            return faults;
        }
        let victim = match dice.below(10) {
            0..=4 => Victim::Worker(dice.below(cast.workers)),
            5 | 6 => Victim::Coordinator(dice.below(cast.coordinators)),
            _ => Victim::Node(dice.below(cast.nodes)),
        };
        let blow = if dice.below(2) == 0 { Blow::Killed } else { Blow::Stalled };
        // Longer than leases and `ack_wait` now and then.
        let lasts = dice.between(200, 6000);
        faults.push(Fault { at, victim, blow, lasts });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const CAST: Cast = Cast { workers: 3, coordinators: 2, nodes: 3 };
    const TEN_MINUTES: Duration = Duration::from_secs(600);

    #[test]
    fn a_seed_replays() {
        assert_eq!(schedule(7, CAST, TEN_MINUTES), schedule(7, CAST, TEN_MINUTES));
        assert_ne!(schedule(7, CAST, TEN_MINUTES), schedule(8, CAST, TEN_MINUTES));
    }

    #[test]
    fn ten_minutes_have_more_than_a_hundred_faults_of_every_kind_at_everybody() {
        for seed in 0..20 {
            let faults = schedule(seed, CAST, TEN_MINUTES);
            assert!(faults.len() > 100, "{}", faults.len());
            let victims: BTreeSet<(Victim, Blow)> = faults.iter().map(|fault| (fault.victim, fault.blow)).collect();
            assert_eq!(victims.len(), 2 * (3 + 2 + 3), "seed {seed}");
        }
    }
}
