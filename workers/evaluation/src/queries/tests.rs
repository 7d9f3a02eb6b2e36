use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::bootstrap::{below, stream};
use crate::gallery::{Block, Judgement, PlainBlock, judge};

fn draw_queries(vocabulary: &Vocabulary, labels: &[i8], settings: &EvaluateSettings) -> Result<DrawnQueries> {
    super::draw_queries(vocabulary, labels, &|item| format!("item {item}"), settings)
}

fn vocabulary(attributes: usize) -> Vocabulary {
    Vocabulary { names: (0..attributes).map(|i| format!("A{i}")).collect() }
}

fn random_labels(items: usize, attributes: usize, unknown: bool, seed: u64) -> Vec<i8> {
    let mut rng = stream(seed, 0);
    let levels = if unknown { 3 } else { 2 };
    (0..items * attributes).map(|_| [1, -1, 0][below(&mut rng, levels) as usize]).collect()
}

fn settings(pairs: u32, triples: u32) -> EvaluateSettings {
    EvaluateSettings { pairs, triples, ..EvaluateSettings::default() }
}

/// Relevant and judged items.
fn counts(query: &Query, labels: &[i8], attributes: usize) -> (u64, u64) {
    let items: Vec<String> = (0..labels.len() / attributes).map(|item| format!("item {item}")).collect();
    let block = PlainBlock::new(items, vec![], labels.to_vec(), 0, attributes).unwrap();
    let judged: Vec<Judgement> = (0..block.rows()).map(|row| judge(query, &block, row)).collect();
    let count = |wanted: fn(&Judgement) -> bool| judged.iter().filter(|judgement| wanted(judgement)).count() as u64;
    (count(|j| *j == Judgement::Relevant), count(|j| *j != Judgement::Unjudged))
}

#[test]
fn sets_have_the_wanted_sizes_and_no_duplicates() {
    let labels = random_labels(500, 12, false, 1);
    let drawn = draw_queries(&vocabulary(12), &labels, &settings(100, 150)).unwrap();
    let sizes: Vec<(u32, u32)> = drawn.sets.iter().map(|set| (set.wanted, set.drawn)).collect();
    assert_eq!(sizes, [(24, 24), (100, 100), (150, 150), (300, 300), (300, 300)]);
    let distinct: HashSet<&str> = drawn.queries.iter().map(|query| query.text.as_str()).collect();
    assert_eq!(distinct.len(), 874);
    assert!(drawn.queries.iter().enumerate().all(|(i, query)| query.number as usize == i));
}

#[test]
fn the_same_seed_draws_the_same_queries_and_another_seed_others() {
    let labels = random_labels(300, 10, true, 2);
    let draw =
        |seed| draw_queries(&vocabulary(10), &labels, &EvaluateSettings { seed, ..settings(50, 50) }).unwrap().encode();
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
}

#[test]
fn signs_and_attributes_are_spread_evenly() {
    let labels = random_labels(2_000, 20, false, 3);
    let drawn = draw_queries(&vocabulary(20), &labels, &settings(0, 1_000)).unwrap();
    let terms: Vec<Term> =
        drawn.queries.iter().filter(|q| q.set == QuerySet::Triples).flat_map(|q| q.terms.clone()).collect();
    let positive = terms.iter().filter(|term| term.positive).count();
    assert!((1_350..1_650).contains(&positive), "{positive} of 3000 are positive");
    for attribute in 0..20 {
        let count = terms.iter().filter(|term| term.attribute == attribute).count();
        assert!((100..200).contains(&count), "attribute {attribute}: {count} of 3000");
    }
}

#[test]
fn fewer_queries_are_drawn_when_the_data_has_no_more() {
    // Two attributes, always equal: of the four signed pairs only two have relevant items, each half of all.
    let labels: Vec<i8> = (0..40).flat_map(|item| [if item % 2 == 0 { 1 } else { -1 }; 2]).collect();
    let drawn = draw_queries(&vocabulary(2), &labels, &settings(300, 300)).unwrap();
    let texts: Vec<&str> = drawn.queries.iter().skip(4).take(2).map(|query| query.text.as_str()).collect();
    assert_eq!(drawn.sets[1], SetCount { set: QuerySet::Pairs, wanted: 300, drawn: 2 });
    assert_eq!(drawn.sets[2].drawn, 0);
    assert!(texts.contains(&"+A0 +A1") && texts.contains(&"−A0 −A1"));
}

#[test]
fn rare_attributes_and_empty_galleries_are_left_out_or_refused() {
    let labels: Vec<i8> = (0..20).flat_map(|item| [if item < 4 { 1 } else { -1 }]).collect();
    let drawn = draw_queries(&vocabulary(1), &labels, &settings(300, 300)).unwrap();
    let of = |set| drawn.queries.iter().filter(move |query| query.set == set).map(|query| query.text.as_str());
    assert_eq!(of(QuerySet::Singles).collect::<Vec<_>>(), ["−A0"]);
    // Only four have the attribute: taking it away is asked of them, giving it to the others is not.
    assert_eq!(of(QuerySet::Images).collect::<std::collections::BTreeSet<_>>().len(), 4);
    assert!(of(QuerySet::Images).all(|text| text.ends_with(" −A0")));
    assert_eq!(of(QuerySet::Full).count(), 2);
    assert!(draw_queries(&vocabulary(1), &[], &settings(1, 1)).is_err());
    assert!(draw_queries(&vocabulary(0), &[], &settings(1, 1)).is_err());
    assert!(draw_queries(&vocabulary(2), &[1, 1, 1], &settings(1, 1)).is_err());
}

