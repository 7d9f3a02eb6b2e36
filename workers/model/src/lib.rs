//! Images and attribute queries into one embedding space: the network, its losses, its optimizer and its checkpoints.
//!
//! ```text
//! two towers, the article's
//!     images (B, 3, H, W) ─ backbone ─ (B, F) ─ fc ─ (B, D) ─ L2 ─┐
//!                                                                 ├─ losses of distances
//!     positives, negatives (B, A) ─ linear1 ─ bn1 ─ ReLU ─ linear2 ─ (B, D) ─ L2 ─┘
//! log-probabilities
//!     images (B, 3, H, W) ─ backbone ─ (B, F) ─ fc ─ logits (B, A) ─ binary cross-entropy
//!                                                 └─ fixed map (`joint`) ─ (B, 2A + 1), unit length
//!     queries (B, A) ─ fixed map ─ (B, 2A + 1), unit length
//! ```
//!
//! [`Model`] is what serves: images and queries in inference mode. [`Trainer`] is what learns: a model with the
//! optimizer's state and the number of steps behind it, written to and read from a checkpoint. [`OuterStep`] makes one
//! checkpoint of what several trainers learned apart.
//!
//! What always holds:
//! * everything is `f32`; tensors have the names that PyTorch gives them (`image.` + torchvision's ResNet with D
//!   outputs; `attributes.` + the attribute tower);
//! * a trainer is a pure function of its checkpoint and the batches: the same bytes whatever the number of
//!   threads, and whether or not it was saved and read back in between. The way to compute ([`CpuCompute`]), the
//!   instruction set and the device change the last digits;
//! * on the CPU the backbone runs as one operation, elsewhere layer by layer: both give the same numbers to rounding;
//! * what is not finite is an error and is never written.
//!
//! Absent on purpose: tokio, NATS, files, clocks, and any reading of images.

mod average;
mod backbone;
mod checkpoint;
mod error;
mod init;
mod joint;
mod layers;
mod loss;
mod losses;
mod model;
mod network;
#[cfg(test)]
mod network_tests;
mod optimizer;
mod outer;
#[cfg(test)]
mod pytorch_tests;
mod query;
mod resnet;
mod schedule;
mod tensors;
mod towers;
mod trainer;
#[cfg(test)]
mod trainer_tests;

pub use backbone::{Backbone, CpuCompute, Mode, Winograd};
pub use error::{Error, ErrorKind, Result};
pub use layers::BatchStatistics;
pub use loss::{StepFigures, Triplets};
pub use model::{Batch, Model};
pub use outer::{NextRound, OuterStep};
pub use query::encode_query;
pub use schedule::learning_rate;
pub use trainer::Trainer;
