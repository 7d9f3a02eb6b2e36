//! Explanations over several searchers: the figures are of the generation, whoever holds it.

use likeness_contract::ranking::canonical_d2;
use likeness_contract::search::{Explanation, SearchErrorKind, SearchRequest, SearchResults, Term, WeightedTerm};
use likeness_model::Model;

use super::*;

fn tower(model: &Model, with: &[usize], without: &[usize]) -> Vec<f32> {
    let input = encode_query(QueryEncoding::ThreeState, 3, with, without);
    let input = Tensor::from_vec(input, (1, 3), &Device::Cpu).unwrap();
    model.embed_attributes(&input).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn explanation(results: &SearchResults) -> &Explanation {
    results.explanation.as_ref().expect("it was asked for")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_explanation_is_the_same_from_one_searcher_and_from_two() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    bench.alias(Some(generation.served(1)), None).await;
    let _a = bench.searcher("a", 1);
    bench.placed(&generation.reference, 1, 1).await;
    let terms = vec![attributes(&["Eyeglasses"], &["Male"]), Term::Item { item: "000033.jpg".into() }];
    let question = SearchRequest { explain: true, paged: true, ..strict(request(terms)) };
    let alone = bench.ask_all(&question).await;
    let explained = explanation(&alone);
    let names: Vec<_> = explained.attributes.iter().map(|a| (a.name.as_str(), a.wanted)).collect();
    assert_eq!(names, [("Eyeglasses", 1), ("Male", -1)]);
    // Three of four rows were not trained on, and of a third of these the label is not known.
    let [glasses, male] = &explained.attributes[..] else { panic!("two") };
    let curve = glasses.calibration.expect("labels enough");
    assert_eq!((curve.rows, curve.has), (750, 375));
    assert!(male.calibration.is_none() && male.uncalibrated.as_ref().unwrap().contains("0 of them the rarer one"));
    let (toward, away) = (tower(&generation.model, &[2], &[]), tower(&generation.model, &[], &[2]));
    assert_eq!(explained.hits.len(), 20);
    for (hit, told) in alone.hits.iter().zip(&explained.hits) {
        let [glasses, male] = &told.attributes[..] else { panic!("two") };
        let row = generation.embedding(&hit.item);
        let margin = canonical_d2(row, &away).sqrt() - canonical_d2(row, &toward).sqrt();
        assert!((glasses.margin - margin).abs() < 1e-6, "{} {margin}", glasses.margin);
        let estimate = curve.estimate(glasses.margin);
        assert_eq!((glasses.label, glasses.estimate), (hit.labels[2], Some(estimate)));
        let has = if hit.labels[2] == 0 { estimate >= 0.5 } else { hit.labels[2] > 0 };
        assert_eq!((glasses.agrees, male.agrees), (Some(has), Some(true)));
        assert_eq!(told.agrees, 1 + u32::from(has));
    }

    let _b = bench.searcher("b", 1);
    bench.placed(&generation.reference, 2, 1).await;
    for _ in 0..4 {
        // Either of them answers as root; each fits for itself.
        let both = bench.ask_all(&question).await;
        assert_eq!((&both.hits, explanation(&both)), (&alone.hits, explained));
    }
    let next = question.after(alone.next.clone().expect("there is more"));
    let page = bench.ask(&next).await.unwrap();
    assert_eq!((explanation(&page).hits.len(), &explanation(&page).attributes), (20, &explained.attributes));

    let nothing = SearchRequest { explain: true, ..request(vec![Term::Item { item: "000033.jpg".into() }]) };
    let error = bench.ask(&nothing).await.unwrap_err();
    assert_eq!(error.kind, SearchErrorKind::Invalid);
    let unexplained = bench.ask_all(&SearchRequest { explain: false, ..question }).await;
    assert_eq!((&unexplained.hits, unexplained.explanation), (&alone.hits, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_items_and_attributes_are_one_weighted_sum() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    bench.alias(Some(generation.served(1)), None).await;
    let _a = bench.searcher("a", 1);
    bench.placed(&generation.reference, 1, 1).await;
    let weighted = |weight: f32, term: Term| WeightedTerm { weight, term };
    let item = |item: &str| Term::Item { item: item.into() };
    let terms = vec![
        weighted(1.0, item("000033.jpg")),
        weighted(0.5, item("000041.jpg")),
        weighted(-0.25, attributes(&["Eyeglasses"], &[])),
    ];
    let results = bench.ask_all(&SearchRequest { terms, ..request(vec![]) }).await;
    let glasses = tower(&generation.model, &[2], &[]);
    let (first, second) = (generation.embedding("000033.jpg"), generation.embedding("000041.jpg"));
    let sum = |at: usize| f64::from(first[at]) + 0.5 * f64::from(second[at]) - 0.25 * f64::from(glasses[at]);
    let sum: Vec<f64> = (0..DIM).map(sum).collect();
    let norm = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
    let query: Vec<f32> = sum.into_iter().map(|v| (v / norm) as f32).collect();
    let mut expected = generation.nearest(&query, 22, "000033.jpg");
    expected.retain(|(item, _)| item != "000041.jpg");
    assert_eq!(found(&results.hits), expected[..20]);
}