#[test]
fn a_thousand_attributes_are_drawn_from_without_listing_all_triples() {
    let labels = random_labels(64, 1_000, false, 4);
    let drawn = draw_queries(&vocabulary(1_000), &labels, &settings(300, 300)).unwrap();
    assert_eq!(drawn.sets.iter().map(|set| set.drawn).collect::<Vec<_>>()[1..3], [300, 300]);
}

#[test]
fn stored_queries_are_checked_when_they_are_read() {
    let labels = random_labels(100, 4, false, 1);
    let drawn = draw_queries(&vocabulary(4), &labels, &settings(5, 5)).unwrap();
    assert_eq!(DrawnQueries::decode(&drawn.encode()).unwrap(), drawn);
    let text = String::from_utf8(drawn.encode()).unwrap();
    for (from, to) in [
        ("\"attribute\": 3", "\"attribute\": 4"),
        ("likeness-queries-2", "likeness-queries-9"),
        ("\"number\": 2,", "\"number\": 7,"),
        ("+A1", "+A2"),
        ("\"singles\"", "\"quadruples\""),
        ("\"items\"", "\"things\""),
    ] {
        assert!(text.contains(from), "{from}");
        assert!(DrawnQueries::decode(text.replace(from, to).as_bytes()).is_err(), "{from} → {to}");
    }
    assert!(DrawnQueries::decode(&text.as_bytes()[..text.len() / 2]).is_err());
}

proptest! {
    #[test]
    fn every_drawn_query_is_admissible(items in 1usize..90, attributes in 1usize..6, seed in 0u64..50, min in 0u32..8) {
        let labels = random_labels(items, attributes, seed % 2 == 0, seed);
        let settings = EvaluateSettings { min_relevant: min, seed, ..settings(40, 40) };
        let drawn = draw_queries(&vocabulary(attributes), &labels, &settings).unwrap();
        for query in &drawn.queries {
            let (relevant, judged) = counts(query, &labels, attributes);
            let least = if query.set == QuerySet::Full { 1 } else { min.max(1) };
            prop_assert!(relevant >= u64::from(least));
            let combined = matches!(query.set, QuerySet::Pairs | QuerySet::Triples);
            prop_assert!(!combined || 2 * relevant <= judged);
            prop_assert_eq!(query.image.is_some(), query.set == QuerySet::Images);
            if let Some(image) = &query.image {
                let own = &labels[image.index as usize * attributes..][..attributes];
                let Term { attribute, positive } = query.terms[0];
                prop_assert_eq!(own[attribute as usize], if positive { -1 } else { 1 });
                prop_assert_eq!(&image.item, &format!("item {}", image.index));
                prop_assert!((0u32..).zip(own).all(|(i, label)| image.has.contains(&i) == (*label == 1)));
            }
        }
        prop_assert_eq!(DrawnQueries::decode(&drawn.encode()).unwrap(), drawn);
    }
}

#[test]
fn as_the_author_did_the_image_stays_and_may_have_the_attribute_already() {
    let labels = random_labels(400, 8, true, 3);
    let author = EvaluateSettings { image_edit: ImageEdit::Author, images: 200, full: 7, ..settings(0, 0) };
    let drawn = draw_queries(&vocabulary(8), &labels, &author).unwrap();
    assert_eq!(drawn.sets[3..].iter().map(|set| (set.wanted, set.drawn)).collect::<Vec<_>>(), [(7, 7), (200, 200)]);
    let images: Vec<&Query> = drawn.queries.iter().filter(|query| query.set == QuerySet::Images).collect();
    assert!(images.iter().all(|query| query.held_out().is_none()));
    let has_already = |query: &&&Query| {
        query.image.as_ref().unwrap().has.contains(&query.terms[0].attribute) == query.terms[0].positive
    };
    let already = images.iter().filter(has_already).count();
    assert!((60..140).contains(&already), "{already} of 200 ask for what is so already");
    assert_eq!(DrawnQueries::decode(&drawn.encode()).unwrap(), drawn);
    let held_out = draw_queries(&vocabulary(8), &labels, &settings(0, 0)).unwrap();
    let text = String::from_utf8(held_out.encode()).unwrap();
    assert!(
        text.contains("likeness-queries-2") && !text.contains("stays"),
        "what says nothing new is written as before"
    );
}

