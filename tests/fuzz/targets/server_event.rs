#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| chatbox_tests::properties::server_event(data));
