#![no_main]

libfuzzer_sys::fuzz_target!(init: likeness_hostile::heed_uncaught_panics(), |bytes: &[u8]| likeness_hostile::csv(bytes));
