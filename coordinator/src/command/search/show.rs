//! An answer as people see it: a table, a picture.

use futures::{StreamExt, TryStreamExt};
use image::RgbImage;
use likeness_contract::search::{
    Coverage, Cursor, ExplainedAttribute, Finding, Hit, HitExplanation, Recall, SearchRequest, SearchResults,
};
use likeness_contract::settings::Vocabulary;
use likeness_link::client::Client;
use likeness_link::images::image_bytes;

use super::{SearchArgs, lists};
use crate::command::exit::Outcome;
use crate::command::output::{Table, line, say, thousands};
use crate::command::sheet::{self, Cell, Mark, Sheet};
use crate::command::shrink;

/// Images that are read from the store at once.
const READS_AT_ONCE: usize = 8;
/// Pictures on a sheet; more would be no sheet.
const MAX_SHEET: usize = 200;

/// An attribute that was asked for.
struct Asked {
    name: String,
    position: usize,
    wanted: i8,
}

impl Asked {
    /// `+Smiling`, `−Male`.
    fn text(&self) -> String {
        signed(&self.name, self.wanted)
    }

    /// Whether a hit is as asked; `None` when its label is not known.
    fn agrees(&self, hit: &Hit) -> Option<bool> {
        let label = *hit.labels.get(self.position)?;
        (label != 0).then_some(label == self.wanted)
    }
}

fn asked(args: &SearchArgs, results: &SearchResults) -> Vec<Asked> {
    let vocabulary = Vocabulary { names: results.vocabulary.clone() };
    let signed = |asked: &[String], wanted: i8| {
        // Whoever answered knew every name.
        let positions = lists(asked).iter().filter_map(|list| vocabulary.positions(list).ok()).flatten().collect();
        let ask = |position: usize| Asked { name: vocabulary.names[position].clone(), position, wanted };
        each_once(positions).into_iter().map(ask).collect::<Vec<_>>()
    };
    [signed(&args.with, 1), signed(&args.without, -1)].into_iter().flatten().collect()
}

fn each_once(positions: Vec<usize>) -> Vec<usize> {
    let mut seen = std::collections::HashSet::new();
    positions.into_iter().filter(|position| seen.insert(*position)).collect()
}

/// Prints hits as a table, and coverage and time as talk. `before` results were on earlier pages.
pub fn print(args: &SearchArgs, before: usize, results: &SearchResults) {
    line(table(&Judged::of(args, results), before, &results.hits));
    legend(results).into_iter().for_each(say);
    say(footer(args, results));
    for reason in &results.coverage.reasons {
        say(format!("  {reason}"));
    }
    if let Some(Recall { estimate, shards, exact }) = &results.recall {
        let part = format!("about {:.1} % of the exact answer is expected", estimate * 100.0);
        say(match shards {
            0 => "exact: no shard was searched approximately".into(),
            _ => format!("approximate: {part}"),
        });
        exact.iter().for_each(|reason| say(format!("  exactly {reason}")));
    }
    if let (Some(page), Some(_)) = (args.page, &results.next) {
        say(format!("more: --page {}", page + 1));
    }
}

/// Results on the pages before.
pub fn ranks_before(args: &SearchArgs, request: &SearchRequest) -> usize {
    match request.cursor.as_deref().and_then(|text| Cursor::from_text(text).ok()) {
        Some(cursor) => cursor.answered as usize,
        None => (args.page.unwrap_or(1) as usize - 1) * args.k as usize,
    }
}

/// What is told of one attribute of one hit.
struct Judgement {
    agrees: Option<bool>,
    /// Whether an estimate says so, and no label.
    guessed: bool,
    /// How likely it is as asked; the margin where nothing turns it into an estimate; nothing where it is not explained.
    chance: String,
}

impl Judgement {
    fn of_label(agrees: Option<bool>) -> Self {
        Self { agrees, guessed: false, chance: String::new() }
    }

