//! Builds the XDP program, so that it can be put into the binary.

#[path = "build/xdp.rs"]
mod xdp;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sources = ["lb-ebpf/src", "lb-ebpf/Cargo.toml", "lb-common/src", "lb-common/Cargo.toml"];
    xdp::build("lb-ebpf", &sources, &[], "LB_EBPF_OBJECT")
}
