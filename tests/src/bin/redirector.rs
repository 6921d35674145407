//! Has frames redirected from each of two interfaces to the other one, with nothing changed but hardware addresses: the
//! least that a program which forwards can do. Runs until it is ended; programs and attachments end with it.

use std::process::ExitCode;

use clap::Parser;
use lb_tests::bench::{Side, redirect};

#[derive(Parser)]
struct Arguments {
    /// The two interfaces, each as name, own hardware address and that of whoever is to get its frames, as in
    /// lb0,02:00:00:00:00:01,02:00:00:00:00:02
    #[arg(num_args = 2, required = true)]
    sides: Vec<Side>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let [one, other] = &arguments.sides[..] else { return ExitCode::FAILURE };
    match redirect(one, other) {
        Ok(_attached) => loop {
            std::thread::park();
        },
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