    fn of_finding(attribute: &ExplainedAttribute, finding: &Finding) -> Self {
        let as_asked = attribute.wanted > 0;
        let chance = match finding.estimate {
            Some(estimate) => format!(" {:.2}", if as_asked { estimate } else { 1.0 - estimate }),
            None => format!(" margin {:+.2}", if as_asked { finding.margin } else { -finding.margin }),
        };
        Self { agrees: finding.agrees, guessed: finding.label == 0, chance }
    }

    /// `yes 0.93`, `NO 0.12`; `~yes 0.81` by the estimate alone.
    fn text(&self) -> String {
        let word = match self.agrees {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "?",
        };
        let guess = if self.is_guess() { "~" } else { "" };
        format!("{guess}{word}{}", self.chance)
    }

    fn is_guess(&self) -> bool {
        self.guessed && self.agrees.is_some()
    }
}

/// The attributes that were asked for, what is told of each of every hit, and how many agree where that is explained.
struct Judged {
    heads: Vec<String>,
    hits: Vec<(Vec<Judgement>, Option<String>)>,
}

impl Judged {
    fn of(args: &SearchArgs, results: &SearchResults) -> Self {
        match &results.explanation {
            Some(explanation) => {
                let signed = |a: &ExplainedAttribute| signed(&a.name, a.wanted);
                let of_hit = |hit: &HitExplanation| {
                    let findings = explanation.attributes.iter().zip(&hit.attributes);
                    let judged = findings.map(|(attribute, finding)| Judgement::of_finding(attribute, finding));
                    (judged.collect(), Some(format!("{} of {}", hit.agrees, hit.attributes.len())))
                };
                let hits = explanation.hits.iter().map(of_hit).collect();
                Self { heads: explanation.attributes.iter().map(signed).collect(), hits }
            }
            None => {
                let asked = asked(args, results);
                let of_hit = |hit| (asked.iter().map(|asked| Judgement::of_label(asked.agrees(hit))).collect(), None);
                let hits = results.hits.iter().map(of_hit).collect();
                Self { heads: asked.iter().map(Asked::text).collect(), hits }
            }
        }
    }
}

/// `+Smiling`, `−Male`.
fn signed(name: &str, wanted: i8) -> String {
    format!("{}{name}", if wanted > 0 { '+' } else { '−' })
}

fn table(judged: &Judged, before: usize, hits: &[Hit]) -> String {
    let explained = judged.hits.iter().any(|(_, agrees)| agrees.is_some());
    let head = ["rank", "item", "distance"].map(String::from).into_iter().chain(judged.heads.iter().cloned());
    let mut table = Table::with_head(head.chain(explained.then(|| "agrees".to_string())).collect());
    for (rank, (hit, (attributes, agrees))) in hits.iter().zip(&judged.hits).enumerate() {
        let cells = [(before + rank + 1).to_string(), hit.item.clone(), format!("{:.4}", hit.distance)];
        table.row(cells.into_iter().chain(attributes.iter().map(Judgement::text)).chain(agrees.clone()));
    }
    table.render()
}

/// What stands behind the numbers of an explanation.
fn legend(results: &SearchResults) -> Vec<String> {
    let of = |attribute: &ExplainedAttribute| match (&attribute.calibration, &attribute.uncalibrated) {
        (Some(curve), _) => {
            let has = f64::from(curve.has) / f64::from(curve.rows.max(1)) * 100.0;
            let (rows, right, guess) = (thousands(curve.rows.into()), curve.right * 100.0, has.max(100.0 - has));
            let told = format!("{rows} labels ({has:.0} % have it), right for {right:.0} % of them");
            format!("  {}: fitted to {told}; guessing alike for all would be for {guess:.0} %", attribute.name)
        }
        (None, why) => {
            let why = why.as_deref().unwrap_or("not told why");
            format!("  {}: no estimate, only margins (above 0 leans to as asked): {why}", attribute.name)
        }
    };
    let Some(explanation) = &results.explanation else { return Vec::new() };
    let first = "numbers: how likely it is as asked, by what the model sees; ~ where no label is known";
    std::iter::once(first.to_string()).chain(explanation.attributes.iter().map(of)).collect()
}

