use super::super::testing::*;
use super::*;
use likeness_contract::messages::HeldShards;

fn generation() -> GenerationRef {
    GenerationRef { gallery: name("all"), generation: job_id("j") }
}

fn wanted(job: Option<&str>, replaces: Replaces) -> Wanted {
    Wanted {
        alias: name("live"),
        job: job.map(job_id),
        replaces,
        rolls_back_to: None,
        model: job_id("j"),
        generation: generation(),
        report: None,
        gate: Some(gate_decision(true)),
    }
}

fn release(number: u64, job: &str) -> Release {
    let Decision::Make(release) = decide(&[], &wanted(Some(job), Replaces::Newest)) else { panic!() };
    Release { number, ..*release }
}

#[test]
fn the_first_release_has_number_one_and_replaces_none() {
    let Decision::Make(first) = decide(&[], &wanted(Some("j"), Replaces::Compared(None))) else { panic!() };
    assert_eq!((first.number, first.replaces), (1, None));
    assert_eq!(first.gate, Some(gate_decision(true)));
}

#[test]
fn a_release_follows_the_newest() {
    let releases = [release(1, "a"), release(2, "b")];
    let Decision::Make(next) = decide(&releases, &wanted(Some("j"), Replaces::Compared(Some(2)))) else { panic!() };
    assert_eq!((next.number, next.replaces), (3, Some(2)));
}

#[test]
fn a_job_makes_its_release_once() {
    let releases = [release(1, "a"), release(2, "j"), release(3, "c")];
    let decision = decide(&releases, &wanted(Some("j"), Replaces::Compared(Some(1))));
    assert_eq!(decision, Decision::AlreadyMade(Box::new(releases[1].clone())));
}

#[test]
fn a_release_that_was_compared_with_an_older_one_is_refused() {
    let releases = [release(1, "a"), release(2, "b")];
    let decision = decide(&releases, &wanted(Some("j"), Replaces::Compared(Some(1))));
    assert_eq!(decision, Decision::MovedOn { newest: Some(2), compared: Some(1) });
    let decision = decide(&releases, &wanted(Some("j"), Replaces::Compared(None)));
    assert_eq!(decision, Decision::MovedOn { newest: Some(2), compared: None });
}

#[test]
fn releases_by_hand_are_not_taken_for_each_other() {
    let by_hand = Release { job: None, ..release(1, "a") };
    let Decision::Make(next) = decide(&[by_hand], &wanted(None, Replaces::Newest)) else { panic!() };
    assert_eq!(next.number, 2);
}

fn holds(worker: &str, shards: &[u32]) -> Placement {
    let held = HeldShards { generation: generation(), shards: shards.to_vec(), model_ready: true };
    Placement { worker: worker_id(worker), held: vec![held], troubles: Vec::new() }
}

fn ready(replicas: usize, searchers: &[&str], placements: &[Placement]) -> Readiness {
    let searchers: Vec<WorkerId> = searchers.iter().map(|s| worker_id(s)).collect();
    readiness(&generation(), 3, replicas, &searchers, placements)
}

#[test]
fn every_shard_needs_its_replicas() {
    let one = [holds("a", &[0, 1, 2])];
    assert_eq!(ready(2, &["a"], &one), Readiness::Ready, "one live searcher can hold one replica only");
    let split = [holds("a", &[0, 1]), holds("b", &[1, 2])];
    assert_eq!(ready(1, &["a", "b"], &split), Readiness::Ready);
    let missing = Readiness::Missing("2 of 3 shards (0, 2) are not held by 2 searchers".into());
    assert_eq!(ready(2, &["a", "b"], &split), missing);
    let both = [holds("a", &[0, 1, 2]), holds("b", &[2, 1, 0])];
    assert_eq!(ready(2, &["a", "b", "c"], &both), Readiness::Ready);
}

#[test]
fn a_dead_searcher_counts_for_nothing() {
    let placements = [holds("dead", &[0, 1, 2])];
    assert_eq!(ready(2, &[], &placements), Readiness::NoSearchers);
    let missing = Readiness::Missing("3 of 3 shards (0, 1, 2) are not held by 1 searcher".into());
    assert_eq!(ready(2, &["live"], &placements), missing);
}

#[test]
fn shards_without_the_model_and_of_other_generations_do_not_count() {
    let mut other = holds("a", &[0, 1, 2]);
    other.held[0].generation.generation = job_id("other");
    assert!(matches!(ready(1, &["a"], &[other]), Readiness::Missing(_)));
    let mut bare = holds("a", &[0, 1, 2]);
    bare.held[0].model_ready = false;
    assert!(matches!(ready(1, &["a"], &[bare]), Readiness::Missing(_)));
}

#[test]
fn what_searchers_could_not_load_is_named() {
    let mut placement = holds("a", &[0, 1]);
    placement.troubles.push("shard 2 is damaged".into());
    let Readiness::Missing(text) = ready(1, &["a"], &[placement]) else { panic!() };
    assert_eq!(text, "1 of 3 shards (2) are not held by 1 searcher; `a`: shard 2 is damaged");
}

#[test]
fn what_live_searchers_complain_of_is_in_doubt() {
    let complain = |worker: &str, shard| {
        let trouble = format!("{}digest is wrong", Placement::trouble_with(&generation(), shard));
        Placement { troubles: vec![trouble], ..holds(worker, &[]) }
    };
    let placements = [complain("a", Some(2)), complain("b", Some(12)), complain("dead", None)];
    let live = ["a", "b"].map(worker_id);
    assert_eq!(doubts(&generation(), 13, &live, &placements), [Doubt::Shard(2), Doubt::Shard(12)]);
    assert_eq!(doubts(&generation(), 13, &[worker_id("dead")], &placements), [Doubt::Kit]);
    let other = GenerationRef { generation: job_id("other"), ..generation() };
    assert!(doubts(&other, 13, &live, &placements).is_empty());
}
