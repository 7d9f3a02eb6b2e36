use super::super::testing::*;
use super::*;
use likeness_contract::documents::{Embedder, ObjectRef, Origin, PartEntry, ShardEntry};
use likeness_contract::jobs::{EmbeddingSource, Import, IngestSource, JobOptions, Priority};
use likeness_contract::keys;
use likeness_contract::searches::QuestionPart;
use likeness_contract::settings::{
    AdamWSettings, Architecture, InnerOptimizer, Loss, ModelSettings, NegativeMix, Optimizer, ResizedCrop,
    RoundSettings, SgdSettings, TrainSettings,
};

fn manifest(version: &str, split_rows: [u64; 3]) -> DatasetManifest {
    let part = PartEntry { object: object(), rows: split_rows.iter().sum(), split_rows };
    DatasetManifest {
        dataset: DatasetRef { dataset: name("faces"), version: job_id(version) },
        vocabulary: vocabulary(),
        parts: vec![part],
        skipped: Vec::new(),
        warnings: Vec::new(),
    }
}

fn model_manifest(id: &str) -> ModelManifest {
    let object = || -> ObjectRef { object() };
    ModelManifest {
        model: job_id(id),
        settings: model_settings(),
        train: TrainSettings::default(),
        vocabulary: vocabulary(),
        dataset: dataset_ref(),
        weights: object(),
        checkpoint: object(),
        distance: "euclidean".into(),
        steps: 10,
        validation_loss: None,
        training: object(),
        tensorboard: object(),
        round: None,
        validation_map: None,
        stopped_early: false,
        rounds: Vec::new(),
    }
}

fn generation_ref(id: &str) -> GenerationRef {
    GenerationRef { gallery: name("all"), generation: job_id(id) }
}

fn generation_manifest(id: &str, rows: Split) -> GenerationManifest {
    GenerationManifest {
        generation: generation_ref(id),
        origin: Origin::Model(Embedder { model: job_id(id), weights: Digest::of(b"w"), dataset: dataset_ref() }),
        rows,
        embedding_dim: 64,
        vocabulary: vocabulary(),
        shards: vec![ShardEntry { shard: 0, object: object(), rows: 100, approximate: None }],
        skipped: Vec::new(),
    }
}

fn release(number: u64, job: &str) -> Release {
    Release {
        alias: name("live"),
        number,
        job: Some(job_id(job)),
        replaces: (number > 1).then(|| number - 1),
        rolls_back_to: None,
        model: job_id(job),
        generation: generation_ref(job),
        report: None,
        gate: None,
        created_ms: 0,
        warnings: Vec::new(),
    }
}

/// Everything is there: a dataset, a model, a generation, a live trainer.
fn facts() -> Facts {
    Facts {
        versions: BTreeMap::from([
            (name("faces"), vec![job_id("ingest-0"), job_id("ingest-1")]),
            (name("places"), vec![]),
        ]),
        datasets: vec![manifest("ingest-0", [10, 10, 10]), manifest("ingest-1", [100, 20, 30])],
        models: vec![job_id("model-1"), job_id("model-2")],
        model: Some(model_manifest("model-1")),
        generations: vec![generation_ref("model-1")],
        generation: Some(generation_manifest("model-1", Split::All)),
        trainers: vec![DeviceClass::Cpu],
        ..Facts::default()
    }
}

fn selector(dataset: &str) -> DatasetSelector {
    DatasetSelector { dataset: name(dataset), version: None }
}

fn train_request() -> TrainRequest {
    let train = TrainSettings { batch_size: 10, ..TrainSettings::default() };
    TrainRequest { dataset: selector("faces"), model: model_settings(), train }
}

fn embed_request() -> EmbedRequest {
    EmbedRequest { gallery: name("all"), dataset: selector("faces"), rows: Split::All, shard_rows: 40 }
}

fn request(work: RequestedWork) -> JobRequest {
    JobRequest { id: None, work, device: DeviceClass::Any, priority: Priority::Lo, options: JobOptions::default() }
}

fn training(change: impl FnOnce(&mut TrainRequest)) -> JobRequest {
    let mut train = train_request();
    change(&mut train);
    request(RequestedWork::Train(train))
}

fn embedding(change: impl FnOnce(&mut EmbedRequest)) -> JobRequest {
    let mut embed = embed_request();
    change(&mut embed);
    request(RequestedWork::Embed { model: job_id("model-1"), embed })
}

fn evaluation(change: impl FnOnce(&mut EvaluateStage)) -> JobRequest {
    let mut evaluate = evaluate_stage();
    change(&mut evaluate);
    request(RequestedWork::Evaluate { generation: generation_ref("model-1"), evaluate })
}

fn pipeline() -> RequestedWork {
    RequestedWork::Pipeline {
        train: train_request(),
        embed: embed_request(),
        evaluate: evaluate_stage(),
        alias: name("live"),
    }
}

