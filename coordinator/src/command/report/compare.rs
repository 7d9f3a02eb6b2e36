//! `likeness report compare`: two reports query by query. `likeness releases compare` prints the same of two releases.

use likeness_contract::ids::JobId;
use likeness_evaluation::agreement::PERSISTENCE;
use likeness_evaluation::compare::{Comparison, GroupComparison, MeanAgreement, PairedQuery};
use likeness_evaluation::{QueryScore, decode_scores};
use likeness_link::client::Client;

use super::manifest;
use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::output::{Table, json, line};

/// Prints the report `reports.1` against the report `reports.0`.
pub async fn run(global: &Global, client: &Client, reports: (&JobId, &JobId), top: usize, seed: u64) -> Outcome {
    let compared = compared(client, reports, seed).await?;
    if global.json {
        json(&compared)?;
    } else {
        line(format!("a: {}\nb: {}\n\n{}", reports.0, reports.1, render(&compared, top)));
    }
    Ok(Exit::Done)
}

/// The report `reports.1` against the report `reports.0`.
pub async fn compared(client: &Client, reports: (&JobId, &JobId), seed: u64) -> Outcome<Comparison> {
    let (a, b) = (scores(client, reports.0).await?, scores(client, reports.1).await?);
    likeness_evaluation::compare(&a, &b, seed).map_err(|error| Failure::usage(error.to_string()))
}

async fn scores(client: &Client, report: &JobId) -> Outcome<Vec<QueryScore>> {
    let queries = manifest(client, report).await?.queries;
    let bytes = client.store().read(&queries).await?;
    decode_scores(bytes).map_err(|error| Failure::failed(format!("`{}`: {error}", queries.key)))
}

/// The tables for people, with so many of the queries that moved most.
pub fn render(compared: &Comparison, top: usize) -> String {
    let mut means = Table::new(["queries", "number", "better", "worse", "figure", "a", "b", "b − a", "from", "to"]);
    compared.groups.iter().for_each(|group| add_group(&mut means, group));
    let mut text = means.render() + &agreements(compared);
    for (title, sign) in [("gained", 1.0), ("lost", -1.0)] {
        let queries = furthest(compared, sign, top);
        if !queries.is_empty() {
            text += &format!("\n\nqueries that {title} most\n{}", pairs(&queries).render());
        }
    }
    let apart = furthest_apart(compared, top);
    if !apart.is_empty() {
        text += &format!("\n\nqueries whose first images differ most\n{}", pairs(&apart).render());
    }
    let [of_a, of_b] = compared.unpaired;
    if of_a + of_b > 0 {
        text += &format!("\n\nleft out: {} of a alone, {} of b alone", count_queries(of_a), count_queries(of_b));
    }
    if compared.changed > 0 {
        let changed = count_queries(compared.changed);
        text += &format!("\n\nleft out: {changed} with other relevant or judged items: the galleries differ");
    }
    text
}

fn count_queries(n: u32) -> String {
    if n == 1 { "1 query".into() } else { format!("{n} queries") }
}

fn add_group(table: &mut Table, group: &GroupComparison) {
    for (place, metric) in group.metrics.iter().enumerate() {
        let first = |cell: String| if place == 0 { cell } else { String::new() };
        let counts = [group.queries, group.better, group.worse].map(|n| first(n.to_string()));
        let [low, high] = metric.difference.interval;
        let figures = [format!("{:.3}", metric.a), format!("{:.3}", metric.b)];
        let differences = [metric.difference.mean, low, high].map(|value| format!("{value:+.3}"));
        let cells = [first(group.group.clone())].into_iter().chain(counts).chain([name(&metric.metric).to_string()]);
        table.row(cells.chain(figures).chain(differences));
    }
}

/// How alike the rankings are, per group.
fn agreements(compared: &Comparison) -> String {
    let mut table = Table::new(["queries", "number", "same", "mean", "from", "to"]);
    let mut told = false;
    for group in &compared.groups {
        for (place, MeanAgreement { measure, mean }) in group.agreement.iter().enumerate() {
            let first = |cell: String| if place == 0 { cell } else { String::new() };
            let [low, high] = mean.interval;
            let figures = [mean.mean, low, high].map(|figure| format!("{figure:.3}"));
            let cells = [first(group.group.clone()), first(group.queries.to_string()), measure_name(measure)];
            table.row(cells.into_iter().chain(figures));
            told = true;
        }
    }
    if told {
        return format!("\n\nhow alike the first 100 images are\n{}", table.render());
    }
    "\n\nhow alike the rankings are is not known: a report is of before they were kept, evaluate again".into()
}

