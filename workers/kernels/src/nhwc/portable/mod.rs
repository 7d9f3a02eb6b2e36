//! Every operation as plain loops: the fallback, and the oracle of the fast kernels.
//!
//! Convolutions add up in `f64`, so that an error against them is the fast kernel's own.

mod conv;

pub use conv::{Packed, conv_forward, conv_input_gradient, conv_weight_gradient};