#[track_caller]
fn refused(request: &JobRequest, facts: &Facts, kind: ApiErrorKind, text: &str) -> ApiError {
    let error = resolve(request, facts).expect_err("it can't be met");
    assert!(error.message.contains(text), "{}", error.message);
    assert_eq!(error.kind, kind, "{}", error.message);
    error
}

#[track_caller]
fn invalid_training(change: impl FnOnce(&mut TrainRequest), text: &str) {
    refused(&training(change), &facts(), ApiErrorKind::Invalid, text);
}

#[test]
fn a_training_takes_the_newest_version_and_counts_its_rows() {
    let Resolved { id, spec } = resolve(&training(|_| {}), &facts()).unwrap();
    let JobWork::Train(stage) = &spec.work else { panic!() };
    assert_eq!(stage.dataset, DatasetRef { dataset: name("faces"), version: job_id("ingest-1") });
    assert_eq!((stage.train_rows, stage.validation_rows), (100, 20));
    assert_eq!(stage.vocabulary, vocabulary());
    assert!(id.as_str().starts_with("train-") && id.as_str().len() == "train-".len() + 16, "{id}");
}

#[test]
fn the_same_request_is_the_same_job_and_another_is_another() {
    let a = resolve(&training(|_| {}), &facts()).unwrap();
    let b = resolve(&training(|_| {}), &facts()).unwrap();
    let c = resolve(&training(|t| t.train.seed = 1), &facts()).unwrap();
    assert_eq!(a, b);
    assert_ne!(a.id, c.id);
    let named = JobRequest { id: Some(job_id("mine")), ..training(|_| {}) };
    assert_eq!(resolve(&named, &facts()).unwrap(), Resolved { id: job_id("mine"), spec: a.spec });
}

#[test]
fn how_a_job_is_carried_out_is_no_part_of_what_it_is() {
    let capped = JobOptions { max_workers: Some(2), notify: vec!["https://example.org/done".into()] };
    let otherwise = resolve(&JobRequest { options: capped, ..training(|_| {}) }, &facts()).unwrap();
    let plain = resolve(&training(|_| {}), &facts()).unwrap();
    assert_eq!(otherwise.id, plain.id);
    assert!(same_job(&otherwise.spec, &plain.spec));
}

#[test]
fn any_device_becomes_the_fastest_class_that_is_live_where_it_must_be_one() {
    let live = |trainers: &[DeviceClass]| Facts { trainers: trainers.to_vec(), ..facts() };
    let device = |facts: &Facts| resolve(&training(|_| {}), facts).unwrap().spec.device;
    assert_eq!(device(&live(&[DeviceClass::Cpu])), DeviceClass::Cpu);
    assert_eq!(device(&live(&[DeviceClass::Cpu, DeviceClass::Cuda])), DeviceClass::Cuda);
    assert_eq!(device(&live(&[DeviceClass::Cpu, DeviceClass::Metal])), DeviceClass::Metal);
    refused(&training(|_| {}), &live(&[]), ApiErrorKind::Unavailable, "no worker that trains is running");
    let asked = JobRequest { device: DeviceClass::Cuda, ..training(|_| {}) };
    assert_eq!(resolve(&asked, &live(&[])).unwrap().spec.device, DeviceClass::Cuda);
    assert_eq!(resolve(&embedding(|_| {}), &live(&[])).unwrap().spec.device, DeviceClass::Any);
}

#[test]
fn multi_hot_queries_are_never_masked() {
    let request = training(|t| t.model.encoding = QueryEncoding::MultiHot);
    let JobWork::Train(stage) = resolve(&request, &facts()).unwrap().spec.work else { panic!() };
    assert_eq!(stage.train.masked_share, 0.0);
}

#[test]
fn the_vocabulary_decides_the_dimension_of_log_probabilities() {
    let joint = |dim| {
        training(move |t| {
            (t.model.encoding, t.model.embedding_dim) = (QueryEncoding::LogProbability, dim);
            t.train = TrainSettings { batch_size: 10, ..TrainSettings::joint() };
        })
    };
    let resolved = |dim| match resolve(&joint(dim), &facts()).unwrap().spec.work {
        JobWork::Train(stage) => (stage.model.embedding_dim, stage.vocabulary.len() as u32),
        other => panic!("{other:?}"),
    };
    let (dim, attributes) = resolved(0);
    assert_eq!(dim, 2 * attributes + 1);
    assert_eq!(resolved(dim), (dim, attributes));
    refused(&joint(300), &facts(), ApiErrorKind::Invalid, "`embedding_dim` is 300: log-probabilities of");
}