#[test]
fn own_queries_come_last_and_what_no_item_answers_is_left_out_and_told() {
    // Items 0..4 of two attributes.
    let labels = [1, 1, 1, -1, -1, -1, -1, -1];
    let some = |line, with: &[&str], without: &[&str], item: Option<&str>| BroughtQuery {
        line,
        name: (line == 1).then(|| "mine".into()),
        with: with.iter().map(|name| name.to_string()).collect(),
        without: without.iter().map(|name| name.to_string()).collect(),
        item: item.map(String::from),
        vector: None,
    };
    let brought = [
        some(1, &["A0"], &["A1"], None),
        some(2, &["A1"], &[], Some("item 3")),
        some(3, &["A1"], &["A0"], None),
        some(4, &["A0"], &[], Some("item 9")),
        some(5, &["A0", "A1"], &[], Some("item 0")),
    ];
    let place = |item: &str| item.strip_prefix("item ")?.parse().ok().filter(|place| *place < 4);
    let mut drawn = draw_queries(&vocabulary(2), &labels, &settings(0, 0)).unwrap();
    let pooled = drawn.pooled();
    drawn.add_own(&brought, &labels, place, 2, ImageEdit::HeldOut).unwrap();
    let left_out = &drawn.left_out;
    let own: Vec<&Query> = drawn.queries.iter().filter(|query| query.set == QuerySet::Own).collect();
    assert_eq!(own.iter().map(|query| &*query.text).collect::<Vec<_>>(), ["mine: +A0 −A1", "item 3 +A1"]);
    assert_eq!((own[1].held_out(), drawn.pooled()), (Some("item 3"), pooled));
    assert_eq!(left_out.len(), 3);
    assert!(left_out[0].starts_with("line 3: no item") && left_out[1].contains("item `item 9` is not among"));
    assert!(left_out[2].starts_with("line 5: no item"), "its own image is the only one that fits, and is no answer");
    let own = drawn.sets.last().unwrap();
    assert_eq!((own.set, own.wanted, own.drawn), (QuerySet::Own, 5, 2));
    assert_eq!(DrawnQueries::decode(&drawn.encode()).unwrap(), drawn);
    let mut again = draw_queries(&vocabulary(2), &labels, &settings(0, 0)).unwrap();
    again.add_own(&brought, &labels, place, 2, ImageEdit::Author).unwrap();
    assert_eq!(again.left_out.len(), 2);
    let unknown = [some(7, &["Zebra"], &[], None)];
    assert!(
        again.add_own(&unknown, &labels, place, 2, ImageEdit::HeldOut).unwrap_err().to_string().starts_with("line 7:")
    );
}

#[test]
fn images_as_they_are_are_judged_by_what_is_known_of_them() {
    let labels = random_labels(200, 6, true, 7);
    let vocabulary = vocabulary(6);
    let settings = EvaluateSettings { images: 80, ..settings(9, 9) };
    let drawn = super::draw_alike(&vocabulary, &labels, &|item| format!("item {item}"), &settings).unwrap();
    assert_eq!((drawn.sets.len(), drawn.queries.len(), drawn.pooled()), (1, 80, 0));
    let mut seen = HashSet::new();
    for query in &drawn.queries {
        let (image, Term { attribute, positive }) = (query.image.as_ref().unwrap(), query.terms[0]);
        assert_eq!(labels[image.index as usize * 6 + attribute as usize], if positive { 1 } else { -1 });
        assert_eq!((query.set, query.held_out()), (QuerySet::Alike, Some(&*image.item)));
        let (relevant, judged) = counts(query, &labels, 6);
        assert!(relevant >= u64::from(settings.min_relevant) && 2 * relevant <= judged + 1, "{relevant} of {judged}");
        assert!(seen.insert((image.index, attribute)), "none twice");
    }
    assert_eq!(DrawnQueries::decode(&drawn.encode()).unwrap(), drawn);
    // Whoever has none to his likeness asks nothing: two of the two hundred have the only attribute.
    let rare: Vec<i8> = (0..200).map(|item| if item < 2 { 1 } else { -1 }).collect();
    let one = Vocabulary { names: vec!["A0".into()] };
    let drawn = super::draw_alike(&one, &rare, &|item| format!("item {item}"), &settings).unwrap();
    assert_eq!((drawn.queries.len(), drawn.sets[0].wanted), (0, 80));
}

#[test]
fn a_vector_that_the_user_brings_asks_as_it_is_and_must_fit() {
    let labels = [1, 1, 1, -1, -1, -1, -1, -1];
    let brought = |vector: &[f32]| {
        let (with, vector) = (vec!["A0".into()], Some(vector.to_vec()));
        [BroughtQuery { line: 3, with, vector, ..BroughtQuery::default() }]
    };
    let mut drawn = draw_queries(&vocabulary(2), &labels, &settings(0, 0)).unwrap();
    let refused = drawn.clone().add_own(&brought(&[1.0; 3]), &labels, |_| None, 2, ImageEdit::HeldOut).unwrap_err();
    assert_eq!(refused.to_string(), "line 3: its vector has 3 numbers, the gallery's have 2");
    drawn.add_own(&brought(&[0.1, -3.25e-7]), &labels, |_| None, 2, ImageEdit::HeldOut).unwrap();
    let read = DrawnQueries::decode(&drawn.encode()).unwrap();
    assert_eq!(read, drawn);
    assert_eq!(read.queries.last().unwrap().vector.as_deref(), Some(&[0.1, -3.25e-7][..]), "to the last bit");
}
