//! The figures of a training as a TensorBoard event file.
//!
//! An event file is a run of TFRecords (length, its masked CRC-32C, data, its masked CRC-32C), each an `Event`
//! message of TensorFlow's `event.proto`; the few fields needed are written by hand. Events carry no clock: their
//! wall time is their step, in seconds since 1970, so that equal figures give equal bytes.

use likeness_contract::tables::DISTANCE_BINS;
use likeness_model::StepFigures;

use super::figures::FigureRow;

/// Most histograms of each kind: TensorBoard shows no more, and they are most of the file.
const HISTOGRAMS: usize = 500;
/// Width of a bin: the histograms span 0–2.
const BIN_WIDTH: f64 = 2.0 / DISTANCE_BINS as f64;

type Scalar = (&'static str, fn(&StepFigures) -> f64);

const SCALARS: [Scalar; 8] = [
    ("loss", |f| f.loss),
    ("easy", |f| f.easy),
    ("semi_hard", |f| f.semi_hard),
    ("hard", |f| f.hard),
    ("correct", |f| f.correct),
    ("dp_mean", |f| f.dp_mean),
    ("dn_mean", |f| f.dn_mean),
    ("lr", |f| f.lr),
];

/// The event file: scalars `<phase>/<figure>` of every row; histograms `<phase>/dp` and `<phase>/dn`.
pub(super) fn encode(rows: &[FigureRow]) -> Vec<u8> {
    let every = rows.len().div_ceil(HISTOGRAMS).max(1);
    let mut file = Vec::new();
    record(&mut file, &version_event());
    for (i, row) in rows.iter().enumerate() {
        record(&mut file, &event(row, i % every == 0));
    }
    file
}

fn record(file: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    file.extend(length);
    file.extend(masked_crc(&length).to_le_bytes());
    file.extend(data);
    file.extend(masked_crc(data).to_le_bytes());
}

/// TFRecord stores checksums rotated and shifted, so that data which holds checksums stays well distributed.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// `Event { wall_time = 1, file_version = 3 }`
fn version_event() -> Vec<u8> {
    let mut event = Proto::default();
    event.double(1, 0.0);
    event.bytes(3, b"brain.Event:2");
    event.0
}

/// `Event { wall_time = 1, step = 2, summary = 5 }`
fn event(row: &FigureRow, with_histograms: bool) -> Vec<u8> {
    let FigureRow { step, phase, figures } = row;
    let mut summary = Proto::default();
    for (name, of) in SCALARS {
        summary.bytes(1, &scalar(&format!("{}/{name}", phase.name()), of(figures)));
    }
    if with_histograms {
        for (name, counts) in [("dp", &figures.dp_histogram), ("dn", &figures.dn_histogram)] {
            summary.bytes(1, &histogram(&format!("{}/{name}", phase.name()), counts));
        }
    }
    let mut event = Proto::default();
    event.double(1, *step as f64);
    event.varint(2, *step);
    event.bytes(5, &summary.0);
    event.0
}

/// `Value { tag = 1, simple_value = 2 }`
fn scalar(tag: &str, value: f64) -> Vec<u8> {
    let mut message = Proto::default();
    message.bytes(1, tag.as_bytes());
    message.float(2, value as f32);
    message.0
}

/// `Value { tag = 1, histo = 5 }` with `HistogramProto { min, max, num, sum, sum_squares, bucket_limit, bucket }`;
/// sums are those of the bins' middles.
fn histogram(tag: &str, counts: &[u32; DISTANCE_BINS]) -> Vec<u8> {
    let limit = |bin: usize| (bin + 1) as f64 * BIN_WIDTH;
    let sum = |f: fn(f64) -> f64| -> f64 {
        counts.iter().enumerate().map(|(bin, count)| f64::from(*count) * f(limit(bin) - BIN_WIDTH / 2.0)).sum()
    };
    let first = counts.iter().position(|count| *count > 0).unwrap_or(0);
    let last = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
    let mut histo = Proto::default();
    histo.double(1, first as f64 * BIN_WIDTH);
    histo.double(2, limit(last));
    histo.double(3, counts.iter().map(|count| f64::from(*count)).sum());
    histo.double(4, sum(|middle| middle));
    histo.double(5, sum(|middle| middle * middle));
    histo.doubles(6, (0..DISTANCE_BINS).map(limit));
    histo.doubles(7, counts.iter().map(|count| f64::from(*count)));
    let mut message = Proto::default();
    message.bytes(1, tag.as_bytes());
    message.bytes(5, &histo.0);
    message.0
}

/// A protocol buffer message in the making.
#[derive(Default)]
struct Proto(Vec<u8>);

impl Proto {
    fn key(&mut self, field: u64, wire_type: u64) {
        self.raw_varint(field << 3 | wire_type);
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.raw_varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    /// Packed.
    fn doubles(&mut self, field: u64, values: impl Iterator<Item = f64>) {
        let packed: Vec<u8> = values.flat_map(f64::to_le_bytes).collect();
        self.bytes(field, &packed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::{Phase, example};
    use super::*;

    #[test]
    fn a_record_has_the_bytes_that_tensorboard_writes() {
        // from tensorboard.compat.proto.event_pb2 import Event
        // from tensorboard.summary.writer.record_writer import RecordWriter; import io
        // b = io.BytesIO(); RecordWriter(b).write(Event(file_version="brain.Event:2").SerializeToString())
        // print(b.getvalue().hex())
        let mut file = Vec::new();
        record(&mut file, b"\x1a\x0dbrain.Event:2");
        assert_eq!(hex(&file), "0f000000000000006d532b091a0d627261696e2e4576656e743a32fc985129");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn numbers_over_127_take_several_bytes() {
        let mut message = Proto::default();
        message.varint(2, 300);
        assert_eq!(message.0, [0x10, 0xac, 0x02]);
    }

    #[test]
    fn a_long_training_keeps_its_scalars_and_thins_its_histograms() {
        let rows: Vec<_> = (0..1_200).map(|step| example(step, Phase::Train)).collect();
        let count = |file: &[u8], tag: &[u8]| file.windows(tag.len()).filter(|window| *window == tag).count();
        let file = encode(&rows);
        assert_eq!(count(&file, b"train/loss"), 1_200);
        assert_eq!(count(&file, b"train/dp\x2a"), 400);
        assert_eq!(file, encode(&rows), "equal figures give equal bytes");
    }
}
