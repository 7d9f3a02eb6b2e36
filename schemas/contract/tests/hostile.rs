//! Bytes from anywhere: a clear error, whatever they say, and bounded memory.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use likeness_contract::codec::*;
use likeness_contract::ids::*;
use likeness_contract::jobs::*;
use likeness_contract::search::*;
use proptest::prelude::*;

fn message() -> TaskMessage {
    TaskMessage {
        job: JobId::new("j").unwrap(),
        run: RunNumber(1),
        task: TaskId::new("init").unwrap(),
        work: TaskWork::TrainInit,
    }
}

#[test]
fn a_newer_version_is_told_apart_from_garbage() {
    let json = encode(&message(), Encoding::Json).unwrap();
    let newer = String::from_utf8(json).unwrap().replace("\"version\":1", "\"version\":9");
    let error = decode::<TaskMessage>(newer.as_bytes(), Encoding::Json).unwrap_err();
    assert_eq!(error, CodecError::Newer { message: "task", found: 9, known: 2 });

    let mut binary = encode(&message(), Encoding::Bincode).unwrap();
    let version = 4 + 1 + "task".len();
    assert_eq!(binary[version], 1);
    binary[version] = 9;
    let error = decode::<TaskMessage>(&binary, Encoding::Bincode).unwrap_err();
    assert_eq!(error, CodecError::Newer { message: "task", found: 9, known: 2 });
}

#[test]
fn another_message_is_named_in_the_error() {
    let binary = encode(&message(), Encoding::Bincode).unwrap();
    let error = decode::<Run>(&binary, Encoding::Bincode).unwrap_err();
    assert_eq!(error.to_string(), "malformed `run`: the envelope says `task`");
}

#[test]
fn bytes_after_the_end_are_refused() {
    let mut binary = encode(&message(), Encoding::Bincode).unwrap();
    binary.push(0);
    assert!(decode::<TaskMessage>(&binary, Encoding::Bincode).unwrap_err().to_string().contains("after its end"));
}

#[test]
fn an_id_that_a_subject_would_misread_is_refused() {
    let json = String::from_utf8(encode(&message(), Encoding::Json).unwrap()).unwrap();
    let error = decode::<TaskMessage>(json.replace("\"j\"", "\"a.>\"").as_bytes(), Encoding::Json).unwrap_err();
    assert!(error.to_string().contains("is no job id"), "{error}");
}

#[test]
fn a_length_that_lies_costs_no_memory() {
    // A vector term that claims 2⁶³ floats.
    let mut binary = b"LKN1".to_vec();
    binary.extend(b"\x0esearch-request\x01");
    binary.extend(b"\x04main\x01\x00\x00\x80\x3f\x03\xfd\xff\xff\xff\xff\xff\xff\xff\x7f");
    assert!(decode::<SearchRequest>(&binary, Encoding::Bincode).is_err());
}

#[test]
fn a_message_over_the_limit_is_refused_in_both_directions() {
    let item = "x".repeat(MAX_MESSAGE_BYTES);
    let ask = LeafAsk::Embedding { shards: vec![], item };
    let generation = GenerationRef { gallery: Name::new("g").unwrap(), generation: JobId::new("n").unwrap() };
    let request = LeafRequest { generation, deadline_ms: 1, number: 1, ask };
    assert!(matches!(encode(&request, Encoding::Bincode), Err(CodecError::TooLarge { .. })));
    let bytes = vec![b'{'; MAX_MESSAGE_BYTES + 1];
    assert!(matches!(decode::<LeafRequest>(&bytes, Encoding::Json), Err(CodecError::TooLarge { .. })));
}

#[test]
fn what_fits_when_it_is_written_is_read_back() {
    let shards = vec![7; MAX_MESSAGE_BYTES - 100];
    let ask = LeafAsk::TopK { shards, query: vec![1.0], k: 1, details: false, filter: vec![], recall: None };
    let generation = GenerationRef { gallery: Name::new("g").unwrap(), generation: JobId::new("n").unwrap() };
    let request = LeafRequest { generation, deadline_ms: 1, number: 1, ask };
    let bytes = encode(&request, Encoding::Bincode).unwrap();
    assert!(bytes.len() > MAX_MESSAGE_BYTES - 100, "one byte a shard");
    assert_eq!(decode::<LeafRequest>(&bytes, Encoding::Bincode).unwrap(), request);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode::<SearchReply>(&bytes, Encoding::Bincode);
        let _ = decode::<SearchReply>(&bytes, Encoding::Json);
        let mut framed = b"LKN1\x0csearch-reply\x01".to_vec();
        framed.extend(&bytes);
        let _ = decode::<SearchReply>(&framed, Encoding::Bincode);
    }

    #[test]
    fn a_flipped_byte_never_panics(at in 0usize..1_000, to in any::<u8>()) {
        let mut binary = encode(&message(), Encoding::Bincode).unwrap();
        let at = at % binary.len();
        binary[at] = to;
        let _ = decode::<TaskMessage>(&binary, Encoding::Bincode);
    }
}
