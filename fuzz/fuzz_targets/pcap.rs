#![no_main]

libfuzzer_sys::fuzz_target!(init: weir_fuzz::write_seeds("pcap"), |data: &[u8]| (weir_fuzz::target("pcap").run)(data));
