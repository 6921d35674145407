//! Tables, JSON and errors.

use std::{
    fmt::Display,
    io::{self, Write},
    process::{self, ExitCode},
};

use clap::error::ErrorKind;
use comfy_table::{
    CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets::NOTHING,
};
use serde::Serialize;

use crate::{api::ClientError, config::Invalid, control::StartError, dataplane::DataplaneError};

/// Widest table, in columns.
const WIDTH: u16 = 100;

/// Why a command didn't do what was asked.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    /// What is wrong with a configuration, a few lines for each problem; may be empty.
    problems: String,
    message: String,
}

impl Failure {
    /// It failed.
    pub(super) fn failed(message: impl Display) -> Self {
        Self { code: 1, problems: String::new(), message: message.to_string() }
    }

    /// What was asked can't be.
    pub(super) fn usage(message: impl Display) -> Self {
        Self { code: 2, problems: String::new(), message: message.to_string() }
    }

    /// What was asked can't be, for reasons that are told line by line.
    pub(super) fn problems(problems: String, message: impl Display) -> Self {
        Self { code: 2, problems, message: message.to_string() }
    }

    /// Tells it on standard error.
    pub(super) fn report(self) -> ExitCode {
        if !self.problems.is_empty() {
            eprintln!("{}", self.problems);
        }
        eprintln!("lb: {}", self.message);
        ExitCode::from(self.code)
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        match invalid.problems().len() {
            0 => Self::usage(invalid),
            1 => Self::problems(invalid.to_string(), "the configuration has a problem"),
            count => Self::problems(
                invalid.to_string(),
                format!("the configuration has {count} problems"),
            ),
        }
    }
}

impl From<DataplaneError> for Failure {
    fn from(error: DataplaneError) -> Self {
        Self::failed(error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::failed(error)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Config(invalid) => invalid.into(),
            StartError::Unusable(why) => Self::usage(why),
            error => Self::failed(error),
        }
    }
}

/// What the command line's parser has to say: help and version, or what is wrong.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    let mut text = error.to_string();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprint!("{text}");
        return ExitCode::from(2);
    }
    if error.use_stderr() {
        eprint!("lb: {}", text.strip_prefix("error: ").unwrap_or(&text));
        return ExitCode::from(2);
    }
    print(&text);
    ExitCode::SUCCESS
}

/// Writes to standard output. A reader that has gone, such as `head`, is no error, and ends the command.
pub(super) fn print(text: &str) {
    let mut output = io::stdout().lock();
    if let Err(error) = output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            process::exit(0);
        }
        eprintln!("lb: standard output: {error}");
        process::exit(1);
    }
}

/// Writes a value as JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value).map_err(Failure::failed)?;
    text.push('\n');
    print(&text);
    Ok(())
}

/// Writes rows under a header. Columns whose name begins with `>` hold numbers.
pub(super) fn print_table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(header.map(|name| name.trim_start_matches('>')));
    for row in rows {
        table.add_row(row);
    }
    let last = N.saturating_sub(1);
    for (index, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if name.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
            if index < last {
                column.set_constraint(ColumnConstraint::ContentWidth);
            } else {
                column.set_constraint(ColumnConstraint::UpperBoundary(Width::Percentage(60)));
            }
        }
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    print(&(lines.join("\n") + "\n"));
}

/// A number with a unit for people: 1234567 is `1.2M`.
pub(crate) fn short(number: u64) -> String {
    const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    if number < 10_000 {
        return number.to_string();
    }
    let mut value = number as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1}{}", UNITS[unit])
}
