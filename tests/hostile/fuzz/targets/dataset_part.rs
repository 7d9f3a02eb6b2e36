#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| likeness_hostile::dataset_part(bytes));
