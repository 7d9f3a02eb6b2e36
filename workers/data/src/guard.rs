//! Other people's decoders panic on some damaged files; here a damaged file is an error like any other.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a decoder; a panic becomes the text that it was raised with. Whatever `decode` works on is thrown away by
/// the caller then.
pub(crate) fn guarded<T>(decode: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(decode)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "the decoder panicked".into())
    })
}

#[cfg(test)]
mod tests {
    use super::guarded;

    #[test]
    fn a_panic_becomes_its_text() {
        assert_eq!(guarded(|| 5), Ok(5));
        let index = std::hint::black_box(3);
        assert!(guarded(|| [1, 2][index]).unwrap_err().contains("out of bounds"));
    }
}
