//! `lb events`.

use clap::Args;
use serde_json::Value;

use super::{
    Outcome, Place,
    output::{Failure, print},
};
use crate::{api, journal::Event};

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Go on with new events as they happen
    #[arg(short, long)]
    follow: bool,
    /// As JSON, an object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn events(place: &Place, arguments: &EventsArgs) -> Outcome {
    api::events(&place.socket()?, arguments.follow, |event| {
        if arguments.json {
            // It came as JSON.
            print(&format!("{}\n", serde_json::json!(event)));
        } else {
            print(&line(event));
        }
    })?;
    if arguments.follow {
        return Err(Failure::failed("the controller has stopped"));
    }
    Ok(())
}

/// An event in a line.
fn line(event: &Event) -> String {
    let Event { time, level, message, fields } = event;
    let mut line = format!("{time}  {level:<5}  {}", printable(message));
    for (name, value) in fields {
        line += &match value {
            Value::String(text) if text.contains([' ', '"']) || text.is_empty() => {
                format!("  {name}={text:?}")
            }
            Value::String(text) => format!("  {name}={}", printable(text)),
            value => format!("  {name}={value}"),
        };
    }
    line + "\n"
}

/// A text without what would change more on a terminal than a line.
fn printable(text: &str) -> String {
    let escape = |character: char| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let fields = serde_json::json!({
            "backend": "mgmt01", "detail": "connection refused", "name": "a\u{1b}[2Jb", "percent": 80
        });
        let event = Event {
            time: "2026-01-02T03:04:05.678Z".to_owned(),
            level: "WARN".to_owned(),
            message: "down\nand out".to_owned(),
            fields: fields.as_object().cloned().unwrap_or_default(),
        };
        assert_eq!(
            line(&event),
            "2026-01-02T03:04:05.678Z  WARN   down\\nand out  backend=mgmt01  \
             detail=\"connection refused\"  name=a\\u{1b}[2Jb  percent=80\n"
        );
    }
}
