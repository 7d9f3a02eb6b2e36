//! News that nobody sends: time passes, the broker came back without what it held, workers came and went.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::datetime::DateTime;
use likeness_contract::subjects;
use likeness_link::error::chain;
use likeness_link::telemetry::metrics::metrics;
use likeness_link::{Bus, ErrorKind, Result};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use super::context::Context;
use super::events::{Follow, stream_info};
use super::leader::{Inbox, Input};
use super::measure;
use super::releases;
use crate::core::workers::Workers;

/// How soon a reconnect is noticed, and that the deadline of a round is over.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Streams without which nothing works; a bucket is a stream too.
fn watched_streams() -> [String; 7] {
    let bucket = |name: &str| format!("KV_{name}");
    [
        subjects::JOBS_STREAM.into(),
        subjects::EVENTS_STREAM.into(),
        subjects::DEAD_STREAM.into(),
        bucket(subjects::ALIASES_BUCKET),
        bucket(subjects::PLACEMENT_BUCKET),
        bucket(subjects::LEASES_BUCKET),
        bucket(subjects::PRESENCE_BUCKET),
    ]
}

/// Ticks, and looks after the streams at every tick and after every reconnect; for ever.
pub(super) async fn watch(cx: Arc<Context>, inbox: Inbox, follow: Arc<Follow>) {
    let sweep_every = cx.bus.timings().sweep_every;
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut streams = Streams { created: HashMap::new(), follow, lost: false };
    let mut connects = connects(&cx.bus);
    let mut next_sweep = Instant::now();
    loop {
        look.tick().await;
        let _not_leading = inbox.send(Input::Deadlines).await;
        let reconnected = connects != self::connects(&cx.bus);
        let due = Instant::now() >= next_sweep;
        if !reconnected && !due {
            continue;
        }
        match streams.check(&cx).await {
            Ok(false) => {}
            Ok(true) => {
                metrics().broker_losses.inc();
                tracing::warn!("the broker lost streams, looking after all tasks that are published");
                let _not_leading = inbox.send(Input::BrokerDoubted).await;
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the broker's streams can't be looked after yet");
                continue;
            }
        }
        connects = self::connects(&cx.bus);
        if due {
            next_sweep = Instant::now() + sweep_every;
            if let Err(error) = releases::rebuild_aliases(&cx).await {
                tracing::warn!(error = %chain(&error), "the aliases can't be looked after yet");
            }
            let _not_leading = inbox.send(Input::Tick).await;
            measure::queues(&cx.bus).await;
        }
    }
}

fn connects(bus: &Bus) -> u64 {
    bus.client().statistics().connects.load(Ordering::Relaxed)
}

/// When each stream was made, as far as was seen.
struct Streams {
    created: HashMap<String, DateTime>,
    follow: Arc<Follow>,
    /// A stream was lost, and not everything is made again yet.
    lost: bool,
}

impl Streams {
    /// Returns whether a stream was missing or is younger than it was, once everything is there again.
    async fn check(&mut self, cx: &Context) -> Result<bool> {
        for name in watched_streams() {
            self.check_stream(cx, name).await?;
        }
        if !self.lost {
            let mended = cx.bus.mend_consumers().await?;
            if mended > 0 {
                tracing::warn!(consumers = mended, "consumers were missing and are made again");
            }
        }
        if self.lost {
            // Consumers and buckets went with it.
            cx.bus.ensure_topology().await?;
            releases::rebuild_aliases(cx).await?;
        }
        Ok(std::mem::take(&mut self.lost))
    }

    async fn check_stream(&mut self, cx: &Context, name: String) -> Result<()> {
        let info = match stream_info(&cx.bus, &name).await {
            Err(error) if error.kind == ErrorKind::NotFound => {
                self.lost = true;
                cx.bus.remake_topology().await?;
                stream_info(&cx.bus, &name).await?
            }
            info => info?,
        };
        if name == subjects::EVENTS_STREAM {
            self.lost |= self.follow.note_stream(info.created);
        }
        let before = self.created.insert(name, info.created);
        self.lost |= before.is_some_and(|before| before != info.created);
        Ok(())
    }
}

/// Follows the presence of workers and tells their counts; for ever.
pub(super) async fn count_workers(cx: Arc<Context>, inbox: Inbox) {
    let changed = Notify::new();
    let count = async {
        loop {
            let live = cx.roster.live();
            measure::workers(&live);
            let workers = Workers::count(&live);
            let _not_leading = inbox.send(Input::Workers(workers)).await;
            // One that dies is noticed by its silence.
            let silence = tokio::time::sleep(cx.bus.timings().presence_every);
            tokio::select! {
                () = changed.notified() => {}
                () = silence => {}
            }
        }
    };
    tokio::join!(cx.roster.follow(&cx.bus, || changed.notify_one()), count);
}