fn footer(args: &SearchArgs, results: &SearchResults) -> String {
    let Coverage { rows, total_rows, shards, total_shards, .. } = results.coverage;
    let total = results.timings_ms.iter().find(|(stage, _)| stage == "total");
    let took = total.map_or(String::new(), |(_, ms)| format!(" in {ms:.1} ms"));
    let partial = if results.coverage.share() < 1.0 { "PARTIAL ANSWER: " } else { "" };
    let matching = results.matching.map_or(String::new(), |rows| format!(" ({} fit the filter)", thousands(rows)));
    format!(
        "{partial}{} release {}: {} of {} images{matching}, {shards} of {total_shards} shards{took}",
        args.alias,
        results.release,
        thousands(rows),
        thousands(total_rows),
    )
}

/// Draws query and results.
pub async fn draw(client: &Client, args: &SearchArgs, results: &SearchResults) -> Outcome<RgbImage> {
    let judged = Judged::of(args, results);
    let hits: Vec<&Hit> = results.hits.iter().take(MAX_SHEET).collect();
    let reads = hits.iter().map(|hit| image_bytes(client.store(), &hit.image));
    let images: Vec<_> = futures::stream::iter(reads).buffered(READS_AT_ONCE).try_collect().await?;
    let told = hits.iter().zip(&judged.hits).zip(images).enumerate();
    let cells = told.map(|(rank, ((hit, told), bytes))| cell(rank, hit, &judged.heads, told, &bytes)).collect();
    let sheet = Sheet { title: title(args, &judged.heads), subtitle: footer(args, results), cells };
    Ok(sheet::draw(&sheet))
}

fn cell(rank: usize, hit: &Hit, heads: &[String], told: &(Vec<Judgement>, Option<String>), image: &[u8]) -> Cell {
    let (attributes, agrees) = told;
    let mark = |(head, judged): (&String, &Judgement)| {
        let guess = if judged.is_guess() { "~" } else { "" };
        Mark { text: format!("{guess}{head}{}", judged.chance), agrees: judged.agrees }
    };
    let agrees = agrees.as_ref().map_or(String::new(), |agrees| format!("  {agrees}"));
    Cell {
        image: shrink::decode(image).ok().map(|image| image.to_rgb8()),
        caption: format!("{}  {:.3}{agrees}", rank + 1, hit.distance),
        marks: heads.iter().zip(attributes).map(mark).collect(),
    }
}

