//! From files of images and labels to batches of numbers: read sources, decode, resize, augment, sample.
//!
//! * [`source`] reads what users have (CelebA as distributed, Parquet, CSV, folders of images): a scan lists the rows
//!   without touching images, reading takes some of these rows and checks every image by decoding it.
//! * [`embeddings`] reads vectors that were made elsewhere.
//! * [`rows`] is the scan as bytes, [`part`] a dataset part as bytes; both are Parquet.
//! * [`image`] turns encoded bytes into pixels and pixels into the model's input; common JPEGs go straight there by a
//!   decoder of our own (`jpeg`).
//! * [`images`] holds a training set in memory; [`sampling`] draws triplets; [`augment`] is what may be changed of their
//!   images.
//!
//! Invariants. Images keep their own bytes until they become an input. Everything random is a pure function
//! of settings and step. Whatever comes from outside costs bounded memory and ends in a value or an
//! [`Error`] that names the place. Heavy work runs on all cores by rayon and must not be called on a thread
//! of an async runtime. Absent on purpose: network, async, tensors, EXIF orientation.

pub mod augment;
mod columns;
pub mod embeddings;
mod error;
mod guard;
pub mod image;
pub mod images;
mod jpeg;
mod labels;
pub mod part;
mod random;
pub mod rows;
pub mod sampling;
pub mod source;
#[cfg(test)]
mod testing;

pub use crate::augment::Augment;
pub use crate::image::{ImageError, Loader, Rgb8, check as check_image, decode_rgb};
pub use crate::images::{Crops, TrainImages};
pub use embeddings::{EmbeddingList, read_embeddings, scan_embeddings};
pub use error::{Error, ErrorKind, Result};
pub use part::{
    DigestedRow, EncodedPart, GROUP_ROWS, Part, PartItem, PartRow, PartWriter, digested, encode_part, part_items,
};
pub use rows::{Place, Scan, ScanRow, count_labels, decode_notes, decode_rows, encode_rows};
pub use sampling::{TripletRows, TripletSampler};
pub use source::{Disk, Files, PartContent, Places, TableFile, read_rows, read_rows_from, scan, scan_from};
