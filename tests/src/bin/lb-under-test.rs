//! `lb`, built with the tests, so that they never run one of another day.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_userspace::cli::main()
}
