#![no_main]

libfuzzer_sys::fuzz_target!(init: weir_fuzz::write_seeds("sflow"), |data: &[u8]| (weir_fuzz::target("sflow").run)(data));
