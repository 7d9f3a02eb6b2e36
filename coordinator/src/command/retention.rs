//! `likeness retention`: which old datasets, models, generations, reports and answers nobody needs, and their deletion.

use clap::Args;
use likeness::core::retention::{Judged, Policy, Unit};
use likeness::shell::retention::{self, Fate};
use serde::Serialize;

use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::output::{self, Table, count, data_size, line, moment, say};

/// Milliseconds of a day.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Flags of `likeness retention`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --apply nothing is deleted. What serves, the newest releases of every alias, what a running job names or one that may still be \
retried (30 days), the newest version of every dataset, and what these need, are always held. Right before something is deleted it is \
looked at again; a job or a promotion that begins meanwhile either holds it or is refused. Releases themselves, specs, records and outcomes \
of jobs stay: they tell what served when. Files that users brought (--init, --queries, search --batch) and objects that nothing refers to go after a day.

A model that is deleted can't be brought back by a rollback: keep as many releases as you may want to go back.

Examples:
  likeness retention                                    what would go
  likeness retention --held                             and what is held, by whom
  likeness retention --keep 5 --older-than 30 --apply   delete")]
pub struct RetentionArgs {
    /// Newest releases of every alias whose model, generation and report are kept; at least the one that serves.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    keep: u32,
    /// Delete only what is at least so old, counted from when it was complete.
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    older_than: u32,
    /// Tell what is held too, and why.
    #[arg(long)]
    held: bool,
    /// Delete it.
    #[arg(long)]
    apply: bool,
}

/// A unit as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    kind: &'static str,
    place: &'a str,
    objects: u64,
    bytes: u64,
    /// When it was complete, milliseconds since 1970.
    modified_ms: u64,
    /// Why it is held; null when it may go.
    held: Option<&'a str>,
    /// With --apply: whether it was deleted.
    deleted: bool,
}

impl<'a> Row<'a> {
    fn of(unit: &'a Unit, held: Option<&'a str>, deleted: bool) -> Self {
        let Unit { kind, place, objects, bytes, modified_ms } = unit;
        let (objects, bytes, modified_ms) = (*objects, *bytes, *modified_ms);
        Self { kind: kind.name(), place, objects, bytes, modified_ms, held, deleted }
    }
}

/// Looks, and deletes if told to.
pub async fn run(global: &Global, args: RetentionArgs) -> Outcome {
    let policy = Policy { keep: args.keep as usize, older_than_ms: u64::from(args.older_than) * DAY_MS };
    let client = global.connection.client().await?;
    let judged = retention::look(client.store(), policy).await?;
    let (going, held): (Vec<Judged>, Vec<Judged>) = judged.into_iter().partition(|judged| judged.held.is_none());
    let going: Vec<Unit> = going.into_iter().map(|judged| judged.unit).collect();
    let fates = match args.apply {
        true => retention::apply(client.store(), going, policy).await?,
        false => going.into_iter().map(|unit| (unit, Fate::Kept(String::new()))).collect(),
    };
    let shown = if args.held { held.as_slice() } else { &[] };
    if global.json {
        print_json(&fates, shown)?;
    } else {
        print(&fates, shown, args.apply);
    }
    Ok(Exit::Done)
}

fn print_json(fates: &[(Unit, Fate)], held: &[Judged]) -> Result<(), Failure> {
    let fate = |(unit, fate): &'_ (Unit, Fate)| match fate {
        Fate::Deleted => (unit.clone(), None, true),
        Fate::Kept(why) => (unit.clone(), (!why.is_empty()).then(|| why.clone()), false),
    };
    let of_held = held.iter().map(|judged| (judged.unit.clone(), judged.held.clone(), false));
    let all: Vec<(Unit, Option<String>, bool)> = fates.iter().map(fate).chain(of_held).collect();
    let rows: Vec<Row<'_>> = all.iter().map(|(unit, held, deleted)| Row::of(unit, held.as_deref(), *deleted)).collect();
    output::json(&rows)
}

fn print(fates: &[(Unit, Fate)], held: &[Judged], applied: bool) {
    if !held.is_empty() {
        let mut table = Table::new(["kind", "held", "size", "complete (UTC)", "why"]);
        for Judged { unit, held } in held {
            row(&mut table, unit, held.clone().unwrap_or_default());
        }
        line(table.render());
        line("");
    }
    if fates.is_empty() {
        return say("nothing is old and held by nobody");
    }
    let mut table = Table::new(["kind", if applied { "what" } else { "would go" }, "size", "complete (UTC)", ""]);
    for (unit, fate) in fates {
        let fate = match fate {
            Fate::Deleted => "deleted".into(),
            Fate::Kept(why) if why.is_empty() => String::new(),
            Fate::Kept(why) => format!("kept: {why}"),
        };
        row(&mut table, unit, fate);
    }
    line(table.render());
    say(total(fates, applied));
}

fn row(table: &mut Table, unit: &Unit, last: String) {
    let Unit { kind, place, objects: _, bytes: size, modified_ms } = unit;
    table.row([kind.name().to_string(), place.clone(), data_size(*size), moment(*modified_ms), last]);
}

fn total(fates: &[(Unit, Fate)], applied: bool) -> String {
    let counted = fates.iter().filter(|(_, fate)| !applied || *fate == Fate::Deleted).map(|(unit, _)| unit);
    let (mut size, mut objects) = (0, 0);
    counted.for_each(|unit| {
        size += unit.bytes;
        objects += unit.objects;
    });
    let what = format!("{} in {}", data_size(size), count(objects, "object"));
    if applied { format!("deleted {what}") } else { format!("{what} would go: --apply deletes them") }
}

#[cfg(test)]
mod tests {
    use likeness::core::retention::Kind;

    use super::*;

    #[test]
    fn the_total_counts_what_goes() {
        let unit = |size| Unit { kind: Kind::Model, place: "models/m".into(), objects: 2, bytes: size, modified_ms: 0 };
        let fates = [(unit(1_000), Fate::Deleted), (unit(5_000), Fate::Kept("job `j` is running".into()))];
        assert!(total(&fates, true).ends_with("in 2 objects"), "{}", total(&fates, true));
        assert!(total(&fates, false).contains("in 4 objects would go"), "{}", total(&fates, false));
    }
}
