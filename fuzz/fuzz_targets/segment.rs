#![no_main]

libfuzzer_sys::fuzz_target!(init: weir_fuzz::write_seeds("segment"), |data: &[u8]| (weir_fuzz::target("segment").run)(data));