fn measure_name(measure: &str) -> String {
    match measure {
        "overlap_at_10" => "overlap@10".into(),
        "overlap_at_100" => "overlap@100".into(),
        "rbo" => format!("RBO ({PERSISTENCE})"),
        other => other.into(),
    }
}

fn name(metric: &str) -> &str {
    match metric {
        "map" => "mAP",
        "p_at_10" => "P@10",
        "r_precision" => "R-prec",
        "ndcg_at_10" => "nDCG@10",
        other => other,
    }
}

/// The queries whose AP moved furthest in the direction of `sign`.
fn furthest(compared: &Comparison, sign: f64, top: usize) -> Vec<&PairedQuery> {
    let moved = |query: &PairedQuery| sign * (query.b - query.a);
    let mut queries: Vec<&PairedQuery> = compared.queries.iter().filter(|query| moved(query) > 0.0).collect();
    queries.sort_by(|a, b| moved(b).total_cmp(&moved(a)).then_with(|| a.text.cmp(&b.text)));
    queries.truncate(top);
    queries
}

/// The queries with the least rank-biased overlap.
fn furthest_apart(compared: &Comparison, top: usize) -> Vec<&PairedQuery> {
    let overlap = |query: &PairedQuery| query.agreement.map_or(1.0, |agreement| agreement.rbo);
    let mut queries: Vec<&PairedQuery> = compared.queries.iter().filter(|query| overlap(query) < 1.0 - 1e-9).collect();
    queries.sort_by(|a, b| overlap(a).total_cmp(&overlap(b)).then_with(|| a.text.cmp(&b.text)));
    queries.truncate(top);
    queries
}

fn pairs(queries: &[&PairedQuery]) -> Table {
    let mut table = Table::new(["a", "b", "b − a", "RBO", "relevant", "set", "query"]);
    for query in queries {
        let PairedQuery { set, text, relevant, a, b, agreement } = query;
        let rbo = agreement.map_or("–".into(), |agreement| format!("{:.3}", agreement.rbo));
        let figures = [format!("{a:.3}"), format!("{b:.3}"), format!("{:+.3}", b - a), rbo, relevant.to_string()];
        table.row(figures.into_iter().chain([set.name().to_string(), shortened(text)]));
    }
    table
}

/// A full query names every attribute: too long for a line.
fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    if text.chars().count() <= MOST { text.into() } else { text.chars().take(MOST).chain("…".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use likeness_evaluation::compare::compare;
    use likeness_evaluation::{Found, QuerySet};

    use super::*;

    fn score(query: u32, average_precision: f64) -> QueryScore {
        let (relevant, judged, chance) = (10, 40, 0.25);
        let (set, text, p_at) = (QuerySet::Pairs, format!("+A{query}"), [average_precision; 4]);
        QueryScore { query, set, text, relevant, judged, average_precision, chance, p_at, further: None, first: None }
    }

    #[test]
    fn the_table_tells_means_moves_and_what_was_left_out() {
        let a: Vec<QueryScore> = [0.5, 0.4, 0.3, 0.2].into_iter().zip(0..).map(|(ap, i)| score(i, ap)).collect();
        let mut b: Vec<QueryScore> = [0.6, 0.3, 0.5, 0.2].into_iter().zip(0..).map(|(ap, i)| score(i, ap)).collect();
        b[3].judged = 41;
        let text = render(&compare(&a, &b, 0).unwrap(), 1);
        assert!(text.contains("pooled        3       2      1  mAP     0.400  0.467  +0.067"), "{text}");
        assert!(
            text.contains("queries that gained most\n")
                && text.contains("0.300  0.500  +0.200    –        10  pairs  +A2")
        );
        assert!(text.contains("not known: a report is of before"), "{text}");
        assert!(!text.contains("+A0") && text.contains("queries that lost most") && text.contains("-0.100"), "{text}");
        assert!(
            text.ends_with("left out: 1 query with other relevant or judged items: the galleries differ"),
            "{text}"
        );
    }

    #[test]
    fn the_table_tells_how_alike_the_rankings_are() {
        let ranked = |query: u32, items: [&str; 3]| QueryScore {
            first: Some(items.into_iter().map(|item| Found { item: item.into(), distance: 0.5 }).collect()),
            ..score(query, 0.5)
        };
        let a = [ranked(0, ["a", "b", "c"]), ranked(1, ["a", "b", "c"])];
        let b = [ranked(0, ["a", "b", "c"]), ranked(1, ["c", "x", "y"])];
        let text = render(&compare(&a, &b, 0).unwrap(), 5);
        assert!(text.contains("overlap@10   0.667  0.333  1.000"), "{text}");
        let (_, apart) = text.split_once("queries whose first images differ most\n").unwrap();
        assert!(apart.contains("+A1") && !apart.contains("+A0"), "{apart}");
    }
}
