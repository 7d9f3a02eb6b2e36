use likeness_contract::ids::Name;
use likeness_contract::settings::{Architecture, Preprocessing, QueryEncoding};

use super::*;
use crate::gallery::PlainBlock;
use crate::queries::draw_queries;
use crate::training::{CurvePoint, TrainingCurve};

const HOSTILE: &str = "<script>alert('&\"')</script>";

fn subject(items: u64) -> Subject {
    let job = |text: &str| JobId::new(text).unwrap();
    Subject {
        report: job("report-1"),
        generation: GenerationRef { gallery: Name::new("faces").unwrap(), generation: job("gen-1") },
        model: job("model-1"),
        embedder: Some(Embedder {
            weights: Digest::of(b"weights"),
            model_settings: ModelSettings {
                architecture: Architecture::CnnS,
                embedding_dim: 128,
                encoding: QueryEncoding::ThreeState,
                preprocessing: Preprocessing::imagenet(64),
            },
            train_settings: TrainSettings::default(),
            dataset: DatasetRef { dataset: Name::new("celeba").unwrap(), version: job("ingest-1") },
        }),
        rows: Split::Test,
        items,
    }
}

fn example() -> (Report, Vec<QueryScore>) {
    let names = ["Smiling", "Male", HOSTILE, "Hat"].map(String::from).to_vec();
    let vocabulary = Vocabulary { names };
    // Smiling is not known of every tenth item; nobody wears a hat.
    let labels: Vec<i8> = (0..200i32)
        .flat_map(|i| {
            [if i % 10 == 0 { 0 } else { i % 2 * 2 - 1 }, i / 2 % 2 * 2 - 1, [1, -1, 0][i as usize / 4 % 3], -1]
        })
        .map(|label| label as i8)
        .collect();
    let settings = EvaluateSettings { pairs: 10, triples: 10, ..EvaluateSettings::default() };
    let items: Vec<String> = (0..200).map(|i| format!("item-{i:03}")).collect();
    let drawn = draw_queries(&vocabulary, &labels, &|item| items[item].clone(), &settings).unwrap();
    let mut counts = LabelCounts::new(4);
    let block = PlainBlock::new(items, vec![-0.01; 200 * 9], labels, 9, 4).unwrap();
    counts.add(&block);
    let mut estimates = Estimates::new(4);
    estimates.add(&block);
    let scores: Vec<QueryScore> = drawn
        .queries
        .iter()
        .map(|query| QueryScore {
            query: query.number,
            set: query.set,
            text: query.text.clone(),
            relevant: 20,
            judged: if query.text.contains("Smiling") { 180 } else { 200 },
            average_precision: 0.2 + 0.03 * f64::from(query.number % 17),
            chance: 20.0 / if query.text.contains("Smiling") { 180.0 } else { 200.0 },
            p_at: [1.0, 0.8, 0.6, 0.15],
            further: Some(Further {
                r_precision: 0.5,
                article_ap: 0.25,
                ndcg_at_10: 0.75,
                ndcg_at_100: 0.125,
                cs_p_at_10: query.image.as_ref().map(|_| 0.375),
            }),
            first: None,
        })
        .collect();
    (Report::new(subject(200), settings, &drawn, &counts, Some(&estimates), &scores), scores)
}

fn sheets(report: &Report) -> Vec<Sheet> {
    let thumbnail = |i: u8, jpeg| Thumbnail { item: format!("{HOSTILE}{i}"), distance: 0.5, relevant: i < 6, jpeg };
    let found = vec![thumbnail(0, Some(vec![1, 2, 3])), thumbnail(9, None), thumbnail(1, Some(vec![0; 20_000]))];
    vec![Sheet { why: "best", query: report.best[0], found }]
}

#[test]
fn the_json_has_its_stable_layout_and_reads_back() {
    let (report, _) = example();
    let bytes = report_json(&report);
    assert_eq!(serde_json::from_slice::<Report>(&bytes).unwrap(), report);
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(json["format"], "likeness-report-1");
    assert_eq!(json["subject"]["generation"]["gallery"], "faces");
    assert_eq!(json["headline"][0]["set"], "singles");
    assert_eq!(json["sets"][0]["wanted"], 8);
    assert_eq!(json["sets"][0]["left_out"], 1);
    assert_eq!(json["sets"][0]["queries_with_unjudged"], 2);
    assert_eq!(json["sets"][0]["unjudged"], 40);
    assert_eq!(json["sets"][1]["p_at"][3]["k"], 100);
    assert_eq!(json["sets"][1]["further"]["ndcg_at_100"]["mean"], 0.125);
    assert_eq!(json["sets"][1]["further"]["cs_p_at_10"], serde_json::Value::Null);
    assert_eq!(json["sets"][4]["further"]["cs_p_at_10"]["mean"], 0.375);
    assert_eq!(json["attributes"][0]["attribute"], "Smiling");
    assert_eq!(json["estimates"]["attributes"][0]["items"], 180);
    assert_eq!(json["estimates"]["attributes"][3]["rare"], true);
    assert_eq!(json["attributes"][0]["unknown"], 20);
    assert_eq!(json["attributes"][3]["with"], serde_json::Value::Null);
    assert_eq!(json["attributes"][3]["without"]["query"], 6);
    let (map, interval) = (&json["sets"][1]["map"]["mean"], &json["sets"][1]["map"]["interval"]);
    assert_eq!(map, &json["headline"][1]["map"]);
    assert!(interval[0].as_f64() < map.as_f64() && map.as_f64() < interval[1].as_f64());
}