/// `+Smiling −Male, like 000123.jpg`
fn title(args: &SearchArgs, asked: &[String]) -> String {
    let mut parts = Vec::new();
    if !asked.is_empty() {
        parts.push(asked.join(" "));
    }
    parts.extend(args.like.iter().map(|item| format!("like {item}")));
    let files = args.image.iter().filter_map(|file| file.file_name());
    parts.extend(files.map(|name| format!("like {}", name.to_string_lossy())));
    parts.extend(args.vector.iter().map(|_| "near a vector".to_string()));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::{JobId, Name};
    use likeness_contract::jobs::GenerationRef;
    use likeness_contract::search::{Calibration, Explanation, ImageRef};

    use super::*;
    use crate::command::search::tests::parse;

    fn results() -> SearchResults {
        let hit = |item: &str, labels: [i8; 2]| Hit {
            item: item.into(),
            distance: 0.5,
            labels: labels.to_vec(),
            image: ImageRef { part: "p".into(), row: 0 },
        };
        SearchResults {
            release: 3,
            generation: GenerationRef { gallery: Name::new("g").unwrap(), generation: JobId::new("j").unwrap() },
            hits: vec![hit("a.jpg", [1, -1]), hit("b.jpg", [-1, 0])],
            coverage: Coverage { rows: 500, total_rows: 1000, shards: 2, total_shards: 4, reasons: vec![] },
            vocabulary: vec!["Smiling".into(), "Male".into()],
            timings_ms: vec![("total".into(), 12.34)],
            matching: None,
            recall: None,
            next: None,
            explanation: None,
        }
    }

    #[test]
    fn agreement_is_told_per_attribute() {
        let args = parse("--with smiling --without Male");
        let text = table(&Judged::of(&args, &results()), 0, &results().hits);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["rank", "item", "distance", "+Smiling", "−Male"]);
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["1", "a.jpg", "0.5000", "yes", "yes"]);
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["2", "b.jpg", "0.5000", "NO", "?"]);
    }

    #[test]
    fn an_attribute_asked_twice_is_one_column() {
        let args = parse("--with smiling,Smiling --with Smiling");
        assert_eq!(asked(&args, &results()).len(), 1);
    }

    #[test]
    fn a_name_with_a_comma_is_one_attribute() {
        let results = SearchResults { vocabulary: vec!["A,B".into(), "C".into()], ..results() };
        let texts: Vec<String> = asked(&parse("--with A,B --with C"), &results).iter().map(Asked::text).collect();
        assert_eq!(texts, ["+A,B", "+C"]);
    }

    #[test]
    fn a_partial_answer_is_called_so() {
        let text = footer(&parse("--with Male"), &results());
        let filtered = footer(&parse("--with Male"), &SearchResults { matching: Some(3), ..results() });
        assert!(filtered.contains("500 of 1,000 images (3 fit the filter), "), "{filtered}");
        assert_eq!(text, "PARTIAL ANSWER: main release 3: 500 of 1,000 images, 2 of 4 shards in 12.3 ms");
    }

    #[test]
    fn the_title_tells_the_whole_question() {
        let args = parse("--with Smiling --without Male --like b.jpg --image /tmp/c.png");
        assert_eq!(title(&args, &Judged::of(&args, &results()).heads), "+Smiling −Male, like b.jpg, like c.png");
    }

    #[test]
    fn an_explanation_tells_chances_as_asked_and_how_many_agree() {
        let curve = Calibration { rows: 1_000, has: 400, right: 0.875, slope: 1.0, intercept: 0.0 };
        let attribute = |name: &str, wanted, calibration: Option<Calibration>| ExplainedAttribute {
            name: name.into(),
            wanted,
            uncalibrated: calibration.is_none().then(|| "too few".to_string()),
            calibration,
        };
        let attributes = vec![attribute("Smiling", 1, Some(curve)), attribute("Male", -1, None)];
        let finding = |label, margin, estimate, agrees| Finding { label, margin, estimate, agrees };
        let hits = vec![
            HitExplanation {
                agrees: 2,
                attributes: vec![finding(1, 0.5, Some(0.9), Some(true)), finding(-1, -0.25, None, Some(true))],
            },
            HitExplanation {
                agrees: 0,
                attributes: vec![finding(0, -0.5, Some(0.125), Some(false)), finding(0, 0.5, None, None)],
            },
        ];
        let results = SearchResults { explanation: Some(Explanation { attributes, hits }), ..results() };
        let text = table(&Judged::of(&parse("--with x"), &results), 0, &results.hits);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split_whitespace().last(), Some("agrees"));
        assert!(lines[1].contains("yes 0.90") && lines[1].contains("yes margin +0.25"), "{text}");
        assert!(lines[1].ends_with("2 of 2"), "{text}");
        assert!(lines[2].contains("~NO 0.12") && lines[2].contains("? margin -0.50"), "{text}");
        let legend = legend(&results).join("\n");
        for told in ["Smiling: fitted to 1,000 labels (40 % have it), right for 88 % of them", "would be for 60 %"] {
            assert!(legend.contains(told), "{legend}");
        }
        assert!(legend.contains("Male: no estimate"), "{legend}");
    }
}
