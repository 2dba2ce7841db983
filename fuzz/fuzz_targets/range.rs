#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for size_bytes in [0, 1, 10, 1 << 20, u64::MAX] {
        larder_shim::fuzz::range(text, size_bytes);
    }
});
