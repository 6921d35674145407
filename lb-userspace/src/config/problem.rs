//! What is wrong with a configuration, told so that it can be put right.

use std::{fmt, io, ops::Range, path::Path};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, in bytes from the file's start.
    pub span: Range<usize>,
    /// What.
    pub message: String,
    /// What to write instead; may be empty.
    pub hint: String,
}

impl Problem {
    pub(super) fn new(
        span: Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { span, message: message.into(), hint: hint.into() }
    }

    pub(super) fn from_toml(error: &toml::de::Error) -> Self {
        let message = error.message();
        let (message, hint) = match message.split_once(", expected ") {
            Some((message, expected)) => {
                (message, similar(message, expected).unwrap_or_else(|| wanted(message, expected)))
            }
            None => (message, String::new()),
        };
        Self::new(error.span().unwrap_or(0..0), message.replace('`', "\""), hint.replace('`', "\""))
    }
}

/// What is to be written instead of a value of another type.
fn wanted(message: &str, expected: &str) -> String {
    match expected {
        "a string" => match message.split('`').nth(1) {
            Some(number) => {
                format!("write it between quotes: \"{number}\"; a time has its unit, as in \"2s\"")
            }
            None => "write it between quotes".to_owned(),
        },
        "i64" => "write a number, without quotes".to_owned(),
        "a boolean" => "write true or false, without quotes".to_owned(),
        other => format!("expected {other}"),
    }
}

/// The one of the words that are expected which is most like the one that is written, if one is: both stand in
/// backquotes.
fn similar(message: &str, expected: &str) -> Option<String> {
    fn quoted(text: &str) -> impl Iterator<Item = &str> {
        text.split('`').skip(1).step_by(2)
    }
    let written = quoted(message).last()?;
    let distance = |word: &&str| strsim::damerau_levenshtein(written, word);
    let nearest = quoted(expected).min_by_key(distance)?;
    let is_near = distance(&nearest) * 3 <= written.len();
    is_near.then(|| format!("did you mean \"{nearest}\"?"))
}

/// A configuration that can't be used, with everything that is wrong with it.
///
/// Its text has, for each problem, a line `FILE:LINE:COLUMN: message`, the line of the file with
/// the place marked, and a hint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    problems: Vec<Problem>,
    text: String,
}

impl Invalid {
    pub(super) fn new(file: &Path, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.span.start);
        let rendered: Vec<String> =
            problems.iter().map(|problem| render(file, text, problem)).collect();
        Self { problems, text: rendered.join("\n") }
    }

    pub(super) fn unreadable(file: &Path, error: &io::Error) -> Self {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "no such file".to_owned(),
            io::ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
            _ => error.to_string(),
        };
        Self { problems: Vec::new(), text: format!("{}: {why}", file.display()) }
    }

    /// What is wrong; nothing where the file couldn't be read.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl std::error::Error for Invalid {}

fn render(file: &Path, text: &str, problem: &Problem) -> String {
    let start = floor_char_boundary(text, problem.span.start);
    let before = &text[..start];
    let line_number = before.matches('\n').count() + 1;
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let column = text[line_start..start].chars().count() + 1;
    let end = floor_char_boundary(text, problem.span.end).min(line_start + line.len());
    let width = text.get(start..end).map_or(1, |marked| marked.chars().count().max(1));

    let mut rendered = format!(
        "{}:{line_number}:{column}: {}\n    {line}\n    {:>column$}{}",
        file.display(),
        problem.message,
        "^",
        "~".repeat(width - 1),
    );
    if !problem.hint.is_empty() {
        rendered += &format!("\n    hint: {}", problem.hint);
    }
    rendered
}

fn floor_char_boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}
