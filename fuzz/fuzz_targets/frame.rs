#![no_main]

libfuzzer_sys::fuzz_target!(init: weir_fuzz::write_seeds("frame"), |data: &[u8]| (weir_fuzz::target("frame").run)(data));
