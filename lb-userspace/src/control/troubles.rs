//! What goes wrong for longer than a moment, said once.

use std::{borrow::Cow, collections::BTreeMap};

/// The troubles that last.
#[derive(Debug, Default)]
pub(super) struct Troubles(BTreeMap<Cow<'static, str>, String>);

impl Troubles {
    /// Notes how something that is done again and again went: a failure is logged when it's new,
    /// and its end as well.
    pub(super) fn note(&mut self, what: impl Into<Cow<'static, str>>, result: Result<(), String>) {
        let what = what.into();
        match result {
            Ok(()) => {
                if let Some(trouble) = self.0.remove(&what) {
                    tracing::info!("over: {trouble}");
                }
            }
            Err(trouble) => {
                if self.0.get(&what) != Some(&trouble) {
                    tracing::error!("{trouble}");
                    self.0.insert(what, trouble);
                }
            }
        }
    }
}

/// How full the tables are, said when it becomes dangerous.
#[derive(Debug, Default)]
pub(super) struct Fullness(BTreeMap<&'static str, u32>);

/// Percentages that are worth a warning.
const WARNINGS: [u32; 2] = [80, 95];

impl Fullness {
    /// Notes how many entries tables have, and how many they have room for. Half-open handshakes make room
    /// for each other, and are no reason to worry.
    pub(super) fn note(&mut self, usage: &[(&'static str, u32, u32)]) {
        for (table, used, room) in
            usage.iter().filter(|(table, ..)| !table.starts_with("embryonic"))
        {
            let percent = (u64::from(*used) * 100 / u64::from(*room).max(1)) as u32;
            let reached = WARNINGS.into_iter().rfind(|warning| percent >= *warning).unwrap_or(0);
            let before = self.0.insert(table, reached).unwrap_or(0);
            if reached > before {
                tracing::warn!(
                    table,
                    percent,
                    entries = used,
                    room,
                    "the table of flows fills up: once it is full, new connections are refused; \
                     limits.flows sets its size"
                );
            } else if reached < before {
                tracing::info!(table, percent, "the table of flows has room again");
            }
        }
    }
}
