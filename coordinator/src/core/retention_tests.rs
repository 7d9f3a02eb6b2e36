use likeness_contract::ids::Name;
use likeness_contract::jobs::GenerationRef;

use super::*;

const DAY: u64 = 24 * 3600 * 1000;
const NOW: u64 = 1_000 * DAY;

fn id(text: &str) -> JobId {
    JobId::new(text).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn generation(job: &str) -> GenerationRef {
    GenerationRef { gallery: name("faces"), generation: id(job) }
}

/// Something that is 100 days old.
fn old(kind: Kind, place: &str) -> Unit {
    Unit { kind, place: place.into(), objects: 3, bytes: 1_000, modified_ms: NOW - 100 * DAY }
}

/// Model, generation and report of a pipeline.
fn units_of(job: &str) -> Vec<Unit> {
    vec![
        old(Kind::Model, &format!("models/{job}")),
        old(Kind::Generation, &format!("galleries/faces/{job}")),
        old(Kind::Report, &format!("reports/{job}")),
    ]
}

fn release(number: u64, job: &str) -> Release {
    Release {
        alias: name("main"),
        number,
        job: Some(id(job)),
        replaces: None,
        rolls_back_to: None,
        model: id(job),
        generation: generation(job),
        report: Some(id(job)),
        gate: None,
        created_ms: NOW - 100 * DAY + number,
        warnings: Vec::new(),
    }
}

/// Of a generation.
fn manifest(model: &str, version: &str) -> serde_json::Value {
    serde_json::json!({"type": "generation", "version": 2, "body": {
        "model": model, "dataset": {"dataset": "people", "version": version},
        "shards": [{"object": {"key": "galleries/faces/e1/shard-0"}}]
    }})
}

fn policy(keep: usize) -> Policy {
    Policy { keep, older_than_ms: 7 * DAY }
}

/// Places that may go.
fn gone(units: Vec<Unit>, holders: &Holders, references: &References, policy: Policy) -> Vec<String> {
    let judged = judge(units, holders, references, policy, NOW);
    judged.into_iter().filter(|judged| judged.held.is_none()).map(|judged| judged.unit.place).collect()
}

fn running(job: &str, spec: serde_json::Value) -> LiveJob {
    LiveJob { job: id(job), why: "is running", texts: Some(texts(&spec)) }
}

#[test]
fn the_newest_releases_of_an_alias_are_held_and_older_ones_go() {
    let units: Vec<Unit> = ["p1", "p2", "p3"].into_iter().flat_map(units_of).collect();
    let holders =
        Holders { releases: vec![release(2, "p2"), release(1, "p1"), release(3, "p3")], ..Holders::default() };
    let keep = |keep| gone(units.clone(), &holders, &References::default(), policy(keep));
    assert_eq!(keep(2), ["models/p1", "galleries/faces/p1", "reports/p1"]);
    assert_eq!(keep(3), [""; 0]);
    assert_eq!(keep(0).len(), 6, "what serves is never deleted");
}

#[test]
fn what_was_replaced_a_moment_ago_is_held() {
    let mut newest = release(2, "p2");
    newest.created_ms = NOW - 60_000;
    let holders = Holders { releases: vec![release(1, "p1"), newest], ..Holders::default() };
    assert_eq!(gone(units_of("p1"), &holders, &References::default(), policy(1)), [""; 0]);
}

#[test]
fn a_rollback_holds_what_it_brought_back() {
    let back = Release { rolls_back_to: Some(1), ..release(3, "p1") };
    let holders = Holders { releases: vec![release(1, "p1"), release(2, "p2"), back], ..Holders::default() };
    let units: Vec<Unit> = ["p1", "p2"].into_iter().flat_map(units_of).collect();
    assert_eq!(gone(units, &holders, &References::default(), policy(1)).len(), 3);
}

#[test]
fn a_running_job_holds_what_its_spec_names_anywhere_and_what_it_makes() {
    let spec = serde_json::json!({"work": {"pipeline": {"baseline": {"generation": {"generation": "base"}},
        "init": {"weights": {"key": "weights/aa.safetensors"}}, "new": ["m7"]}}});
    let holders = Holders { jobs: vec![running("p9", spec)], ..Holders::default() };
    let units = vec![
        old(Kind::Generation, "galleries/faces/base"),
        old(Kind::Brought, "weights/aa.safetensors"),
        old(Kind::Brought, "weights/bb.safetensors"),
        old(Kind::Answers, "searches/p9"),
        old(Kind::Answers, "searches/s1"),
        old(Kind::Model, "models/m7"),
        old(Kind::Model, "models/m8"),
        old(Kind::Model, "models/p9"),
        old(Kind::Orphans, "datasets/people/p9"),
    ];
    let left = gone(units.clone(), &holders, &References::default(), policy(1));
    assert_eq!(left, ["weights/bb.safetensors", "searches/s1", "models/m8"]);
    let unreadable = LiveJob { job: id("x"), why: "can't be read", texts: None };
    let holders = Holders { jobs: vec![unreadable], ..Holders::default() };
    assert_eq!(gone(units, &holders, &References::default(), policy(1)), [""; 0], "who knows what it needs");
}

#[test]
fn a_schedule_holds_what_its_next_firing_needs() {
    let names = texts(&serde_json::json!({"settings": {"job": {"init": "weights/aa.safetensors", "model": "m7"}}}));
    let schedules = vec![(likeness_contract::ids::Name::new("nightly").unwrap(), names)];
    let holders = Holders { schedules, ..Holders::default() };
    let units = vec![
        old(Kind::Brought, "weights/aa.safetensors"),
        old(Kind::Model, "models/m7"),
        old(Kind::Model, "models/m8"),
    ];
    assert_eq!(gone(units, &holders, &References::default(), policy(1)), ["models/m8"]);
}

#[test]
fn a_held_generation_holds_its_model_and_its_images_and_these_the_parts_of_older_versions() {
    let mut references = References::default();
    references.add_manifest("galleries/faces/e1", &manifest("m1", "v2"));
    references.add_manifest("galleries/faces/e2", &manifest("m2", "v3"));
    let parts = ["datasets/people/v2/part-0", "datasets/people/v1/part-0"];
    references.add_manifest("datasets/people/v2", &serde_json::json!({"body": {"parts": parts}}));
    let holders = Holders {
        releases: vec![Release { model: id("m1"), report: None, ..release(1, "e1") }],
        newest_versions: vec!["datasets/people/v4".into()],
        ..Holders::default()
    };
    let mut units: Vec<Unit> =
        ["v1", "v2", "v3", "v4"].into_iter().map(|v| old(Kind::Dataset, &format!("datasets/people/{v}"))).collect();
    units.extend(["m1", "m2"].map(|m| old(Kind::Model, &format!("models/{m}"))));
    units.extend(["e1", "e2"].map(|e| old(Kind::Generation, &format!("galleries/faces/{e}"))));
    let left = gone(units.clone(), &holders, &references, policy(1));
    assert_eq!(left, ["datasets/people/v3", "models/m2", "galleries/faces/e2"]);
    // One that is too young to go needs its model too.
    units[7].modified_ms = NOW - DAY;
    assert_eq!(gone(units, &holders, &references, policy(1)), [""; 0]);
}

#[test]
fn brought_files_and_orphans_go_after_a_day_whatever_the_age_asked_for() {
    let aged = |kind, place, age_ms| Unit { modified_ms: NOW - age_ms, ..old(kind, place) };
    let units = vec![
        aged(Kind::Brought, "queries/a.json", DAY - 1),
        aged(Kind::Brought, "queries/b.json", DAY),
        aged(Kind::Brought, "questions/c.jsonl", DAY),
        aged(Kind::Orphans, "models/x", 2 * DAY),
        aged(Kind::Model, "models/y", 2 * DAY),
    ];
    let left = gone(units, &Holders::default(), &References::default(), policy(1));
    assert_eq!(left, ["queries/b.json", "questions/c.jsonl", "models/x"]);
}

#[test]
fn a_promotion_holds_for_a_day() {
    let hold = |at_ms| Hold { places: vec!["models/p1".into(), "galleries/faces/p1".into()], at_ms };
    let left = |at_ms| {
        let holders = Holders { promotions: vec![hold(at_ms)], ..Holders::default() };
        gone(units_of("p1"), &holders, &References::default(), policy(1))
    };
    assert_eq!(left(NOW - 60_000), ["reports/p1"]);
    assert_eq!(left(NOW - 2 * DAY).len(), 3);
}

#[test]
fn an_object_is_part_of_the_unit_that_its_folder_is() {
    assert_eq!(place_of("models/m/rounds/00001-aa.safetensors"), Some("models/m"));
    assert_eq!(place_of("galleries/faces/e1/manifest.json"), Some("galleries/faces/e1"));
    assert_eq!(place_of("searches/s/answers-00000-aa.parquet"), Some("searches/s"));
    assert_eq!(place_of("datasets/d/v"), None);
    assert_eq!((place_of("questions/aa.jsonl"), name_of("questions/aa.jsonl")), (None, "questions/aa.jsonl"));
    assert_eq!(place_of("weights/aa.safetensors"), None);
    assert_eq!((name_of("weights/aa.safetensors"), name_of("galleries/faces/e1")), ("weights/aa.safetensors", "e1"));
}