#[test]
fn logits_and_binary_cross_entropy_go_together() {
    invalid_training(|t| t.train.loss = Loss::BinaryCrossEntropy, "needs the encoding `log-probability`");
    let triplets =
        |t: &mut TrainRequest| (t.model.encoding, t.model.embedding_dim) = (QueryEncoding::LogProbability, 0);
    refused(&training(triplets), &facts(), ApiErrorKind::Invalid, "with the loss `binary-cross-entropy` alone");
    invalid_training(|t| t.train.loss = Loss::InfoNce { temperature: 0.0 }, "`loss.temperature`");
    invalid_training(|t| t.train.average_decay = 1.0, "`average_decay`");
    let other = training(|t| t.train.loss = Loss::AllTriplets);
    assert!(resolve(&other, &facts()).is_ok());
}

#[test]
fn a_wrong_name_is_answered_with_the_nearest() {
    let wrong = training(|t| t.dataset = selector("face"));
    let error = refused(&wrong, &facts(), ApiErrorKind::NotFound, "no dataset `face`; did you mean `faces`");
    assert_eq!(error.nearest, ["faces"]);
    let wrong = training(|t| t.dataset.version = Some(job_id("ingest-7")));
    let error = refused(&wrong, &facts(), ApiErrorKind::NotFound, "dataset `faces` has no version `ingest-7`");
    assert_eq!(error.nearest, ["ingest-0", "ingest-1"]);
    let incomplete = training(|t| t.dataset = selector("places"));
    refused(&incomplete, &facts(), ApiErrorKind::NotFound, "no dataset `places`");
    let wrong = request(RequestedWork::Embed { model: job_id("model-3"), embed: embed_request() });
    let error = refused(&wrong, &facts(), ApiErrorKind::NotFound, "no model `model-3`");
    assert_eq!(error.nearest, ["model-1", "model-2"]);
    let evaluate = evaluate_stage();
    let gallery = GenerationRef { gallery: name("al"), generation: job_id("model-1") };
    let wrong = request(RequestedWork::Evaluate { generation: gallery, evaluate: evaluate.clone() });
    refused(&wrong, &facts(), ApiErrorKind::NotFound, "no gallery `al`; did you mean `all`");
    let wrong = request(RequestedWork::Evaluate { generation: generation_ref("model-2"), evaluate });
    refused(&wrong, &facts(), ApiErrorKind::NotFound, "gallery `all` has no generation `model-2`");
}

fn optimizers_out_of_range() -> Vec<(Optimizer, &'static str)> {
    let (adamw, sgd) = (AdamWSettings::default(), SgdSettings::default());
    vec![
        (Optimizer::AdamW(AdamWSettings { lr: 0.0, ..adamw }), "`lr`"),
        (Optimizer::AdamW(AdamWSettings { beta1: 1.0, ..adamw }), "`beta1`"),
        (Optimizer::AdamW(AdamWSettings { beta2: -0.5, ..adamw }), "`beta2`"),
        (Optimizer::AdamW(AdamWSettings { eps: 0.0, ..adamw }), "`eps`"),
        (Optimizer::AdamW(AdamWSettings { weight_decay: -1.0, ..adamw }), "`weight_decay`"),
        (Optimizer::Sgd(SgdSettings { lr: f64::NAN, ..sgd }), "`lr`"),
        (Optimizer::Sgd(SgdSettings { momentum: 1.0, ..sgd }), "`momentum`"),
        (Optimizer::Sgd(SgdSettings { weight_decay: -1.0, ..sgd }), "`weight_decay`"),
    ]
}

#[test]
fn slots_out_of_range_are_refused_by_name_and_one_without_an_outer_step_is_a_plain_training() {
    let rounds = |change: fn(&mut RoundSettings)| {
        let mut rounds = RoundSettings::averaging(2, InnerOptimizer::AdamW(AdamWSettings::default()));
        change(&mut rounds);
        Optimizer::Rounds(rounds)
    };
    let cases: Vec<(Optimizer, &str)> = vec![
        (rounds(|r| r.slots = 0), "`slots`"),
        (rounds(|r| (r.slots, r.quorum) = (60, 60)), "only"),
        (rounds(|r| r.outer_lr = 0.0), "`outer_lr`"),
        (rounds(|r| r.outer_momentum = 1.0), "`outer_momentum`"),
        (rounds(|r| r.quorum = 3), "`quorum`"),
        (rounds(|r| r.quorum = 0), "`quorum`"),
        (rounds(|r| r.deadline_s = 9), "lower `quorum`"),
        (rounds(|r| (r.quorum, r.deadline_s) = (1, u32::MAX)), "`deadline_s`"),
        (rounds(|r| r.inner = InnerOptimizer::Sgd(SgdSettings { lr: 0.0, ..SgdSettings::default() })), "`lr`"),
    ];
    let small = |t: &mut TrainRequest, optimizer| (t.train.batch_size, t.train.optimizer) = (2, optimizer);
    for (optimizer, word) in cases {
        invalid_training(|t| small(t, optimizer), word);
    }
    let many = |t: &mut TrainRequest| {
        small(t, rounds(|_| ()));
        (t.train.epochs, t.train.inner_steps) = (9_000, 1);
    };
    invalid_training(many, "of 2 slots");
    let accepted = |optimizer| resolve(&training(|t| small(t, optimizer)), &facts()).unwrap();
    assert_eq!(
        accepted(rounds(|r| *r = RoundSettings::averaging(1, r.inner))),
        accepted(Optimizer::AdamW(AdamWSettings::default()))
    );
    assert_ne!(accepted(rounds(|_| ())), accepted(Optimizer::AdamW(AdamWSettings::default())));
}

