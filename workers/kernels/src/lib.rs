//! Fast CPU operations behind candle custom ops.
