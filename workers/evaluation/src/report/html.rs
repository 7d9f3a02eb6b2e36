//! `report.html`: the page for people.

use super::page::{document, escape, paragraph, section, table};
use super::{AttributeFigures, Embedder, Figure, Report, SetFigures, SingleFigures, Subject, plots};
use likeness_contract::settings::TrainSettings;

use crate::estimates::{AttributeEstimates, EstimateFigures, ReliabilityBin};
use crate::queries::QuerySet;
use crate::scores::QueryScore;
use crate::sheets::gain;
use crate::training::TrainingCurve;
use base64::Engine as _;

/// Most bytes of one thumbnail; a larger one is left out, so that the page stays small.
const MAX_THUMBNAIL_BYTES: usize = 16 << 10;

/// What one query found.
#[derive(Debug, Clone, PartialEq)]
pub struct Sheet {
    /// `best`, `middle`, `worst`.
    pub why: &'static str,
    /// Number of the query.
    pub query: u32,
    /// Best first.
    pub found: Vec<Thumbnail>,
}

/// A picture on a sheet.
#[derive(Debug, Clone, PartialEq)]
pub struct Thumbnail {
    /// Item id.
    pub item: String,
    /// Euclidean distance to the query.
    pub distance: f64,
    /// Whether it fulfils the query.
    pub relevant: bool,
    /// JPEG, at most 96 px and 16 KiB; none when the picture can't be shown.
    pub jpeg: Option<Vec<u8>>,
}

/// The page. `curve` is shown when given; `sheets` as given.
pub fn report_html(report: &Report, scores: &[QueryScore], curve: Option<&TrainingCurve>, sheets: &[Sheet]) -> String {
    let mut body = head(report);
    body += &section("Headline", &headline(report));
    body += &section("How the queries are answered", &distributions(report, scores));
    if let (Some(curve), Some(embedder)) = (curve, &report.subject.embedder) {
        body += &section("Training", &training(&embedder.train_settings, curve));
    }
    body += &section("Result sheets", &result_sheets(sheets, scores));
    body += &section("Attributes", &attributes(report));
    if let Some(figures) = &report.estimates {
        body += &section("Estimates", &estimates(figures));
    }
    body += &section("Best and worst queries", &extremes(report, scores));
    body += &section("How it was measured", &method(report));
    document(&format!("Report {}", report.subject.report), &body)
}

fn head(report: &Report) -> String {
    let subject = &report.subject;
    let rows = format!("{:?}", subject.rows).to_lowercase();
    let queries: u32 = report.sets.iter().map(|set| set.queries).sum();
    let facts = [
        ("report", subject.report.to_string()),
        ("gallery", format!("{}, generation {}", subject.generation.gallery, subject.generation.generation)),
        ("model", model(subject)),
        ("dataset", dataset(subject)),
        ("searched", format!("{} items ({rows} rows)", subject.items)),
        ("queries", format!("{queries} from seed {}", report.settings.seed)),
    ];
    let facts: String =
        facts.iter().map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>\n", escape(value))).collect();
    let title = format!("<h1>{} — retrieval by attributes</h1>\n", escape(subject.generation.gallery.as_str()));
    format!("{title}<dl class=\"facts\">\n{facts}</dl>\n")
}

fn model(subject: &Subject) -> String {
    let Some(Embedder { model_settings: settings, .. }) = &subject.embedder else {
        return format!("embeddings made elsewhere, imported by {}", subject.model);
    };
    let (architecture, dim, px) =
        (settings.architecture.name(), settings.embedding_dim, settings.preprocessing.input_px);
    format!("{} ({architecture}, {dim} dimensions, {px} px)", subject.model)
}

fn dataset(subject: &Subject) -> String {
    let named = |embedder: &Embedder| format!("{}, version {}", embedder.dataset.dataset, embedder.dataset.version);
    subject.embedder.as_ref().map_or("none".into(), named)
}