fn start(source: &str, model: Option<&str>) -> InitWeights {
    InitWeights { source: source.into(), model: model.map(job_id), weights: object() }
}

#[test]
fn weights_to_start_from_must_be_in_the_store_and_their_file_is_no_part_of_the_id() {
    let from = |source: &str| training(|t| t.train.init = Some(start(source, None)));
    refused(&from("w.safetensors"), &facts(), ApiErrorKind::Invalid, "`w.safetensors` are not in the store");
    let there = Facts { start_bytes: Some(object().bytes), ..facts() };
    let (here, moved) =
        (resolve(&from("w.safetensors"), &there).unwrap(), resolve(&from("v.safetensors"), &there).unwrap());
    assert_eq!(here.id, moved.id);
    assert!(same_job(&here.spec, &moved.spec));
    assert_ne!(here.id, resolve(&training(|_| {}), &there).unwrap().id);
    let secret = training(|t| t.train.init = Some(start("https://me:secret@host/w.safetensors", None)));
    let error = refused(&secret, &there, ApiErrorKind::Invalid, "names a user");
    assert!(!error.message.contains("secret"), "{}", error.message);
}

#[test]
fn weights_of_a_model_must_be_that_models() {
    let there = Facts { start_bytes: Some(object().bytes), ..facts() };
    let from = |model: &str| training(|t| t.train.init = Some(start("main", Some(model))));
    let error = refused(&from("modle-1"), &there, ApiErrorKind::NotFound, "model `modle-1`");
    assert_eq!(error.nearest[0], "model-1");
    let other = training(|t| {
        let weights = ObjectRef { digest: Digest::of(b"other"), ..object() };
        t.train.init = Some(InitWeights { weights, ..start("main", Some("model-1")) });
    });
    refused(&other, &there, ApiErrorKind::Invalid, "is not the weights of model `model-1`");
    assert!(resolve(&from("model-1"), &there).is_ok());
}

#[test]
fn stopping_early_needs_validation_rows() {
    let none =
        Facts { datasets: vec![manifest("ingest-0", [10, 10, 10]), manifest("ingest-1", [100, 0, 30])], ..facts() };
    let patient = training(|t| t.train.patience = 3);
    refused(&patient, &none, ApiErrorKind::Invalid, "no rows in its validation split");
    assert!(resolve(&patient, &facts()).is_ok());
}

#[test]
fn settings_of_a_training_out_of_range_are_refused_by_name() {
    invalid_training(|t| t.train.epochs = 0, "`epochs`");
    invalid_training(|t| t.train.batch_size = 1, "`batch_size`");
    invalid_training(|t| t.train.batch_size = 101, "only 100 rows");
    invalid_training(|t| t.train.inner_steps = 0, "`inner_steps`");
    invalid_training(|t| t.train.validate_every = 0, "`validate_every`");
    invalid_training(|t| t.train.margin = 0.0, "`margin`");
    invalid_training(|t| t.train.margin = f32::NAN, "`margin`");
    invalid_training(|t| t.train.masked_share = 1.5, "`masked_share`");
    invalid_training(|t| t.train.warmup_share = -0.1, "`warmup_share`");
    invalid_training(|t| t.train.random_crop = 0.6, "`random_crop`");
    for (optimizer, word) in optimizers_out_of_range() {
        invalid_training(|t| t.train.optimizer = optimizer, word);
    }
    invalid_training(|t| t.train.clip_norm = f64::NAN, "`clip_norm`");
    invalid_training(|t| t.train.backbone.lr_factor = 0.0, "`backbone.lr_factor`");
    invalid_training(|t| t.train.colour.hue = 0.6, "`colour.hue`");
    invalid_training(|t| t.train.colour.contrast = -0.1, "`colour.contrast`");
    let crop = |scale, ratio| Some(ResizedCrop { scale, ratio });
    invalid_training(|t| t.train.resized_crop = crop([0.0, 1.0], [1.0, 1.0]), "`resized_crop.scale`");
    invalid_training(|t| t.train.resized_crop = crop([0.5, 1.0], [1.5, 1.0]), "`resized_crop.ratio`");
    invalid_training(|t| t.train.resized_crop = crop([0.5, 1.0], [1.0, 1.0]), "takes the place of `random_crop`");
    invalid_training(|t| (t.train.epochs, t.train.inner_steps) = (u32::MAX, 1), "raise `inner_steps`");
}