#[test]
fn the_headline_is_the_mean_over_the_queries_of_a_set() {
    let (report, scores) = example();
    let singles: Vec<f64> = scores[..7].iter().map(|score| score.average_precision).collect();
    assert_eq!(report.headline[0].queries, 7);
    assert!((report.headline[0].map - singles.iter().sum::<f64>() / 7.0).abs() < 1e-15);
    assert_eq!(report.headline[0].p_at, [1.0, 0.8, 0.6, 0.15].map(|p: f64| [p; 7].iter().sum::<f64>() / 7.0));
    assert!(report.sets[0].random_map > report.sets[0].chance);
}

#[test]
fn best_and_worst_queries_do_not_overlap() {
    let (report, scores) = example();
    assert!(report.best.iter().all(|query| !report.worst.contains(query)));
    let ap = |query: u32| scores[query as usize].average_precision;
    assert!(ap(report.best[0]) > 0.6 && ap(report.worst[0]) < 0.26);
}

#[test]
fn other_sets_are_not_pooled() {
    let (report, scores) = example();
    let pooled = scores.iter().filter(|score| score.set.is_pooled()).count();
    assert_eq!(report.pooled.queries as usize, pooled);
    assert!(pooled < scores.len() && report.headline.len() == 5);
    assert!(report.best.iter().chain(&report.worst).all(|query| (*query as usize) < pooled));
}

#[test]
fn figures_that_one_range_lacks_are_left_out_of_its_set() {
    let (report, mut scores) = example();
    scores[3].further = None;
    let of = |set| further_figures(&of_set(&scores, set), 0, 0);
    assert!(of(QuerySet::Singles).is_none() && of(QuerySet::Pairs).is_some());
    let mut without = report;
    without.sets[0].further = None;
    let old = report_html(&without, &scores, None, &[]);
    assert!(!old.contains("R-precision") && old.contains("<h2>Headline</h2>"));
}

#[test]
fn the_page_is_self_contained_and_escapes_what_comes_from_data() {
    let (report, scores) = example();
    let points = |n: u64| (0..n).map(|step| CurvePoint { step, loss: 0.1, correct: 0.7 }).collect();
    let curve = TrainingCurve { train: points(1000), validation: points(3) };
    let html = report_html(&report, &scores, Some(&curve), &sheets(&report));
    assert!(!html.contains("<script") && html.contains("&lt;script&gt;"));
    assert!(!html.contains("http://") && !html.contains("https://"));
    assert!(html.contains("data:image/jpeg;base64,AQID") && html.matches("no picture").count() == 2);
    for heading in
        ["Headline", "Training", "Result sheets", "Attributes", "Best and worst queries", "How it was measured"]
    {
        assert!(html.contains(&format!("<h2>{heading}</h2>")), "{heading}");
    }
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    assert!(html.len() < 200_000 && !html.contains("NaN") && !html.contains("inf"));
}

#[test]
fn a_page_without_curve_and_sheets_and_with_one_query_is_still_whole() {
    let (mut report, scores) = example();
    report.sets.truncate(1);
    let html = report_html(&report, &scores[..1], None, &[]);
    assert!(!html.contains("<h2>Training</h2>") && html.ends_with("</html>\n"));
}

#[test]
fn a_report_of_embeddings_from_elsewhere_says_so_and_has_no_model() {
    let (mut report, scores) = example();
    report.subject.embedder = None;
    let own = EvaluateSettings::default();
    let told: Vec<QuerySet> = QuerySet::ALL.into_iter().filter(|set| is_told(*set, &own, false)).collect();
    assert_eq!(told, [QuerySet::Alike]);
    let read: Report = serde_json::from_slice(&report_json(&report)).unwrap();
    assert_eq!(read, report);
    let json: serde_json::Value = serde_json::from_slice(&report_json(&report)).unwrap();
    assert!(json["subject"].get("weights").is_none() && json["subject"]["model"] == "model-1");
    let html = report_html(&report, &scores, None, &[]);
    assert!(html.contains("embeddings made elsewhere, imported by model-1") && !html.contains("weights"));
}
