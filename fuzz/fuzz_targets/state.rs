#![no_main]

libfuzzer_sys::fuzz_target!(init: weir_fuzz::write_seeds("state"), |data: &[u8]| (weir_fuzz::target("state").run)(data));