#[test]
fn a_mix_of_negatives_must_sum_to_one_and_flip_at_most_a_third() {
    let mix = |random, other, flipped| NegativeMix { random, other, flipped };
    invalid_training(|t| t.train.negatives = mix(0.0, 0.5, 0.3), "sum to 0.8");
    invalid_training(|t| t.train.negatives = mix(0.0, 0.5, 0.5), "at most 1/3");
    invalid_training(|t| t.train.negatives = mix(-0.5, 1.2, 0.3), "`negatives.random`");
    let written = training(|t| t.train.negatives = mix(0.0, 0.667, 0.333));
    assert!(resolve(&written, &facts()).is_ok());
}

#[test]
fn a_model_out_of_range_is_refused_by_name() {
    let with = |change: fn(&mut ModelSettings)| training(move |t| change(&mut t.model));
    type Change = fn(&mut ModelSettings);
    let cases: [(Change, &str); 6] = [
        (|m| m.embedding_dim = 0, "`embedding_dim` is 0"),
        (|m| m.embedding_dim = 4097, "`embedding_dim` is 4097"),
        (|m| m.preprocessing.input_px = 31, "`input_px` is 31"),
        (|m| m.preprocessing.input_px = 1025, "`input_px` is 1025"),
        (|m| m.preprocessing.std[1] = 0.0, "`std`"),
        (|m| m.preprocessing.mean[2] = f32::INFINITY, "`mean`"),
    ];
    for (change, text) in cases {
        refused(&with(change), &facts(), ApiErrorKind::Invalid, text);
    }
    assert!(resolve(&with(|m| m.architecture = Architecture::ResNet50), &facts()).is_ok());
}

#[test]
fn an_empty_training_split_is_refused() {
    let empty = Facts { datasets: vec![manifest("ingest-1", [0, 20, 30])], ..facts() };
    refused(&training(|_| {}), &empty, ApiErrorKind::Invalid, "no rows in its training split");
    let mut nameless = facts();
    nameless.datasets[1].vocabulary.names.clear();
    refused(&training(|_| {}), &nameless, ApiErrorKind::Invalid, "no attributes");
}

#[test]
fn an_ingest_needs_a_source_and_rows_per_part() {
    let ingest = |source, part_rows| request(RequestedWork::Ingest { dataset: name("faces"), source, part_rows });
    let folder = || IngestSource::Celeba { dir: "/data".into() };
    let files = |files: &[&str]| IngestSource::Parquet { files: files.iter().map(|f| f.to_string()).collect() };
    let facts = Facts::default();
    assert!(resolve(&ingest(folder(), 4096), &facts).is_ok());
    refused(&ingest(folder(), 0), &facts, ApiErrorKind::Invalid, "`part_rows` is 0");
    refused(&ingest(folder(), 65_537), &facts, ApiErrorKind::Invalid, "`part_rows` is 65537");
    refused(&ingest(IngestSource::Celeba { dir: " ".into() }, 1), &facts, ApiErrorKind::Invalid, "`dir`");
    refused(&ingest(files(&[]), 1), &facts, ApiErrorKind::Invalid, "names no file");
    refused(&ingest(files(&["a", ""]), 1), &facts, ApiErrorKind::Invalid, "empty name");
    refused(&ingest(files(&["a", "b", "a"]), 1), &facts, ApiErrorKind::Invalid, "`a` twice");
}

#[test]
fn what_grows_is_the_newest_version_and_counts_the_removals_there_are() {
    let append = |dataset: &str, base: Option<&str>, source| {
        let append = AppendSource { base: base.map(job_id), removals: 99, source };
        let source = IngestSource::Append(Box::new(append));
        request(RequestedWork::Ingest { dataset: name(dataset), source, part_rows: 4096 })
    };
    let celeba = || Some(IngestSource::Celeba { dir: "/data".into() });
    let facts = Facts { removals: 3, ..facts() };
    let resolved = |request: &JobRequest| {
        let JobWork::Ingest { source: IngestSource::Append(append), .. } = resolve(request, &facts).unwrap().spec.work
        else {
            panic!("it grows")
        };
        (append.base.unwrap().to_string(), append.removals, append.source)
    };
    assert_eq!(resolved(&append("faces", None, celeba())), ("ingest-1".into(), 3, celeba()));
    assert_eq!(resolved(&append("faces", Some("ingest-0"), None)), ("ingest-0".into(), 3, None));
    refused(&append("face", None, celeba()), &facts, ApiErrorKind::NotFound, "faces");
    refused(&append("faces", Some("ingest-7"), None), &facts, ApiErrorKind::NotFound, "ingest-7");
    let nested = append("faces", None, celeba());
    let RequestedWork::Ingest { source, .. } = nested.work else { panic!() };
    refused(&append("faces", None, Some(source)), &facts, ApiErrorKind::Invalid, "source of files");
}