fn headline(report: &Report) -> String {
    let head = ["set", "queries", "mAP", "chance", "mAP / chance", "P@1", "P@5", "P@10", "P@100"];
    let rows: Vec<Vec<String>> = report.sets.iter().filter(|set| set.queries > 0).map(headline_row).collect();
    let (ours, random) = (report.pooled.map, report.pooled.random_map);
    let verdict = if report.pooled.queries == 0 {
        "There are no singles, pairs and triples.".to_string()
    } else if ours.interval[0] > random {
        format!(
            "Over all {} singles, pairs and triples mAP is {:.3}, where a random order reaches {random:.3}.",
            report.pooled.queries, ours.mean
        )
    } else {
        format!(
            "Over all {} singles, pairs and triples mAP is {:.3}, which is not clearly above the {random:.3} of a random order.",
            report.pooled.queries, ours.mean
        )
    };
    let reading = "mAP is the mean average precision; 1 means that every item that fulfils a query comes before every one \
                   that does not. Chance is the mean share of items that fulfil the query: what a random order finds. Small \
                   figures are 95 % bootstrap intervals over the queries.";
    let figures = format!("<div class=\"headline\">{}</div>", table(&head, &rows));
    figures + &paragraph(&verdict) + &paragraph(reading) + &own_left_out(report) + &further(report)
}

/// Which of the user's queries are not asked.
fn own_left_out(report: &Report) -> String {
    let Some(own) = report.sets.iter().find(|set| set.set == QuerySet::Own && set.left_out > 0) else {
        return String::new();
    };
    let whys: String = report.own_left_out.iter().map(|why| format!("<li>{}</li>\n", escape(why))).collect();
    let more = if own.left_out as usize > report.own_left_out.len() { "<li>…</li>\n" } else { "" };
    let title = format!("{} of {} own queries are not asked:", own.left_out, own.wanted);
    paragraph(&title) + &format!("<ul>\n{whys}{more}</ul>\n")
}

/// Figures by other definitions, where every set has them.
fn further(report: &Report) -> String {
    let row = |set: &SetFigures| {
        let figures = set.further?;
        let cell = |figure: &Figure| format!("{:.3} {}", figure.mean, range(figure));
        let cs = figures.cs_p_at_10.as_ref().map_or("–".into(), cell);
        let [r, ten, hundred, article] =
            [&figures.r_precision, &figures.ndcg_at_10, &figures.ndcg_at_100, &figures.article_map].map(cell);
        Some(vec![set.set.name().to_string(), r, ten, hundred, article, cs])
    };
    let asked = report.sets.iter().filter(|set| set.queries > 0);
    let Some(rows) = asked.map(row).collect::<Option<Vec<_>>>() else { return String::new() };
    let head = ["set", "R-precision", "nDCG@10", "nDCG@100", "mAP as the article has it", "CS-P@10"];
    let reading = "R-precision is P@R for R relevant items. nDCG counts an item by the share of the query's attributes that it \
                   has as asked. The article's mAP is the mean of P@k for k up to R. CS-P@10 is of queries by an image with one \
                   attribute changed, or as it is: each of the first 10 that has the attribute as asked adds the cosine between the \
                   attributes of the two images. “Full” asks for everything known of one item.";
    table(&head, &rows) + &paragraph(reading)
}

fn headline_row(set: &SetFigures) -> Vec<String> {
    let mut row = vec![
        set.set.name().to_string(),
        set.queries.to_string(),
        format!("<b>{:.3}</b> {}", set.map.mean, range(&set.map)),
        format!("{:.3}", set.chance),
        format!("{:.1}×", set.map.mean / set.chance.max(1e-9)),
    ];
    row.extend(set.p_at.iter().map(|at| format!("{:.3}", at.precision.mean)));
    row
}

fn range(figure: &Figure) -> String {
    format!("<span class=\"range\">{:.3}–{:.3}</span>", figure.interval[0], figure.interval[1])
}

fn distributions(report: &Report, scores: &[QueryScore]) -> String {
    let key = "<div class=\"key\"><i class=\"set0\"></i>singles<i class=\"set1\"></i>pairs<i class=\"set2\"></i>triples\
               <i class=\"set3\"></i>full<i class=\"set4\"></i>images<i class=\"set5\"></i>own<i class=\"set6\"></i>alike<i class=\"mean\"></i>mean<i class=\"chance\"></i>a random order</div>\n";
    let spread: String = QuerySet::ALL
        .iter()
        .filter_map(|set| report.set(*set))
        .map(|set| plots::ap_distribution(set, scores))
        .collect();
    format!("{key}<div class=\"row\">{spread}{}</div>\n", plots::precision(report))
}

