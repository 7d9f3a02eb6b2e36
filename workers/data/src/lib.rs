//! Read, decode, resize, augment, sample.