#[test]
fn an_embedding_counts_the_rows_of_its_split() {
    let spec = resolve(&embedding(|e| e.rows = Split::Test), &facts()).unwrap().spec;
    let JobWork::Embed { embed, .. } = spec.work else { panic!() };
    assert_eq!((embed.gallery_rows, embed.shard_rows), (30, 40));
}

#[test]
fn an_empty_gallery_and_shards_out_of_range_are_refused() {
    let empty = Facts { datasets: vec![manifest("ingest-1", [100, 0, 0])], ..facts() };
    let test = embedding(|e| e.rows = Split::Test);
    refused(&test, &empty, ApiErrorKind::Invalid, "gallery `all` would be empty");
    refused(&embedding(|e| e.shard_rows = 0), &facts(), ApiErrorKind::Invalid, "`shard_rows` is 0");
    refused(&embedding(|e| e.shard_rows = 65_537), &facts(), ApiErrorKind::Invalid, "`shard_rows` is 65537");
    let huge = Facts { datasets: vec![manifest("ingest-1", [1_000_000, 0, 0])], ..facts() };
    refused(&embedding(|e| e.shard_rows = 1), &huge, ApiErrorKind::Invalid, "raise `shard_rows`");
}

#[test]
fn a_model_of_another_vocabulary_is_refused() {
    let mut facts = facts();
    facts.datasets[1].vocabulary.names[1] = "Bald".into();
    let text = "model `model-1` has another vocabulary than dataset `faces` version `ingest-1`: \
                attribute 1 is `Male` there and `Bald` here";
    refused(&embedding(|_| {}), &facts, ApiErrorKind::Invalid, text);
    facts.datasets[1].vocabulary.names.truncate(1);
    refused(&embedding(|_| {}), &facts, ApiErrorKind::Invalid, "3 attributes there, 1 here");
}

#[test]
fn an_evaluation_needs_rows_that_the_gallery_holds_and_a_model_that_fits() {
    assert!(resolve(&evaluation(|_| {}), &facts()).is_ok());
    let train_only = Facts { generation: Some(generation_manifest("model-1", Split::Train)), ..facts() };
    let text = "holds the train rows, so test rows can't be evaluated";
    refused(&evaluation(|_| {}), &train_only, ApiErrorKind::Invalid, text);
    let mut empty = facts();
    empty.generation.as_mut().unwrap().shards.clear();
    refused(&evaluation(|_| {}), &empty, ApiErrorKind::Invalid, "is empty");
    let mut other = facts();
    other.generation.as_mut().unwrap().embedding_dim = 300;
    refused(&evaluation(|_| {}), &other, ApiErrorKind::Invalid, "has dimension 64");
    let mut other = facts();
    other.model.as_mut().unwrap().vocabulary.names.reverse();
    refused(&evaluation(|_| {}), &other, ApiErrorKind::Invalid, "another vocabulary");
    let gone = Facts { model: None, ..facts() };
    refused(&evaluation(|_| {}), &gone, ApiErrorKind::NotFound, "no model `model-1`");
}

#[test]
fn query_settings_out_of_range_are_refused_by_name() {
    let invalid = |change: fn(&mut EvaluateStage), text| {
        refused(&evaluation(change), &facts(), ApiErrorKind::Invalid, text);
    };
    invalid(|e| e.settings.queries_per_task = 0, "`queries_per_task`");
    invalid(|e| e.settings.min_relevant = 0, "`min_relevant`");
    invalid(|e| e.settings.pairs = 100_001, "`pairs`");
    invalid(|e| e.settings.triples = 100_001, "`triples`");
}

#[test]
fn a_first_pipeline_has_nothing_to_be_compared_with() {
    let Resolved { id, spec } = resolve(&request(pipeline()), &facts()).unwrap();
    let JobWork::Pipeline { baseline, embed, train, .. } = spec.work else { panic!() };
    assert_eq!(baseline, None);
    assert_eq!(embed.dataset, train.dataset);
    assert!(id.as_str().starts_with("pipeline-"));
}

fn with_release(rows: Split) -> Facts {
    Facts {
        releases: vec![release(1, "older"), release(2, "old")],
        compared_generation: Some(generation_manifest("old", rows)),
        compared_model: Some(model_manifest("old")),
        ..facts()
    }
}

fn baseline_of(request: &JobRequest, facts: &Facts) -> Option<Baseline> {
    let JobWork::Pipeline { baseline, .. } = resolve(request, facts).unwrap().spec.work else { panic!() };
    baseline
}

#[test]
fn a_pipeline_is_compared_with_the_newest_release_in_its_own_generation_where_the_rows_are_the_same() {
    let baseline = baseline_of(&request(pipeline()), &with_release(Split::All)).unwrap();
    assert_eq!((baseline.release, baseline.embed), (2, false));
    assert_eq!(baseline.generation, generation_ref("old"));
}