fn training(train: &TrainSettings, curve: &TrainingCurve) -> String {
    let text = format!(
        "{} epochs of batches of {}, margin {}. Blue: training batches, averaged over neighbouring steps; orange: validation. \
         At the start about half of the triplets are correct by chance.",
        train.epochs, train.batch_size, train.margin
    );
    format!("{}<div class=\"row\">{}</div>\n", paragraph(&text), plots::training(curve))
}

fn result_sheets(sheets: &[Sheet], scores: &[QueryScore]) -> String {
    let text = "The nearest items of some queries: those furthest above chance, in the middle and least above it. A green \
                frame means that the item fulfils the query, a red one that it does not.";
    let sheets: String = sheets.iter().filter_map(|sheet| Some(one_sheet(sheet, find(scores, sheet.query)?))).collect();
    paragraph(text) + &sheets
}

fn one_sheet(sheet: &Sheet, score: &QueryScore) -> String {
    let QueryScore { average_precision, chance, relevant, judged, .. } = score;
    let figures =
        format!("{}: AP {average_precision:.3}, chance {chance:.3}, {relevant} of {judged} items fulfil it", sheet.why);
    let hits: String = sheet.found.iter().map(hit).collect();
    let text = escape(&score.text);
    format!("<div class=\"sheet\"><h3>{text} <span>— {figures}</span></h3><div class=\"hits\">\n{hits}</div></div>\n")
}

fn hit(found: &Thumbnail) -> String {
    let item = escape(&found.item);
    let picture = match &found.jpeg {
        Some(jpeg) if jpeg.len() <= MAX_THUMBNAIL_BYTES => {
            let data = base64::engine::general_purpose::STANDARD.encode(jpeg);
            format!("<img alt=\"{item}\" src=\"data:image/jpeg;base64,{data}\">")
        }
        _ => "no picture".into(),
    };
    let (class, mark) = if found.relevant { ("yes", "✓") } else { ("no", "✗") };
    format!(
        "<figure class=\"hit {class}\"><div class=\"frame\">{picture}</div><figcaption title=\"{item}\">{mark} {:.3}<br>{item}</figcaption></figure>\n",
        found.distance
    )
}

fn attributes(report: &Report) -> String {
    let mut sorted: Vec<&AttributeFigures> = report.attributes.iter().collect();
    sorted.sort_by(|a, b| attribute_gain(b).total_cmp(&attribute_gain(a)).then(a.attribute.cmp(&b.attribute)));
    let head = [
        "attribute",
        "share",
        "AP +",
        "chance",
        "P@10 +",
        "AP −",
        "chance",
        "P@10 −",
        "mAP in pairs, triples",
        "queries",
    ];
    let rows: Vec<Vec<String>> = sorted.iter().map(|figures| attribute_row(figures)).collect();
    let text = "Bars: AP of the query for having the attribute (left) and for not having it (right), alone; orange: chance. \
                Sorted by the distance between the two on the left. In the table, an orange AP is not above chance.";
    let plots = [true, false].map(|positive| plots::attributes(&sorted, positive)).concat();
    format!("{}<div class=\"row\">{plots}</div>{}", paragraph(text), table(&head, &rows))
}

fn attribute_gain(figures: &AttributeFigures) -> f64 {
    figures.with.map_or(f64::NEG_INFINITY, |single| single.average_precision - single.chance)
}

fn attribute_row(figures: &AttributeFigures) -> Vec<String> {
    let known = (figures.has + figures.has_not).max(1) as f64;
    let mut row = vec![escape(&figures.attribute), format!("{:.1} %", 100.0 * figures.has as f64 / known)];
    row.extend(single_cells(figures.with));
    row.extend(single_cells(figures.without));
    row.push(figures.combined_map.map_or("–".into(), |map| format!("{map:.3}")));
    row.push(figures.combined_queries.to_string());
    row
}

fn single_cells(single: Option<SingleFigures>) -> Vec<String> {
    let Some(SingleFigures { average_precision, chance, p_at_10, .. }) = single else {
        return vec!["–".into(); 3];
    };
    let class = if average_precision > chance { "" } else { " class=\"low\"" };
    let ap = format!("<span{class}>{average_precision:.3}</span>");
    vec![ap, format!("{chance:.3}"), format!("{p_at_10:.2}")]
}

