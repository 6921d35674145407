//! Builds the XDP programs that lb is measured with.

#[path = "../lb-userspace/build/xdp.rs"]
mod xdp;

/// The kernel wants to know the types where a function calls another program.
const WITH_TYPES: [&str; 2] = ["-Cdebuginfo=2", "-Clink-arg=--btf"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    xdp::build("lb-tests-ebpf", &["tests/ebpf"], &WITH_TYPES, "LB_TESTS_EBPF_OBJECT")
}