#[test]
fn other_rows_are_embedded_again_with_the_model_of_the_release() {
    let facts = with_release(Split::Test);
    let baseline = baseline_of(&request(pipeline()), &facts).unwrap();
    assert!(baseline.embed);
    assert_eq!(baseline.model, job_id("old"));
    assert!(baseline.generation.generation.as_str().starts_with("baseline-"));
    assert_eq!(baseline_of(&request(pipeline()), &facts), Some(baseline), "the same request, the same job");
}

#[test]
fn a_pipeline_means_the_same_after_its_own_release() {
    let before = resolve(&request(pipeline()), &facts()).unwrap();
    let after = resolve(&request(pipeline()), &with_release(Split::All)).unwrap();
    assert_eq!(before.id, after.id);
    assert_ne!(before.spec, after.spec, "it would be compared with its own release");
    assert!(same_job(&before.spec, &after.spec));
    let other = resolve(&JobRequest { priority: Priority::Hi, ..request(pipeline()) }, &facts()).unwrap();
    assert!(before.id != other.id && !same_job(&before.spec, &other.spec));
}

#[test]
fn a_release_of_another_vocabulary_cannot_be_compared() {
    let mut facts = with_release(Split::All);
    facts.compared_model.as_mut().unwrap().vocabulary.names.pop();
    refused(&request(pipeline()), &facts, ApiErrorKind::Invalid, "release 2 of `live` has another vocabulary");
    let gone = Facts { compared_model: None, ..with_release(Split::All) };
    refused(&request(pipeline()), &gone, ApiErrorKind::NotFound, "model `old` of release 2 of `live`");
}

#[test]
fn a_pipeline_without_rows_to_evaluate_is_refused() {
    let none = Facts { datasets: vec![manifest("ingest-1", [100, 20, 0])], ..facts() };
    refused(&request(pipeline()), &none, ApiErrorKind::Invalid, "has no test rows");
}

#[test]
fn a_rollback_goes_one_back_unless_told() {
    let releases = [release(1, "a"), release(2, "b"), release(3, "c")];
    assert_eq!(rollback_target(&releases, None).unwrap().number, 2);
    assert_eq!(rollback_target(&releases, Some(1)).unwrap().number, 1);
    let error = |to| rollback_target(&releases, to).unwrap_err().message;
    assert_eq!(error(Some(3)), "release 3 of `live` is the newest one already");
    assert_eq!(error(Some(9)), "`live` has no release 9, only 1 to 3");
    let first = rollback_target(&releases[..1], None).unwrap_err();
    assert_eq!(first.message, "`live` serves its first release, there is none before it");
}

#[test]
fn a_second_rollback_goes_two_back() {
    let back = |number, to| Release { rolls_back_to: Some(to), replaces: Some(number - 1), ..release(number, "x") };
    let releases = [release(1, "a"), release(2, "b"), release(3, "c"), back(4, 2), back(5, 1)];
    assert_eq!(rollback_target(&releases[..4], None).unwrap().number, 1);
    assert!(rollback_target(&releases, None).is_err(), "the first one serves again");
    assert_eq!(rollback_target(&releases, Some(3)).unwrap().number, 3);
}

fn question_part(from: u64) -> QuestionPart {
    let digest = Digest::of(&from.to_le_bytes());
    QuestionPart { object: ObjectRef { key: keys::questions(&digest), digest, bytes: 10 }, from, questions: 5 }
}

fn search_file() -> RequestedWork {
    RequestedWork::Search(SearchFile { alias: name("live"), parts: vec![question_part(0), question_part(5)] })
}

#[test]
fn a_file_of_questions_is_answered_by_the_release_that_is_newest_when_it_comes() {
    let Resolved { id, spec } = resolve(&request(search_file()), &with_release(Split::All)).unwrap();
    let JobWork::Search(search) = &spec.work else { panic!() };
    assert_eq!((search.release, &search.model, &search.generation), (2, &job_id("old"), &generation_ref("old")));
    assert_eq!(search.parts.len(), 2);
    assert!(id.as_str().starts_with("search-"));
    let later = Facts { releases: vec![release(2, "old"), release(3, "old")], ..with_release(Split::All) };
    assert_ne!(resolve(&request(search_file()), &later).unwrap().id, id, "another release is another job");
}

