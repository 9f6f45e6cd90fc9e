#![no_main]

libfuzzer_sys::fuzz_target!(init: weir_fuzz::write_seeds("netflow"), |data: &[u8]| (weir_fuzz::target("netflow").run)(data));
