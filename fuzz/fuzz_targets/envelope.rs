#![no_main]

libfuzzer_sys::fuzz_target!(init: weir_fuzz::write_seeds("envelope"), |data: &[u8]| (weir_fuzz::target("envelope").run)(data));