#[test]
fn a_file_of_questions_that_cannot_be_answered_is_refused() {
    let refused = |work: RequestedWork, facts: &Facts| resolve(&request(work), facts).unwrap_err();
    let nobody = Facts { aliases: vec![name("life")], ..facts() };
    let error = refused(search_file(), &nobody);
    assert_eq!((error.kind, error.nearest), (ApiErrorKind::NotFound, vec!["life".to_string()]));
    let gone = Facts { compared_generation: None, ..with_release(Split::All) };
    assert!(refused(search_file(), &gone).message.contains("release 2 of `live`"));
    let mut elsewhere = Facts { compared_model: None, ..with_release(Split::All) };
    elsewhere.compared_generation.as_mut().unwrap().origin = Origin::Elsewhere;
    assert!(matches!(resolve(&request(search_file()), &elsewhere).unwrap().spec.work, JobWork::Search(_)));
    let missing = Facts { missing_parts: vec!["questions/x.jsonl".into()], ..with_release(Split::All) };
    assert!(refused(search_file(), &missing).message.contains("`questions/x.jsonl`"));
    let there = with_release(Split::All);
    let with = |parts: Vec<QuestionPart>| RequestedWork::Search(SearchFile { alias: name("live"), parts });
    assert!(refused(with(vec![]), &there).message.contains("has no questions"));
    assert!(refused(with(vec![question_part(5)]), &there).message.contains("begins with question 5, expected 0"));
    let mut elsewhere = question_part(0);
    elsewhere.object.key = "jobs/j/spec.json".into();
    assert!(refused(with(vec![elsewhere]), &there).message.contains("no part of a file of questions"));
    let none = QuestionPart { questions: 0, ..question_part(0) };
    assert!(refused(with(vec![none]), &there).message.contains("0 questions, expected 1 to 65536"));
}

#[test]
fn own_queries_must_be_in_the_store_and_their_name_makes_no_other_job() {
    let own = |source: &str| {
        let object = ObjectRef { key: "queries/aa.json".into(), digest: Digest::of(b"aa"), bytes: 7 };
        Some(BroughtQueries { source: source.into(), object })
    };
    let asked = |source: &str| {
        let own = own(source);
        evaluation(move |evaluate| evaluate.settings.own = own)
    };
    refused(&asked("mine.csv"), &facts(), ApiErrorKind::Invalid, "the queries of `mine.csv` are not in the store");
    let there = Facts { own_bytes: Some(7), ..facts() };
    let resolved = resolve(&asked("mine.csv"), &there).unwrap();
    assert_eq!(resolved.id, resolve(&asked("copy.csv"), &there).unwrap().id);
    assert_ne!(resolved.id, resolve(&evaluation(|_| {}), &there).unwrap().id);
    refused(&asked("https://u:p@example.org/q.csv"), &there, ApiErrorKind::Invalid, "names a user");
}

#[test]
fn a_floor_is_of_a_pipeline_alone_and_a_share() {
    refused(&evaluation(|e| e.settings.floor = 0.2), &facts(), ApiErrorKind::Invalid, "of a pipeline's gate");
    refused(&evaluation(|e| e.settings.floor = 1.5), &facts(), ApiErrorKind::Invalid, "`floor` is 1.5");
}

#[test]
fn embeddings_from_elsewhere_are_imported_and_evaluated_and_no_pipeline_is_compared_with_them() {
    let JobSpec { work: JobWork::Import(good), .. } = import(100) else { panic!("an import") };
    let resolved = resolve(&request(RequestedWork::Import(good.clone())), &Facts::default()).unwrap();
    assert!(resolved.id.as_str().starts_with("import-"));
    let refused = |change: &dyn Fn(&mut Import)| {
        let mut import = good.clone();
        change(&mut import);
        resolve(&request(RequestedWork::Import(import)), &Facts::default()).unwrap_err().message
    };
    assert!(refused(&|import| import.shard_rows = 0).contains("`shard_rows` is 0"));
    let files = |files: &[&str]| EmbeddingSource::Parquet { files: files.iter().map(ToString::to_string).collect() };
    assert!(refused(&|import| import.source = files(&[])).contains("names no file"));
    assert!(refused(&|import| import.source = files(&["/a", "/a"])).contains("`/a` is named twice"));
    assert!(refused(&|import| import.source = files(&["s3://me:secret@b/a"])).contains("names a user"));

    let mut facts = facts();
    facts.generation.as_mut().unwrap().origin = Origin::Elsewhere;
    facts.model = None;
    assert!(matches!(resolve(&evaluation(|_| ()), &facts).unwrap().spec.work, JobWork::Evaluate { .. }));
    let mut unlabelled = facts.clone();
    unlabelled.generation.as_mut().unwrap().vocabulary.names.clear();
    let error = resolve(&evaluation(|_| ()), &unlabelled).unwrap_err();
    assert!(error.message.contains("was imported without labels"), "{}", error.message);
    let serving = release(1, "imported");
    facts.compared_generation = facts.generation.clone();
    facts.compared_generation.as_mut().unwrap().generation = serving.generation.clone();
    facts.releases = vec![serving];
    let error = resolve(&request(pipeline()), &facts).unwrap_err();
    assert!(error.message.contains("give another `--alias`"), "{}", error.message);
}
