//! `likeness bench search`: puts load on the searchers and says how they bear it.
//!
//! Requests come at times of their own, whether or not earlier ones were answered, and a latency counts from the moment at
//! which its request was due: an answer that is late makes all that should have come meanwhile late too, and that shows.
//! What the generator itself adds is measured and said.

mod figures;
mod load;
mod questions;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use likeness_contract::ids::Name;
use likeness_contract::ranking::MAX_K;
use likeness_link::client::Client;
use serde::Serialize;

use crate::command::Global;
use crate::command::exit::{Exit, Outcome};
use crate::command::options::within;
use crate::command::output::{self, line, say};
use crate::command::pipeline::DEFAULT_ALIAS;
use figures::Figures;
use load::Load;
use questions::{Draw, Questions};

/// How much the rate grows from step to step of a sweep.
const GROWTH: f64 = 1.5;
/// Bisections of a sweep after the first rate that was too much.
const BISECTIONS: usize = 3;
/// Most steps of a sweep.
const MOST_STEPS: usize = 30;

/// `likeness bench …`.
#[derive(Debug, Clone, Subcommand)]
pub enum BenchCommand {
    /// Ask the searchers at a given rate, or find the rate that they bear.
    Search(BenchArgs),
}

/// Flags of `likeness bench search`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Requests come by a schedule (random gaps, from --seed) and do not wait for answers. A latency counts from the moment at \
which its request was due. `beyond leaf` is what an answer took beyond the slowest leaf's own time: the way to the root, \
embedding, the way to the leaves, merging. A rate is borne when every request is answered in full, the answers keep up, \
and 99 % of them come within --p99-ms.

Examples:
  likeness bench search --rate 200 --duration 30
  likeness bench search --sweep                       the highest rate that is borne
  likeness bench search --rate 50 --draw vectors -k 100 --json
  likeness bench search --rate 100 --queries asked.jsonl

A line of --queries is a list of terms, as in a request:
  [{\"weight\": 1.0, \"term\": {\"attributes\": {\"with\": [\"Smiling\"], \"without\": [\"Male\"]}}}]")]
pub struct BenchArgs {
    /// Requests a second; of a sweep, the first rate.
    #[arg(long, value_name = "N", default_value_t = 50.0)]
    pub rate: f64,
    /// Raise the rate until it is too much, then narrow down.
    #[arg(long)]
    pub sweep: bool,
    /// How long a rate is held.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub duration: f64,
    /// How long requests come before any counts.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub warmup: f64,
    /// Most requests under way; more wait here, and that is said.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub concurrency: usize,
    /// 99 % of the answers must come within so long for a rate to be borne.
    #[arg(long, value_name = "MS", default_value_t = 200.0)]
    pub p99_ms: f64,
    /// What the questions are made of.
    #[arg(long, value_enum, default_value_t = Draw::Attributes)]
    pub draw: Draw,
    /// Different questions that are drawn; they are asked in turn.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub distinct: usize,
    /// Ask these questions instead, a JSON list of terms a line.
    #[arg(long, value_name = "FILE")]
    pub queries: Option<PathBuf>,
    /// Where questions and gaps are drawn from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Results wanted, at most 10000.
    #[arg(short, long, default_value_t = 20)]
    pub k: u32,
    /// Ask for approximate answers that have this part of the true ones, on average.
    #[arg(long, value_name = "SHARE")]
    pub recall: Option<f64>,
    /// Share of the gallery below which an answer is an error.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    pub min_coverage: f64,
    /// Time after which an answer is of no use.
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    pub deadline_ms: u32,
    /// The alias that is asked.
    #[arg(long, default_value = DEFAULT_ALIAS)]
    pub alias: Name,
}

impl BenchArgs {
    fn check(&self) -> Outcome<()> {
        within("rate", self.rate, 0.01, 100_000.0)?;
        within("duration", self.duration, 0.1, 86_400.0)?;
        within("warmup", self.warmup, 0.0, 3_600.0)?;
        within("concurrency", self.concurrency, 1, 100_000)?;
        within("distinct", self.distinct, 1, 1_000_000)?;
        within("p99-ms", self.p99_ms, 0.001, 60_000.0)?;
        within("k", self.k, 1, MAX_K as u32)?;
        within("recall", self.recall.unwrap_or(1.0), 0.0, 1.0)?;
        within("min-coverage", self.min_coverage, 0.0, 1.0)?;
        within("deadline-ms", self.deadline_ms, 1, 60_000)
    }
}

/// Runs `likeness bench …`.
pub async fn run(global: &Global, command: BenchCommand) -> Outcome {
    let BenchCommand::Search(args) = command;
    args.check()?;
    let client = global.connection.client().await?;
    let questions = Questions::new(&client, &args).await?;
    if args.sweep {
        sweep(global, &client, &args, &questions).await
    } else {
        once(global, &client, &args, &questions).await
    }
}

async fn once(global: &Global, client: &Client, args: &BenchArgs, questions: &Questions) -> Outcome {
    let figures = hold(client, args, questions, args.rate).await;
    if global.json {
        output::json(&figures)?
    } else {
        line(figures.render())
    }
    Ok(if figures.failed() == 0 { Exit::Done } else { Exit::Failed })
}

async fn hold(client: &Client, args: &BenchArgs, questions: &Questions, rate: f64) -> Figures {
    let load = Load {
        rate,
        warmup: Duration::from_secs_f64(args.warmup),
        duration: Duration::from_secs_f64(args.duration),
        concurrency: args.concurrency,
        seed: args.seed,
    };
    Figures::of(rate, load.duration, &load.run(client, questions).await)
}

/// A sweep's result.
#[derive(Debug, Serialize)]
struct Swept {
    /// The highest rate that was borne; 0 when none was.
    capacity: f64,
    steps: Vec<Figures>,
}

async fn sweep(global: &Global, client: &Client, args: &BenchArgs, questions: &Questions) -> Outcome {
    let (mut borne, mut too_much, mut rate) = (0.0, None, args.rate);
    let (mut steps, mut bisections) = (Vec::new(), 0);
    while steps.len() < MOST_STEPS && bisections <= BISECTIONS {
        let figures = hold(client, args, questions, rate).await;
        say(figures.summary(args.p99_ms));
        if figures.is_borne(args.p99_ms) {
            borne = rate
        } else {
            too_much = Some(rate)
        }
        steps.push(figures);
        rate = match too_much {
            Some(above) => {
                bisections += 1;
                (borne + above) / 2.0
            }
            None => rate * GROWTH,
        };
    }
    if global.json {
        output::json(&Swept { capacity: borne, steps })?;
    } else {
        line(figures::table(&steps).render());
        line(format!("the highest rate that was borne: {borne:.0} a second"));
    }
    Ok(if borne > 0.0 { Exit::Done } else { Exit::Failed })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    #[test]
    fn a_load_that_can_not_be_is_refused() {
        let check = |line: &str| {
            let args = std::iter::once("bench").chain(line.split_whitespace());
            Line::try_parse_from(args).unwrap().args.check()
        };
        assert!(check("").is_ok() && check("--sweep --rate 10 --draw vectors").is_ok());
        for line in [
            "--rate 0",
            "--rate=-1",
            "--rate NaN",
            "--duration 0",
            "--concurrency 0",
            "-k 0",
            "--min-coverage 2",
            "--p99-ms 0",
        ] {
            assert_eq!(check(line).unwrap_err().exit as u8, 64, "{line}");
        }
    }
}