/// The reliability table, and how often the head is right.
fn estimates(figures: &EstimateFigures) -> String {
    let text = format!(
        "The head of this model estimates for every attribute how likely an image has it, and a query ranks by the product of \
         these estimates: the classifier that the head is, by its sum of log-probabilities, ranks no other way. Here they are \
         held against the labels of the searched items. Where they can be trusted, the mean estimate of a line is the share \
         that has the attribute; weighted, they are {:.3} apart. An attribute that fewer than 30 items have, or have not, is \
         rare: its figures say little.",
        figures.calibration_error
    );
    let bins: Vec<Vec<String>> = figures.reliability.iter().map(reliability_row).collect();
    let attributes: Vec<Vec<String>> = figures.attributes.iter().map(estimates_row).collect();
    let bins = table(&["estimates", "number", "mean estimate", "share that has it", "95 % interval"], &bins);
    let attributes = table(&["attribute", "items", "right", "95 % interval", "calibration error", ""], &attributes);
    format!("{}<div class=\"row\"><div>{bins}</div><div>{attributes}</div></div>\n", paragraph(&text))
}

fn reliability_row(bin: &ReliabilityBin) -> Vec<String> {
    let [low, high] = bin.interval;
    vec![
        format!("{:.1}–{:.1}", bin.from, bin.from + 0.1),
        bin.items.to_string(),
        format!("{:.3}", bin.estimate),
        format!("{:.3}", bin.share),
        format!("{low:.3}–{high:.3}"),
    ]
}

fn estimates_row(figures: &AttributeEstimates) -> Vec<String> {
    let [low, high] = figures.interval;
    vec![
        escape(&figures.attribute),
        figures.items.to_string(),
        format!("{:.3}", figures.right),
        format!("{low:.3}–{high:.3}"),
        format!("{:.3}", figures.calibration_error),
        if figures.rare { "rare".into() } else { String::new() },
    ]
}

fn extremes(report: &Report, scores: &[QueryScore]) -> String {
    let head = ["query", "set", "relevant", "AP", "chance", "AP − chance", "P@10"];
    let list = |numbers: &[u32]| {
        let rows: Vec<Vec<String>> = numbers.iter().filter_map(|query| find(scores, *query)).map(query_row).collect();
        table(&head, &rows)
    };
    format!(
        "<div class=\"row\"><div><h3>Furthest above chance</h3>{}</div><div><h3>Least above chance</h3>{}</div></div>\n",
        list(&report.best),
        list(&report.worst)
    )
}

fn query_row(score: &QueryScore) -> Vec<String> {
    vec![
        escape(&score.text),
        score.set.name().into(),
        format!("{} / {}", score.relevant, score.judged),
        format!("{:.3}", score.average_precision),
        format!("{:.3}", score.chance),
        format!("{:+.3}", gain(score)),
        format!("{:.2}", score.p_at[2]),
    ]
}

fn find(scores: &[QueryScore], query: u32) -> Option<&QueryScore> {
    scores.get(query as usize).filter(|score| score.query == query)
}

fn method(report: &Report) -> String {
    let settings = &report.settings;
    let mut body = paragraph(&format!(
        "An item is relevant to a query when it has every + attribute and no − attribute; an item whose label is not known \
         for an attribute of a query is left out of that query. P@K divides by K even where fewer items are there. Average \
         precision is the mean, over all relevant items, of the share of relevant items up to each one's rank. Ranking is by \
         Euclidean distance, ties by item id. Queries need at least {} relevant items; pairs and triples at most half of the \
         items, signs at random; the full ones have the item that they were made from. A random order reaches a mean average precision a little above the share of relevant items: \
         its exact expectation is given beside it.",
        settings.min_relevant
    ));
    let head = [
        "set",
        "wanted",
        "asked",
        "left out",
        "share of relevant",
        "mAP of a random order",
        "queries with items left out",
        "items left out in all",
    ];
    let rows: Vec<Vec<String>> = report
        .sets
        .iter()
        .map(|set| {
            vec![
                set.set.name().into(),
                set.wanted.to_string(),
                set.queries.to_string(),
                set.left_out.to_string(),
                format!("{:.4}", set.chance),
                format!("{:.4}", set.random_map),
                set.queries_with_unjudged.to_string(),
                set.unjudged.to_string(),
            ]
        })
        .collect();
    body += &table(&head, &rows);
    let weights = report.subject.embedder.as_ref().map(|embedder| format!("weights {}, ", embedder.weights));
    let made = format!("{}made by {}", weights.unwrap_or_default(), report.software);
    body + &format!("<p><code>{}</code></p>\n", escape(&made))
}
